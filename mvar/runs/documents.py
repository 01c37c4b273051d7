"""The JSON documents of a results directory: one reader, which checks the shape and names what is wrong.

Every document carries `schema_version`. A document of another shape (cut, of another program, edited by hand) is a
`Damaged`: it names the file and what can be done, so that whoever reads many can go on with the others.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from mvar import layout
from mvar.config import SCHEMA_VERSION
from mvar.errors import FAILURE, USER_ERROR, UserError, warn_once
from mvar.escaping import one_line
from mvar.files import read_json, write_json

OPEN = ConfigDict(extra="allow")  # fields of a newer version are kept


class Damaged(UserError):
    """A document that cannot be read: not JSON, of another version, or of another shape."""

    exit_code = FAILURE  # nobody has asked for anything wrong


class Foreign(Damaged):
    """A document of another version: never guessed at, and never replaced."""

    exit_code = USER_ERROR


@with_config(OPEN)
class _Status(TypedDict):
    state: Literal["running", "done", "failed", "stopped"]
    stage: str
    step: NotRequired[int]
    steps: NotRequired[int]
    train_s: NotRequired[float]
    reason: NotRequired[str | None]
    updated: NotRequired[str]
    job: NotRequired[str | None]
    start: NotRequired[str | None]
    failed_metrics: NotRequired[dict[str, str]]


@with_config(OPEN)
class _Evaluation(TypedDict):
    metrics: dict[str, Any]
    sample: NotRequired[dict[str, Any]]
    evaluation: NotRequired[dict[str, Any]]
    extractor_id: NotRequired[str]
    reference: NotRequired[dict[str, Any]]
    execution: NotRequired[dict[str, Any]]
    cost: NotRequired[dict[str, Any]]
    timing: NotRequired[dict[str, Any]]
    measured: NotRequired[dict[str, Any]]


@with_config(OPEN)
class _Evaluations(TypedDict):
    evaluations: dict[str, Any]  # each is looked at by itself: one that is damaged leaves the others


@with_config(OPEN)
class _Cell(TypedDict):
    label: str
    axes: dict[str, Any]
    printed: dict[str, Any]
    run_ids: list[str]
    evaluation_ids: list[str]
    keys: NotRequired[dict[str, str]]
    seeds: NotRequired[list[int]]
    sample_seeds: NotRequired[list[int]]


@with_config(OPEN)
class _Axis(TypedDict):
    field: str
    values: list[str]


@with_config(OPEN)
class _Grid(TypedDict):
    axes: list[_Axis]
    baseline: str


@with_config(OPEN)
class _Manifest(TypedDict):
    sweep: str
    artefact: str
    preset: str
    mode: str
    budget_flops: float | None
    command: str
    overrides: dict[str, Any]
    cells: list[_Cell]
    seeds: NotRequired[list[int]]
    sample_seeds: NotRequired[list[int]]
    config: NotRequired[str]
    grid: NotRequired[_Grid]
    earlier_commands: NotRequired[list[str]]
    plugins: NotRequired[list[dict[str, Any]]]


@with_config(OPEN)
class _Job(TypedDict):
    name: str
    elements: list[list[str]]
    job_id: str | None
    cancelled: list[int]


@with_config(OPEN)
class _Submission(TypedDict):
    created: str
    profile: dict[str, Any]
    code: str
    jobs: list[_Job]


@with_config(OPEN)
class _FloorsOfOne(TypedDict):
    metrics: dict[str, float]


@with_config(OPEN)
class _Floors(TypedDict):
    floors: dict[str, _FloorsOfOne]


@with_config(OPEN)
class _Extractor(TypedDict):
    id: str
    heldout_accuracy: float | None


@with_config(OPEN)
class _Quality(TypedDict):
    psnr_db: float
    codes_used: int
    vocab_size: int


@with_config(OPEN)
class _Outputs(TypedDict):
    outputs: list[int]


@with_config(OPEN)
class _Weights(TypedDict):
    tokenizer_sha256: str


@with_config(OPEN)
class _Source(TypedDict):
    sha256: str


@with_config(OPEN)
class _Execution(TypedDict):
    train: list[dict[str, Any]]


@with_config(OPEN)
class _Start(TypedDict):
    checkpoint: str
    sha256: str
    loaded_layers: list[int]
    new_layers: list[int]
    new_parameters: list[str]


@with_config(OPEN)
class _Git(TypedDict):
    commit: NotRequired[str | None]
    dirty: NotRequired[bool | None]


@with_config(OPEN)
class _Environment(TypedDict):
    git: NotRequired[_Git]
    versions: NotRequired[dict[str, str]]


@with_config(OPEN)
class _Timing(TypedDict):
    sample_s: float
    execution: NotRequired[dict[str, Any]]


AGAIN = "the command that made it writes it again"
MEND = "`mvar repair --yes` makes it anew"
UNVERSIONED = (layout.TIMING, layout.ENV)  # documents that say no version
# File name (or folder, of manifests) -> its shape, and what to do about a damaged one.
SHAPES: dict[str, tuple[Any, str]] = {
    layout.STATUS: (_Status, f"its state is taken from what is there; {AGAIN}, or `mvar repair --yes`"),
    layout.EVAL: (_Evaluations, "`mvar repair --yes` or the command that made it measures the run's images again"),
    layout.SWEEPS: (_Manifest, AGAIN),
    layout.SUBMISSION: (_Submission, "`mvar repair --yes` sets it aside once its jobs have left the queue"),
    layout.FLOORS: (_Floors, MEND),
    layout.EXTRACTOR: (_Extractor, MEND),
    layout.QUALITY: (_Quality, MEND),
    layout.CLASS_OUTPUTS: (_Outputs, MEND),
    layout.TOKENIZER_USED: (_Weights, "without it the run is held to the tokenizer that is there now"),
    layout.EXECUTION: (_Execution, "how the run was made is not known; `mvar repair --yes` deletes it"),
    layout.SOURCE: (_Source, f"delete its folder, and {AGAIN}"),
    layout.START: (_Start, "what the run started from is not known; `mvar repair --yes` deletes it"),
    layout.ENV: (_Environment, "where the run was made is not known; `mvar repair --yes` deletes it"),
    layout.TIMING: (_Timing, "how long drawing took is not known; `mvar repair --yes` deletes it"),
}


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(SHAPES[name][0])


@cache
def _record_adapter() -> TypeAdapter[Any]:
    return TypeAdapter(_Evaluation)


def _shape_of(path: Path) -> str | None:
    name = layout.SWEEPS if path.parent.name == layout.SWEEPS else path.name
    return name if name in SHAPES else None


def remedy(path: Path) -> str:
    """What to do about a document that is damaged."""
    name = _shape_of(path)
    return SHAPES[name][1] if name else AGAIN


def read_document(path: Path) -> dict[str, Any]:
    """Read a JSON document of the store.

    Raises:
        Damaged: not JSON, another `schema_version`, or another shape than files of this name have; names the file.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        document = read_json(path)
    except UserError as error:
        raise Damaged(f"{error}; {remedy(path)}") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION and not (path.name in UNVERSIONED and isinstance(document, dict)):
        told = f"{path}: schema_version is {version!r}; allowed: {SCHEMA_VERSION}"
        raise Foreign(told) if type(version) is int else Damaged(f"{told}; {remedy(path)}")
    if name := _shape_of(path):
        try:
            _adapter(name).validate_python(document, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = one_line(".".join(map(str, first["loc"])))
            told = f"{path}: not as this version writes it ({where}: {first['msg']}); {remedy(path)}"
            raise Damaged(told) from None
    return document


def is_evaluation(record: object) -> bool:
    """Whether a record of `eval.json` has the shape of one."""
    try:
        _record_adapter().validate_python(record)
    except ValidationError:
        return False
    return True


def read_or_empty(path: Path) -> dict[str, Any]:
    """Read a document of the store; one that is not there is empty."""
    try:
        return read_document(path)
    except FileNotFoundError:
        return {}


def read_or_warn(path: Path, foreign_too: bool = False) -> dict[str, Any]:
    """Read a document of the store; one that is not there, or damaged, is empty. A damaged one is said once.

    Raises:
        Foreign: one of another version, unless `foreign_too`: for who reads and will not replace it.
    """
    try:
        return read_or_empty(path)
    except Damaged as damaged:
        if isinstance(damaged, Foreign) and not foreign_too:
            raise
        warn_once(str(damaged))
        return {}


def write_document(path: Path, values: Mapping[str, Any], mode: int = 0o666) -> None:
    """Write a JSON document of the store, atomically, with the `schema_version` that readers check."""
    write_json(path, {"schema_version": SCHEMA_VERSION, **values}, mode)
