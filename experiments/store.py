"""The run directory is the database: what is asked, running, done or failed is read from files, from any process.

Every file is replaced atomically, every directory has a lock that the kernel releases when its holder dies, and every
JSON document carries `schema_version`. `results/README.md` documents the layout.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mvar.config import SCHEMA_VERSION, RunConfig, from_dict
from mvar.errors import UserError, in_field
from mvar.files import digest, read_json, remove_leftovers, write_json

ShouldStop = Callable[[], bool]
RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "stopped"
DONE_ANEW = ("floors", "evaluate")  # stages that keep nothing where they are stopped
RUN = "run"  # the kind of work that is no shared stage


class Stopped(Exception):
    """Work was asked to stop and has left a checkpoint: the same command goes on from there."""


def read_document(path: Path) -> dict[str, Any]:
    """Read a JSON document of the store.

    Raises:
        UserError: corrupt JSON, or written under another `schema_version`; both name the file.
        FileNotFoundError: no such file.
    """
    document = read_json(path)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version is {version!r}; allowed: {SCHEMA_VERSION}")
    return document


def write_document(path: Path, values: Mapping[str, Any], mode: int = 0o644) -> None:
    """Write a JSON document of the store, atomically, with the `schema_version` that readers check."""
    write_json(path, {"schema_version": SCHEMA_VERSION, **values}, mode)


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
        return self.path / ".lock"

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
        """The status document, or None where nothing has begun."""
        try:
            return read_document(self.path / "status.json")
        except FileNotFoundError:
            return None

    def state(self) -> str | None:
        """`running`, `done`, `failed`, `stopped`, or None."""
        status = self.status()
        return status and status["state"]

    def write_status(self, state: str, stage: str, **values: Any) -> None:
        """Replace the status; fields that are not given keep their value, `reason` is cleared."""
        document = {"step": 0, "steps": 0, "train_s": 0.0, **(self.status() or {}), "reason": None, **values}
        document |= {"state": state, "stage": stage, "updated": datetime.now(UTC).isoformat(timespec="seconds")}
        write_document(self.path / "status.json", document)


class StageDirectory(Directory):
    """What several runs share: a tokenizer, a token cache or a feature extractor."""


class RunDirectory(Directory):
    """One run: config, environment, status, metrics, weights, samples, evaluations."""

    @property
    def weights(self) -> Path:
        """The trained generator."""
        return self.path / "model.safetensors"

    @property
    def metrics(self) -> Path:
        """Training metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    def samples(self, evaluation_id: str) -> Path:
        """The directory of one evaluation's images."""
        return self.path / "samples" / evaluation_id

    def config(self) -> RunConfig:
        """The config that the run was made with.

        Raises:
            UserError: no such run, corrupt JSON, another schema version, or values that are no longer allowed.
        """
        path = self.path / "config.json"
        try:
            document = read_document(path)
        except FileNotFoundError:
            raise UserError(f"run: {self.path} has no config.json; allowed: a directory made by `mvar run`") from None
        with in_field(str(path)):
            return from_dict(RunConfig, document)

    def write_config(self, config: RunConfig) -> None:
        """Store the config; a directory that holds another science under the same name is refused.

        A run that has one keeps its settings of sampling and evaluation: another evaluation, by rejection say, is not
        what `mvar sample` and `mvar evaluate` start from afterwards.
        """
        path = self.path / "config.json"
        if path.exists():
            kept = self.config()
            if kept.identity() != config.identity():
                raise UserError(
                    f"{path}: holds another config than run {config.run_id}; allowed: move that directory away"
                )
            config = config.model_copy(update={"sample": kept.sample, "evaluation": kept.evaluation})
        write_json(path, config.model_dump(mode="json"))

    def evaluations(self) -> dict[str, Any]:
        """Finished evaluations by evaluation id; empty where there is none."""
        try:
            return read_document(self.path / "eval.json")["evaluations"]
        except FileNotFoundError:
            return {}

    def add_evaluation(self, evaluation_id: str, record: Mapping[str, Any]) -> None:
        """Add or replace one evaluation. The caller holds the lock."""
        write_document(self.path / "eval.json", {"evaluations": {**self.evaluations(), evaluation_id: dict(record)}})

    def is_done(self, evaluation_id: str) -> bool:
        """Whether the run is trained and this evaluation of it is stored."""
        return self.state() == DONE and self.weights.is_file() and evaluation_id in self.evaluations()


