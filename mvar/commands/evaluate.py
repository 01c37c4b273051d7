"""`mvar evaluate`: samples and metrics of trained runs or a published checkpoint, through the one pipeline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from mvar.commands.checkpoint import CheckpointFiles, check_unused, sampling_preset
from mvar.commands.options import Answer, RunNames, Settings, Values, Word
from mvar.commands.outcome import conclude
from mvar.commands.request import ONE, Asked
from mvar.errors import FAILURE, OK, UserError, one_of, warn
from mvar.runs.launch.datasets import DataSets

if TYPE_CHECKING:
    from mvar.config import RunConfig
    from mvar.runs.executors.contract import Summary
    from mvar.runs.request import Request
    from mvar.runs.store import RunDirectory, Store

OF_CHECKPOINTS = "imagenet256-d16"  # the preset of a checkpoint where none is named
# Options that tell runs apart: a run by its id, and a checkpoint, have all that themselves.
OF_MANY = {"seeds": ONE, "sample_seeds": ONE, "only": (), "baseline": ""}


@dataclass(frozen=True)
class Evaluate(Asked, CheckpointFiles, Answer):
    """Sample and measure trained runs with other settings, or a published checkpoint; what is done is not repeated.

    Nothing is trained: of a sweep, or of what --config, --grid and --name ask for, runs that are not trained are named.
    A checkpoint becomes a run of the results directory with no training steps: status, report and attention know it.

    Example: `mvar evaluate digits --cfg-scale 0,0.5,1.5`
    """

    runs: RunNames = ()
    """Run ids, unique beginnings of them, or runs' directories; or a sweep, or the name of a grid: all its runs.
    Several, or one with --cfg-scale or --grid, are a table, which --name names."""
    cfg_scale: Values = None
    """Values of sample.cfg_scale, e.g. 0,0.25,0.5,1,1.5,2.5: each run draws with each of them."""
    preset: Word = ""
    """Where sizes, data and recipe come from; default: digits, or what --config says, for a checkpoint imagenet256-d16
    (data, evaluation and sampling)."""
    sampling: Word = ""
    """Published settings: fid (cfg 1.5, top-k 900, top-p 0.96) or visual (cfg 4, more smooth)."""
    set: Settings = ()
    """FIELD=VALUE ..., e.g. sample.cfg_scale=2 evaluation.num_images=10000; for a checkpoint also data fields, beside
    --config, --grid and sweeps every field."""
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Worker processes for several runs; 0: one a core, or one a GPU."""
    former: ClassVar[Mapping[str, str]] = MappingProxyType({"--guidance": "--cfg-scale"})

    def execute(self, arguments: list[str]) -> int:
        """Evaluate and print the metrics; returns the exit code."""
        from mvar.runs.store import Store

        store = Store(self.results)
        asked = self._asked_for(store)
        if self.checkpoint:
            self._check_one("a checkpoint")
            return self._evaluate_checkpoint(store)
        check_unused(self)
        if self.runs and not asked:
            self._check_one("a run", self._is_table)
            if not self._is_table:
                return self._evaluate_run(*Store.locate(self.results, self.runs[0]))
            requests, store = self._requests_of_runs()
            return self._evaluate_many(requests, store, arguments, is_new=True)
        return self._evaluate_many(self.requests_of(self.runs), store, arguments, is_new=bool(self.grid))

    def asked_sweeps(self) -> Sequence[str]:
        """What may be sweeps' files."""
        return self.runs

    def asked_fields(self) -> dict[str, Any]:
        """The fields that are set, those of --sampling before."""
        named = {f"sample.{name}": value for name, value in sampling_preset(self.sampling).items()}
        return named | super().asked_fields()

    def _asked_for(self, store: "Store") -> bool:
        """Whether runs are asked for by a sweep, a file or a grid, and not by an id or as a checkpoint.

        Raises:
            UserError: nothing is asked for, or two things at once.
        """
        is_sweep = any(self._is_sweep(store, name) for name in self.runs)
        of_runs = bool(self.runs) and not is_sweep
        given = {"RUN": self.runs, "--checkpoint": self.checkpoint}
        words = {"--config": self.config, "--grid": self.grid, "--name": self.name}
        if of_runs and self._is_table:
            words = {"--config": self.config}
        elif self.cfg_scale is not None:
            raise UserError("cfg-scale: of runs by their ids; allowed: RUN ..., else --grid sample.cfg_scale=0,1.5")
        allowed = "allowed: one of RUN, --checkpoint FILE, --config FILE, --grid with --name, --name"
        found = [name for name, value in given.items() if value and not (is_sweep and name == "RUN")]
        many = [name for name, value in words.items() if value]
        if len(found) > 1 or (found and many):
            raise UserError(f"run, checkpoint: {' and '.join([*found, *many[:1]])} are given; {allowed}")
        if not (found or many or is_sweep):
            raise UserError(f"run, checkpoint: neither is given; {allowed}")
        return bool(many) or is_sweep

    def _is_sweep(self, store: "Store", name: str) -> bool:
        from mvar.commands.own_grids import kept_grids
        from mvar.runs.experiment import is_experiment

        return name.endswith(".py") or is_experiment(name) or name in kept_grids(store)

    @property
    def _is_table(self) -> bool:
        """Whether runs that are asked for by their ids are a table: several, or one with several settings."""
        return len(self.runs) > 1 or self.cfg_scale is not None or bool(self.grid)

    def _check_one(self, what: str, is_table: bool = False) -> None:
        """Refuse, beside a run or checkpoint, what tells which of several is meant; a table draws several sets."""
        names = ["preset"] * (what == "a run" and bool(self.preset))
        names += [name for name, default in OF_MANY.items() if getattr(self, name) != default]
        names = [name for name in names if not (is_table and name == "sample_seeds")]
        if names:
            option = names[0].replace("_", "-")
            raise UserError(
                f"{option}: {what} has its own; allowed: --{option} with --config, --grid, --name or a sweep"
            )

    # One ------------------------------------------------------------------------------------------------------------

    def _evaluate_run(self, run: "RunDirectory", store: "Store") -> int:
        from mvar.runs.launch.evaluation import evaluation_of

        config = evaluation_of(store, run, self.asked_fields())
        return self._evaluate(config, store, run, DataSets(store, stored=True))

    def _evaluate_checkpoint(self, store: "Store") -> int:
        from mvar.config import override
        from mvar.presets import PRESETS

        preset = self.preset or OF_CHECKPOINTS
        if preset not in PRESETS:
            raise one_of("preset", preset, PRESETS)
        data_sets, fields = DataSets(store), self.asked_fields()
        base = self.imported(override(PRESETS[preset], fields), adapt_data=False)
        config = store.as_stored(data_sets.settled_config(base, fields))
        return self._evaluate(config, store, store.run_of(config), data_sets)

    def _evaluate(self, config: "RunConfig", store: "Store", run: "RunDirectory", data_sets: DataSets) -> int:
        from mvar.runs.launch.needed import check_files
        from mvar.runs.store import check_writable

        check_writable(store.root)
        if not run.is_done(config.evaluation_id):
            check_files([config], store)
            data_sets.check([config])
        from mvar.runs.runner import run_all

        code = conclude(run_all([config], store, 1, directory=run), store)
        if code == OK or run.is_done(config.evaluation_id):
            from mvar.commands.evaluation_table import print_evaluation

            if self.json:
                where = {"run": run.name, "evaluation_id": config.evaluation_id}
                self.answer(where | run.evaluations()[config.evaluation_id])
            else:
                print_evaluation(run, config)
        return code

    # Several --------------------------------------------------------------------------------------------------------

    def _requests_of_runs(self) -> "tuple[list[Request], Store]":
        """Runs by their ids, as a grid of what they differ in and of the settings that are asked for."""
        from mvar.commands.of_runs import requests_of_runs
        from mvar.commands.request import seeds_of
        from mvar.runs.store import Store

        located = [Store.locate(self.results, name) for name in self.runs]
        if len({found.root.resolve() for _, found in located}) > 1:
            raise UserError("run: the runs lie in several results directories; allowed: runs of one")
        grid = [axis for group in self.grid for axis in group]
        grid += [] if self.cfg_scale is None else [f"sample.cfg_scale={self.cfg_scale}"]
        if training := [axis for axis in grid if not axis.strip().startswith("sample.")]:
            raise UserError(f"grid: {training[0]} would be other runs; allowed: fields of sample.")
        if len(self.name) > 1:
            raise UserError(f"name: {', '.join(map(repr, self.name))} are {len(self.name)} names; allowed: one")
        runs, store = [run for run, _ in located], located[0][1]
        sampled = seeds_of("sample-seeds", self.sample_seeds)
        name = self.name[0] if self.name else ""
        return requests_of_runs(store, runs, grid, self.asked_fields(), sampled, name), store

    def _evaluate_many(self, asked: "Sequence[Request]", store: "Store", arguments: list[str], is_new: bool) -> int:
        """What is trained of the runs that are asked for; a new grid is kept, so that the report has its table."""
        from mvar.commands.evaluation_table import print_evaluations
        from mvar.runs.request import write_manifest
        from mvar.runs.store import check_writable

        data_sets = DataSets(store, stored=True)
        requests = [data_sets.settled(request) for request in asked]
        cells = _cells(requests, store)
        trained = [config for config, _ in cells if store.run_of(config).weights.is_file()]
        lacking = dict.fromkeys(store.run_of(c).name for c, _ in cells if not store.run_of(c).weights.is_file())
        how = "`mvar run` with the same words trains it"
        if not trained:
            raise UserError(f"run: {', '.join(lacking)}: not trained yet; allowed: trained runs; {how}")
        check_writable(store.root)
        for request in requests if is_new else ():
            write_manifest(store, request, arguments)
        code = conclude(self._measured(trained, store, data_sets), store)
        found = [(label, store.run_of(config), config) for config, label in cells]
        if self.json:
            self.answer([_document(*one) for one in found])
        else:
            print_evaluations(found)
        if lacking:
            warn(f"{', '.join(lacking)}: not trained yet, and so not evaluated; {how}")
        return code or (FAILURE if lacking else OK)

    def _measured(self, configs: "Sequence[RunConfig]", store: "Store", data_sets: DataSets) -> "Summary":
        from mvar.runs.launch.needed import check_files
        from mvar.runs.published_tokenizer import need_tokenizer
        from mvar.runs.repair import restore
        from mvar.runs.request import unique
        from mvar.runs.runner import run_all

        configs = unique(configs)
        restore(store, configs)
        for config in configs:
            need_tokenizer(store, config, store.run_of(config))
        left = [config for config in configs if not store.is_done(config)]
        check_files(left, store)
        data_sets.check(left)
        return run_all(configs, store, self.workers or None)


def _document(label: str, run: "RunDirectory", config: "RunConfig") -> dict[str, Any]:
    """A row as JSON has it; without metrics where it was not evaluated."""
    record = run.evaluations().get(config.evaluation_id, {})
    return {"row": label, "run": run.name, "evaluation_id": config.evaluation_id, **record}


def _cells(requests: "Sequence[Request]", store: "Store") -> "list[tuple[RunConfig, str]]":
    """The runs that are asked for, row by row and seed by seed, each once, with the labels of the rows."""
    from mvar.runs.request import with_seeds

    found: dict[tuple[str, str], tuple[RunConfig, list[str]]] = {}
    for request in requests:
        for cell in filter(request.is_chosen, request.cells()):
            for config in map(store.as_stored, with_seeds(cell.config, request.seeds, request.sample_seeds)):
                labels = found.setdefault((config.run_id, config.evaluation_id), (config, []))[1]
                labels += [cell.label] if cell.label not in labels else []
    return [(config, "; ".join(labels)) for config, labels in found.values()]
