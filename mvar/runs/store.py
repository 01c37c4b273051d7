"""The run directory is the database: what is asked, running, done or failed is read from files, from any process.

Files are replaced atomically; a directory's lock ends with its holder. `results/README.md` has the layout.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mvar import layout, plugin_records, plugins
from mvar.config import RunConfig, identity, stored_config
from mvar.config.parsing import Stored
from mvar.errors import UserError, one_of, quoted, warn_once
from mvar.files import read_json, remove_leftovers, write_json
from mvar.runs import derived, spelling
from mvar.runs.documents import Damaged, Foreign, is_evaluation, read_document, read_or_warn, write_document
from mvar.runs.index import RunIndex
from mvar.runs.states import DONE, ShouldStop, Stopped

DONE_ANEW = ("floors", "evaluate")  # stages that keep nothing where they are stopped
RUN = "run"  # the kind of work that is no shared stage
INDEX_S = 2.0
NAMED = 6  # runs that a message names, the nearest ones
CONFIG_REMEDY = "`mvar repair --yes` or the command that made the run writes it anew"


class Directory:
    """A directory with a lock and a status: the common part of runs and of shared stages."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The directory's own name, e.g. the run id."""
        return self.path.name

    @property
    def _lock_path(self) -> Path:
        return self.path / layout.LOCK

    @contextmanager
    def lock(self, should_stop: ShouldStop | None = None) -> Iterator[None]:
        """Hold the directory: one process works in it at a time; others wait.

        Raises:
            Stopped: `should_stop` became true while another process held the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._lock_path)
        while True:
            try:
                lock.acquire(timeout=0.5)
                break
            except Timeout:
                if should_stop is not None and should_stop():
                    raise Stopped(f"{self.name}: waiting for another process") from None
        try:
            remove_leftovers(self.path)  # of writers that were killed
            yield
        finally:
            lock.release()

    def is_locked(self) -> bool:
        """Whether a living process on this machine holds the directory."""
        if not self._lock_path.exists():
            return False
        lock = FileLock(self._lock_path)
        try:
            with lock.acquire(timeout=0):
                return False
        except (Timeout, OSError):  # OSError: another user's results, where nothing may be locked
            return True

    def status(self) -> dict[str, Any] | None:
        """The status document, or None where nothing has begun; in place of a damaged one what can be derived."""
        try:
            return read_document(self.path / layout.STATUS)
        except FileNotFoundError:
            return None
        except Foreign:
            raise
        except Damaged as damaged:
            warn_once(str(damaged))
            return self.derived_status()

    def derived_status(self) -> dict[str, Any]:
        """The status as the other files have it."""
        return derived.stage_status(self.path)

    def restore_status(self) -> None:
        """Write a damaged status anew, unless a living process is about to."""
        try:
            read_document(self.path / layout.STATUS)
        except (FileNotFoundError, Foreign):
            return
        except Damaged as damaged:
            warn_once(str(damaged))
            if not self.is_locked():
                write_document(self.path / layout.STATUS, self.derived_status())

    def state(self) -> str | None:
        """`running`, `done`, `failed`, `stopped`, or None."""
        status = self.status()
        return status["state"] if status else None

    def write_status(self, state: str, stage: str, **values: Any) -> None:
        """Replace the status; fields that are not given keep their value, `reason` is cleared."""
        document = {"step": 0, "steps": 0, "train_s": 0.0, **(self.status() or {}), "reason": None, **values}
        document |= {"state": state, "stage": stage, "updated": datetime.now(UTC).isoformat(timespec="seconds")}
        write_document(self.path / layout.STATUS, document)


class StageDirectory(Directory):
    """What several runs share: a tokenizer, a token cache or a feature extractor."""


class RunDirectory(Directory):
    """One run: config, environment, status, metrics, weights, samples, evaluations."""

    @property
    def weights(self) -> Path:
        """The trained generator."""
        return self.path / layout.MODEL

    def weights_of(self, half_life: int) -> Path:
        """The generator of a running mean, by its half-life; 0: the trained one."""
        return self.path / layout.MEANS.format(half_life) if half_life else self.weights

    @property
    def metrics(self) -> Path:
        """Training metrics, one JSON object a line."""
        return self.path / layout.METRICS

    def samples(self, evaluation_id: str) -> Path:
        """The directory of one evaluation's images."""
        return self.path / layout.SAMPLES / evaluation_id

    @property
    def config_path(self) -> Path:
        """What the run was made with, and what makes the directory a run's."""
        return self.path / layout.CONFIG

    def stored(self) -> Stored:
        """The config that the run was made with, and names of fields of a newer version that wrote it.

        Raises:
            UserError: no such run, a damaged document, another schema version, or values that are no longer allowed.
        """
        try:
            document = read_json(self.config_path)
        except FileNotFoundError:
            raise UserError(f"run: {self.path} has no config.json; allowed: a directory made by `mvar run`") from None
        except UserError as error:
            raise Damaged(f"{error}; {CONFIG_REMEDY}") from None
        try:
            return stored_config(document)
        except UserError as error:
            raise Damaged(f"{self.config_path}: {error}; {CONFIG_REMEDY}") from None

    def derived_status(self) -> dict[str, Any]:
        """The status as weights, metrics and evaluations have it."""
        try:
            steps = self.stored().config.train.steps
        except UserError:
            steps = 0
        return derived.run_status(self.path, self.evaluations(), steps)

    def config(self, to_compute: bool = True) -> RunConfig:
        """The config that the run was made with; fields of a newer version are left out, with one warning.

        Args:
            to_compute: whether to go on from it, which needs the plug-ins that it was made with.

        Raises:
            UserError: as `stored`; a plug-in that is not loaded.
        """
        config, unknown = self.stored()
        if unknown:
            names = ", ".join(unknown)
            warn_once(f"{self.config_path}: written by a newer version; {names} is not known here and left out")
        if to_compute:
            plugin_records.check(config, self.path)
        return config

    def write_config(self, config: RunConfig) -> None:
        """Store the config; a directory that holds another science under the same name is refused.

        A run that has one keeps its settings of sampling and evaluation: another evaluation, by rejection say, is not
        what `mvar sample` and `mvar evaluate` start from afterwards. One of a newer version stays as it is.
        """
        if self.config_path.exists():
            try:
                kept, unknown = self.stored()
            except Damaged as damaged:
                if self.name != config.run_id:
                    raise
                warn_once(str(damaged))
                kept, unknown = config, ()  # the id is a digest of what makes the run
            if unknown:
                return
            if kept.key != config.key:
                raise UserError(
                    f"{self.config_path}: holds another config than run {config.run_id}; allowed: move that directory "
                    "away"
                )
            config = config.model_copy(update={"sample": kept.sample, "evaluation": kept.evaluation})
        write_json(self.config_path, identity.as_document(config))

    def check_known(self) -> None:
        """Refuse to go on with a run of a newer version: its training would not be what was asked for.

        Raises:
            UserError: fields that this version does not know.
        """
        if self.config_path.exists() and (unknown := self.stored().unknown):
            raise UserError(
                f"{self.config_path}: {', '.join(unknown)} is of a newer version, which this one cannot go on with; "
                "allowed: that version, or to sample and evaluate what is finished"
            )

    @property
    def store(self) -> "Store | None":
        """The results directory that the run lies in; None for a directory that lies elsewhere."""
        parent = self.path.absolute().parent
        return Store(parent.parent) if parent.name == layout.RUNS else None

    def all_evaluations(self) -> dict[str, Any]:
        """What `eval.json` holds by evaluation id, damaged records too; empty where there is none."""
        return read_or_warn(self.path / layout.EVAL).get("evaluations", {})

    def evaluations(self) -> dict[str, Any]:
        """Finished evaluations by evaluation id, damaged ones left out; empty where there is none."""
        return {name: record for name, record in self.all_evaluations().items() if is_evaluation(record)}

    def add_evaluation(self, evaluation_id: str, record: Mapping[str, Any]) -> None:
        """Add or replace one evaluation. The caller holds the lock."""
        write_document(
            self.path / layout.EVAL, {"evaluations": {**self.all_evaluations(), evaluation_id: dict(record)}}
        )

    def execution(self) -> list[dict[str, Any]]:
        """The ways in which the run's steps were made, see `environment.execution_of`; empty for older runs."""
        return read_or_warn(self.path / layout.EXECUTION).get("train", [])

    def is_done(self, evaluation_id: str) -> bool:
        """Whether the run is trained and this evaluation of it is stored."""
        return self.state() == DONE and self.weights.is_file() and evaluation_id in self.evaluations()


