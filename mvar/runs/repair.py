"""What is damaged in a results directory, what of it can be derived anew, and what is lost: `mvar repair`.

Nothing is written before somebody calls `Finding.mend`. A directory that a living process works in is left alone.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import cast

from mvar import layout
from mvar.artefacts import record_problem
from mvar.config import SCHEMA_VERSION, Config, RunConfig, from_dict, identity
from mvar.errors import UserError
from mvar.files import read_json, write_json
from mvar.runs.asked import config_of, request_of, requested
from mvar.runs.checking import check_results, unchecked_artefacts
from mvar.runs.derived import metrics_problem
from mvar.runs.documents import Damaged, Foreign, is_evaluation, read_document, write_document
from mvar.runs.finding import Finding, finished_steps, image_findings, metrics_findings
from mvar.runs.store import Directory, RunDirectory, StageDirectory, Store

# Documents of a run that others do without -> what is lost with them.
LOST = {
    layout.EXECUTION: "how the run was made is not known any more",
    layout.ENV: "where the run was made is not known any more",
    layout.START: "what the run started from is not known any more",
    layout.TOKENIZER_USED: "the run is then held to the tokenizer that is there now",
}
ORIGINS = {"tokenizer": ("data", "tokenizer"), "tokens": ("data", "tokenizer"), "extractor": ("data", "evaluation")}
METRICS_REMEDY = "`mvar repair --yes` drops what cannot be read, the rest of its training curve is lost"
ORIGIN_REMEDY = "`mvar repair --yes` writes it anew, or deletes it where no run here uses the stage"


def damaged_documents(store: Store) -> list[Damaged]:
    """What cannot be read of runs, stages and sweeps: the quick look of `mvar status`.

    Documents are read whole, of each `metrics.jsonl` only both ends (`derived.metrics_problem`).
    """
    found = []
    patterns = (
        f"{layout.RUNS}/*/{layout.STATUS}",
        f"{layout.RUNS}/*/{layout.EVAL}",
        f"{layout.STAGES}/*/{layout.STATUS}",
        f"{layout.SWEEPS}/*.json",
    )
    shared = (
        f"{layout.STAGES}/*/{layout.QUALITY}",
        f"{layout.STAGES}/*/{layout.EXTRACTOR}",
        f"{layout.STAGES}/*/{layout.FLOORS}",
    )
    paths = [path for pattern in (*patterns, *shared) for path in sorted(store.root.glob(pattern))]
    found = [damaged for path in paths if (damaged := damage(path))]
    for path in sorted(store.root.glob(f"{layout.RUNS}/*/{layout.METRICS}")):
        run = RunDirectory(path.parent)
        if problem := metrics_problem(path, lambda run=run: finished_steps(run) > 0):
            found.append(Damaged(f"{path}: {problem}; {METRICS_REMEDY}"))
    for folder in store.index.unreadable:
        with suppress(FileNotFoundError):
            try:
                RunDirectory(store.root / folder).stored()
            except Damaged as damaged:
                found.append(damaged)
    return found


def damage(path: Path) -> Damaged | None:
    """What is wrong with a document; None where it can be read or is not there."""
    try:
        read_document(path)
    except Damaged as damaged:
        return damaged
    except OSError:
        return None
    return None


def findings(store: Store, names: list[str] | None = None) -> list[Finding]:
    """What is wrong, in the order in which it is to be mended.

    Args:
        store: the results.
        names: of runs to look at; None: everything.
    """
    return [_left_alone(finding) for finding in _Look(store, names).findings()]


def _left_alone(finding: Finding) -> Finding:
    """The finding; of a document of another version without anything that is done to it."""
    if not isinstance(damage(finding.path), Foreign):
        return finding
    return replace(finding, action="is left alone; it is for the version that wrote it", mend=None)


def restore(store: Store, configs: Iterable[RunConfig]) -> None:
    """Write anew what is damaged and known, of the runs that a command asks for and of all stages."""
    for stage in store.stages():
        stage.restore_status()
    unreadable = set(store.index.unreadable)
    for config in configs:
        run = store.run_of(config)
        if f"{layout.RUNS}/{run.name}" in unreadable and run.name == config.run_id and not run.is_locked():
            run.write_config(config)
        run.restore_status()


class _Look:
    """One look at a results directory."""

    def __init__(self, store: Store, names: list[str] | None) -> None:
        self._store, self._all = store, names is None
        self._runs = [run for run in store.runs() if names is None or run.name in names]

    def findings(self) -> Iterator[Finding]:
        for run in self._runs:
            yield from self._config(run)
        if self._all:
            yield from self._shared()
        for run in self._runs:
            if not run.is_locked():
                yield from self._run(run)

    @cached_property
    def _asked(self) -> list[RunConfig]:
        return requested(self._store)

    @cached_property
    def _configs(self) -> dict[str, RunConfig]:
        """Of every run that is there, by name."""
        found = {run.name: config_of(run, self._asked) for run in self._store.runs()}
        return {name: config for name, config in found.items() if config}

    # Runs -------------------------------------------------------------------------------------------------------------

    def _config(self, run: RunDirectory) -> Iterator[Finding]:
        try:
            run.stored()
        except Damaged as damaged:
            config = config_of(run, self._asked)
            if config:
                text = "is written anew, as its weights or its sweep have it"
                yield Finding(
                    run.config_path,
                    str(damaged),
                    text,
                    lambda: write_json(run.config_path, identity.as_document(config)),
                )
            else:
                yield Finding(run.config_path, str(damaged), "not known here: neither weights nor a sweep have it")

    def _run(self, run: RunDirectory) -> Iterator[Finding]:
        for name, lost in LOST.items():
            yield from self._doomed(run.path / name, f"is deleted; {lost}")
        for path in sorted(run.path.glob(f"{layout.SAMPLES}/*/{layout.TIMING}")):
            yield from self._doomed(path, "is deleted; how long drawing took is not known any more")
        path = run.path / layout.ATTENTION_JSON
        if path.is_file() and not _is_object(path):
            yield Finding(path, f"{path}: damaged", "is deleted; `mvar attention` makes it anew", path.unlink)
        yield from image_findings(run)
        yield from metrics_findings(run)
        yield from self._evaluations(run)
        yield from _status(run)

    def _doomed(self, path: Path, action: str) -> Iterator[Finding]:
        if found := damage(path):
            yield Finding(path, str(found), action, lambda: path.unlink(missing_ok=True))

    def _evaluations(self, run: RunDirectory) -> Iterator[Finding]:
        path = run.path / layout.EVAL
        if found := damage(path):
            yield Finding(path, str(found), self._told(run), lambda: self._evaluate(run, anew=True))
            return
        with suppress(FileNotFoundError):
            bad = [name for name, one in read_document(path)["evaluations"].items() if not is_evaluation(one)]
            if bad:
                problem = f"{path}: evaluation {', '.join(bad)} is not as this version writes it"
                yield Finding(path, problem, self._told(run), lambda: self._evaluate(run, bad))

    def _told(self, run: RunDirectory) -> str:
        if not run.weights.is_file():
            return "is deleted; the command that made the run goes on with it"
        return "is measured again from the images that are there; evaluations without images are lost"

    def _evaluate(self, run: RunDirectory, bad: list[str] | None = None, anew: bool = False) -> None:
        """Measure the stored images of a run again, of every evaluation whose settings are known."""
        from mvar.runs.pipeline import execute

        if anew:
            (run.path / layout.EVAL).unlink(missing_ok=True)
        elif bad:
            kept = {name: one for name, one in run.all_evaluations().items() if name not in bad}
            write_document(run.path / layout.EVAL, {"evaluations": kept})
        if not run.weights.is_file():
            return
        own = config_of(run, self._asked)
        configs = [own] if own else []
        configs += [c for c in self._asked if self._store.run_of(c).name == run.name]
        known = {config.evaluation_id: config for config in configs}
        for evaluation_id, config in known.items():
            if (run.samples(evaluation_id) / layout.SAMPLES_NPZ).is_file():
                execute(config, self._store, directory=run)

    # What is shared ---------------------------------------------------------------------------------------------------

    def _shared(self) -> Iterator[Finding]:
        for path in sorted(self._store.root.glob(f"{layout.SWEEPS}/*.json")):
            if found := damage(path):
                yield self._sweep(path, found)
        path = self._store.root / layout.INDEX
        if path.is_file() and not _is_object(path):
            yield Finding(path, f"{path}: damaged", "is deleted; it is made anew", path.unlink)
        yield from self._records()
        for folder in sorted(path for path in self._store.root.glob(f"{layout.STAGES}/*") if path.is_dir()):
            stage = StageDirectory(folder)
            if not stage.is_locked():
                yield from self._stage(stage)

    def _records(self) -> Iterator[Finding]:
        """Records of digests that vouch for nothing."""
        for path in sorted(
            p for kind in (layout.RUNS, layout.STAGES) for p in self._store.root.glob(f"{kind}/**/{layout.DIGESTS}")
        ):
            if problem := record_problem(path.parent):
                yield Finding(path, problem, "is deleted; its files count as unchecked", path.unlink)

    def _sweep(self, path: Path, found: Damaged) -> Finding:
        request = request_of(self._store, path)
        if request is None:
            lost = "is deleted; what was asked for is lost, the command that made it writes it again"
            return Finding(path, str(found), lost, path.unlink)

        def write() -> None:
            from mvar.runs.request import write_manifest

            settings = [f"{name}={json.dumps(value)}" for name, value in request.overrides.items()]
            seeds = ",".join(map(str, request.seeds)) + ","
            words = ["run", request.sweep.name, "--preset", request.preset, "--seeds", seeds]
            path.unlink()
            write_manifest(self._store, request, [*words, *(["--set", *settings] if settings else [])])

        return Finding(path, str(found), "is written anew, with the seeds of the runs that are there", write)

    def _stage(self, stage: StageDirectory) -> Iterator[Finding]:
        kind, _, stage_id = stage.name.partition("-")
        users = [c for c in self._configs.values() if self._store.stage(kind, stage_id).name in _stages(c)]
        for name in REMADE:
            if found := damage(stage.path / name):
                yield self._remade(stage.path / name, str(found), users)
        if kind == "tokens":
            yield from self._caches(stage, users)
        for name in (layout.META,) if kind == "vectors" else (layout.SUMMARY,) if kind == "data" else ():
            yield from self._doomed(stage.path / name, "is deleted; it is made anew where it is needed")
        path, sections = stage.path / layout.CONFIG, ORIGINS.get(kind, ())
        if sections and path.is_file() and not _is_origin(path, sections):
            problem = f"{path}: not as this version writes it"
            if users:
                values = {name: identity.as_document(getattr(users[0], name)) for name in sections}
                yield Finding(path, problem, "is written anew", lambda: write_document(path, values))
            else:
                yield Finding(path, problem, "is deleted; the stage is found by its id alone", path.unlink)
        yield from _status(stage)

    def _caches(self, stage: StageDirectory, users: list[RunConfig]) -> Iterator[Finding]:
        from mvar.data.tokens import is_complete

        for path in sorted(stage.path.glob(f"*/{layout.META}")):
            if not is_complete(path.parent):
                yield self._remade(path, f"{path}: damaged", users)

    def _remade(self, path: Path, problem: str, users: list[RunConfig]) -> Finding:
        if not users:
            return Finding(path, problem, "no run here says what it is of; delete its folder and it is made again")

        def make() -> None:
            from mvar.runs.remade import BY_DOCUMENT  # here: it imports torch
            from mvar.runs.wiring import Stages

            path.unlink(missing_ok=True)
            for config in users:
                BY_DOCUMENT[path.name](Stages(config, self._store))

        return Finding(path, problem, "is made anew from the stage's weights and the data", make)


REMADE = (layout.QUALITY, layout.EXTRACTOR, layout.FLOORS, layout.CLASS_OUTPUTS)  # of a stage, by `remade`


def _stages(config: RunConfig) -> set[str]:
    """Names of the stages that a run shares."""
    return {f"tokenizer-{config.tokenizer_id}", f"tokens-{config.tokens_id}", f"extractor-{config.extractor_id}"}


def _status(directory: Directory) -> Iterator[Finding]:
    path = directory.path / layout.STATUS
    if found := damage(path):
        yield Finding(path, str(found), "is written anew from what is there", directory.restore_status)


def _is_object(path: Path) -> bool:
    """Whether a file holds a JSON object."""
    try:
        return isinstance(read_json(path), dict)
    except (UserError, OSError):
        return False


def damaged_origins(store: Store) -> Iterator[Damaged]:
    """Each `config.json` of a shared stage that does not hold the sections of a config that it was made from."""
    for path in sorted(store.root.glob(f"{layout.STAGES}/*/{layout.CONFIG}")):
        sections = ORIGINS.get(path.parent.name.partition("-")[0], ())
        if sections and not _is_origin(path, sections):
            yield Damaged(f"{path}: not as this version writes it; {ORIGIN_REMEDY}")


def _is_origin(path: Path, sections: tuple[str, ...]) -> bool:
    """Whether a stage's `config.json` holds these sections of a config."""
    try:
        values = read_json(path)
        for name in sections:
            from_dict(cast("type[Config]", RunConfig.model_fields[name].annotation), values[name], lenient=True)
        return values.get("schema_version", SCHEMA_VERSION) == SCHEMA_VERSION  # the first version wrote none here
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return False


def check_artefacts(store: Store) -> tuple[list[str], int]:
    """One line for each weights file, checkpoint, set of images or cache whose bytes are not those recorded; and how
    many there are of which nothing is recorded."""
    return [str(problem) for problem in check_results(store, full=True)], len(unchecked_artefacts(store))