class Store:
    """A results directory: `runs/`, `stages/`, `sweeps/` and `report/`."""

    def __init__(self, root: Path | str = "results") -> None:
        self.root = Path(root)

    def run(self, run_id: str) -> RunDirectory:
        """The directory of a run, whether it exists yet or not."""
        return RunDirectory(self.root / "runs" / run_id)

    def runs(self) -> list[RunDirectory]:
        """Every run that has begun, by name."""
        return [RunDirectory(path.parent) for path in sorted(self.root.glob("runs/*/config.json"))]

    def find_run(self, name: str) -> RunDirectory:
        """A run by its id, a unique beginning of it, or the path of its directory.

        Raises:
            UserError: no such run, or several; names them.
        """
        if Path(name, "config.json").is_file():
            return RunDirectory(Path(name))
        names = [run.name for run in self.runs()]
        matches = [n for n in names if n == name] or [n for n in names if n.startswith(name)]
        if len(matches) != 1:
            problem = f"fits {len(matches)} runs" if matches else "is unknown"
            allowed = ", ".join(matches or names) or f"none, {self.root} holds no runs yet"
            raise UserError(f"run: {name!r} {problem}; allowed: {allowed}")
        return self.run(matches[0])

    def stage(self, kind: str, stage_id: str) -> StageDirectory:
        """The directory of a shared stage: kind `tokenizer`, `tokens` or `extractor`, and its id."""
        return StageDirectory(self.root / "stages" / f"{kind}-{stage_id}")

    def stages(self) -> list[StageDirectory]:
        """Every shared stage that has begun, by name."""
        return [StageDirectory(path.parent) for path in sorted(self.root.glob("stages/*/status.json"))]

    def floors(self, config: RunConfig) -> dict[str, float] | None:
        """The `floor/...` metrics that a run's evaluation is to be read against; None where they are not there yet."""
        record = self.all_floors(config).get(floors_key(config))
        return record and record["metrics"]

    def all_floors(self, config: RunConfig) -> dict[str, Any]:
        """The floors of every tokenizer and evaluation that share a run's extractor, by `floors_key`."""
        return _read_or_empty(self.stage("extractor", config.extractor_id).path / "floors.json").get("floors", {})

    def extractor(self, config: RunConfig) -> dict[str, Any]:
        """`id` and `heldout_accuracy` of a run's feature extractor; empty where it is not there yet."""
        return _read_or_empty(self.stage("extractor", config.extractor_id).path / "extractor.json")

    def tokenizer_quality(self, config: RunConfig) -> dict[str, Any]:
        """`psnr_db`, `codes_used` and `vocab_size` of a run's tokenizer; empty where it is not there yet."""
        return _read_or_empty(self.stage("tokenizer", config.tokenizer_id).path / "quality.json")

    def is_done(self, config: RunConfig) -> bool:
        """Whether there is nothing left to do for a config: trained, sampled and evaluated as it asks."""
        return self.run(config.run_id).is_done(config.evaluation_id)

    def manifest_path(self, name: str) -> Path:
        """Where the list of runs that a sweep asked for is kept."""
        return self.root / "sweeps" / f"{name}.json"

    def manifests(self) -> list[dict[str, Any]]:
        """What was asked for: every sweep's manifest, by file name."""
        return [read_document(path) for path in sorted(self.root.glob("sweeps/*.json"))]


def floors_key(config: RunConfig) -> str:
    """Identity of the floors: they depend on the tokenizer and on the evaluation's settings, beside the extractor."""
    return digest([config.tokenizer_id, config.evaluation.model_dump(mode="json")])


def _read_or_empty(path: Path) -> dict[str, Any]:
    try:
        return read_document(path)
    except FileNotFoundError:
        return {}


def check_writable(root: Path) -> None:
    """Make the results directory, or say in one line why it cannot be used."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"results: {root} cannot be made ({error.strerror}); allowed: a writable directory") from None
    if not os.access(root, os.W_OK):
        raise UserError(f"results: {root} is not writable; allowed: a writable directory")


def one_line(error: BaseException) -> str:
    """The reason of a failure as one line: the message alone for what a user can mend, else with its type."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