class Store:
    """A results directory: `runs/`, `stages/`, `sweeps/` and `report/`."""

    def __init__(self, root: Path | str = "results") -> None:
        self.root = Path(root)
        self._index: RunIndex | None = None
        self._indexed = 0.0
        self.checked: dict[Path, dict[str, Any]] = {}  # what caches and vectors were found to be of, in this job

    def run(self, name: str) -> RunDirectory:
        """The directory of a name, whether it exists yet or not."""
        return RunDirectory(self.root / layout.RUNS / name)

    @property
    def index(self) -> RunIndex:
        """The stored configs by what they are; looked at anew once it is `INDEX_S` old."""
        if self._index is None or time.monotonic() - self._indexed > INDEX_S:
            self._index, self._indexed = RunIndex(self.root), time.monotonic()
        return self._index

    def run_of(self, config: RunConfig) -> RunDirectory:
        """The directory of a config's run: of its id, else one that holds the same run under another name.

        Where there is none yet, the one of its id.
        """
        run = self.run(config.run_id)
        if self._is_own(run):
            return run
        entry = self.index.run(config.key)
        return self.run(entry.name) if entry else run

    def _is_own(self, run: RunDirectory) -> bool:
        """Whether a directory holds the run that it is called after; a damaged config is taken for that."""
        return run.config_path.exists() and self.index.id_of(run.name) in (None, run.name)

    def as_stored(self, config: RunConfig) -> RunConfig:
        """The config in the spelling in which it, or the stages that it shares, are stored already.

        So the ids of one run and of one shared stage are those that it was made under: `/d` and `/x/../d` name one
        folder, and the size of a Mamba does not matter to a model without one.
        """
        run = self.run(config.run_id)
        if self._is_own(run):
            return spelling.of_evaluation(config, run)
        entry = self.index.run(config.key)
        if entry:
            return spelling.of_run(config, self.run(entry.name))
        return spelling.of_stages(config, self.index, self.run)

    def runs(self) -> list[RunDirectory]:
        """Every run that has begun, by name."""
        return [RunDirectory(path.parent) for path in sorted(self.root.glob(f"{layout.RUNS}/*/{layout.CONFIG}"))]

    def find_run(self, name: str) -> RunDirectory:
        """A run by its id, a unique beginning of it, parts of it as `mvar status` shows them, or its directory's path.

        Raises:
            UserError: no such run, or several; names them.
        """
        found = self.fitting(name) or [run for run in self.runs() if spelling.is_short_for(name, run.name)]
        if len(found) > 1:
            more = f" and {len(found) - NAMED} others" if len(found) > NAMED else ""
            fit = ", ".join(run.name for run in found[:NAMED])
            raise UserError(f"run: {quoted(name)} fits {len(found)} runs; allowed: {fit}{more}")
        if not found:
            raise one_of("run", name, [r.name for r in self.runs()] or [f"none, {self.root} holds no runs yet"], NAMED)
        return found[0]

    def fitting(self, name: str) -> list[RunDirectory]:
        """The runs that a name may mean: a path of a directory, an id, or a beginning of ids."""
        if Path(name, layout.CONFIG).is_file() and Path(name).resolve().parent.name != layout.STAGES:
            return [RunDirectory(Path(name))]
        names = [run.name for run in self.runs()]
        matches = [n for n in names if n == name] or [n for n in names if n.startswith(name)]
        return [self.run(match) for match in matches or [entry.name for entry in self.index.by_id(name)][:1]]

    @classmethod
    def locate(cls, root: Path, name: str) -> tuple[RunDirectory, "Store"]:
        """A run by its name below `root`, or by its directory's path; and the results that it lies in.

        Raises:
            UserError: as `find_run`.
        """
        run = cls(root).find_run(name)
        return run, run.store or cls(root)

    def stage(self, kind: str, stage_id: str) -> StageDirectory:
        """The directory of a shared stage: kind `tokenizer`, `tokens` or `extractor`, and its id."""
        return StageDirectory(self.root / layout.STAGES / f"{kind}-{stage_id}")

    def stages(self) -> list[StageDirectory]:
        """Every shared stage that has begun, by name."""
        return [StageDirectory(path.parent) for path in sorted(self.root.glob(f"{layout.STAGES}/*/{layout.STATUS}"))]

    def floors(self, config: RunConfig) -> dict[str, float] | None:
        """The `floor/...` metrics that a run's evaluation is to be read against; None where they are not there yet."""
        return self.all_floors(config).get(config.floors_id, {}).get("metrics")

    def all_floors(self, config: RunConfig) -> dict[str, Any]:
        """The floors of every tokenizer and evaluation that share a run's extractor, by `RunConfig.floors_id`."""
        return read_or_warn(self.stage("extractor", config.extractor_id).path / layout.FLOORS).get("floors", {})

    def extractor(self, config: RunConfig) -> dict[str, Any]:
        """`id` and `heldout_accuracy` of a run's feature extractor; empty where it is not there yet."""
        return read_or_warn(self.stage("extractor", config.extractor_id).path / layout.EXTRACTOR)

    def tokenizer_quality(self, config: RunConfig) -> dict[str, Any]:
        """`psnr_db`, `codes_used` and `vocab_size` of a run's tokenizer; empty where it is not there yet."""
        return read_or_warn(self.stage("tokenizer", config.tokenizer_id).path / layout.QUALITY)

    def is_done(self, config: RunConfig) -> bool:
        """Whether there is nothing left to do for a config: trained, sampled and evaluated as it asks."""
        return self.run_of(config).is_done(config.evaluation_id)

    def has_tokenizer(self, config: RunConfig) -> bool:
        """Whether the tokenizer of a config is trained."""
        stage = self.stage("tokenizer", config.tokenizer_id)
        return stage.state() == DONE and (stage.path / layout.TOKENIZER).is_file()

    def manifest_path(self, name: str) -> Path:
        """Where the list of runs that a sweep asked for is kept."""
        return self.root / layout.SWEEPS / f"{name}.json"

    def manifests(self) -> list[dict[str, Any]]:
        """What was asked for: every sweep's manifest, by file name, damaged ones left out."""
        paths = sorted(self.root.glob(f"{layout.SWEEPS}/*.json"))
        return [found for path in paths if (found := read_or_warn(path, foreign_too=True))]


def check_writable(root: Path) -> None:
    """Make the results directory, or say in one line why it cannot be used."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"results: {root} cannot be made ({error.strerror}); allowed: a writable directory") from None
    if not os.access(root, os.W_OK):
        raise UserError(f"results: {root} is not writable; allowed: a writable directory")


def one_line(error: BaseException) -> str:
    """The reason of a failure as one line: what a user can mend, or a plug-in has raised; else with its type."""
    told = str(error) if isinstance(error, UserError) else plugins.blamed(error) or f"{type(error).__name__}: {error}"
    return re.sub(r"\s+", " ", told).strip().removesuffix(":")
