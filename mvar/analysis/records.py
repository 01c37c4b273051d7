"""Run directories as one tidy table: what was measured, what was asked for, and what is wrong with either.

Reading is tolerant: a missing run, half a run, a corrupt line, a NaN or another schema version becomes one line of
`problems`, and the rest goes on. The store (`mvar.runs.store`) is the only reader of the schema.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mvar import layout
from mvar.analysis.cache import ReadCache
from mvar.analysis.compare import DUPLICATES, FIRST_READING
from mvar.analysis.frame import any_text, frame
from mvar.analysis.manifests import AskedCell, Manifest, Missing, missing_of, read_manifests
from mvar.config import EvaluationConfig, RunConfig, SampleConfig, from_dict, identity
from mvar.data.sources.contract import find
from mvar.errors import UserError
from mvar.files import digest
from mvar.registries import SOURCES
from mvar.runs.documents import Damaged, read_document, read_or_empty
from mvar.runs.measured import versions
from mvar.runs.repair import damaged_origins
from mvar.runs.states import DONE
from mvar.runs.store import RunDirectory, Store
from mvar.training.metrics_log import missing_rows

MAKE_RUNS = "`mvar run mixers` trains some (`make demo` runs every sweep)"
NO_RUN = "holds no readable run"
READ = (layout.CONFIG, layout.STATUS, layout.EVAL)  # of a run directory
TIMINGS = f"{layout.SAMPLES}/*/{layout.TIMING}"
FILE = "reference.file"  # a column: the name of a file of reference, which is no setting
MAX_POINTS = 500  # of a training curve that is kept: more cannot be seen in a figure


EMPTY = ("run_id", "evaluation_id", "state", "seed", "sample_seed", "settings", "pattern", "data", "num_images")


@dataclass
class Records:
    """All that a results directory holds.

    `table` has one row a run and evaluation (one without evaluation columns for a run that has none yet): run_id,
    evaluation_id, state, the config's main columns, `settings` (canonical JSON of what must agree for a comparison),
    and every metric, cost and timing under its own key. `configs` are the runs' configs by run id.
    """

    store: Store
    table: pd.DataFrame
    configs: dict[str, RunConfig]
    manifests: list[Manifest]
    missing: list[Missing] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cache: ReadCache = field(default_factory=ReadCache)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # of data sets that were listed, by data id

    @property
    def done(self) -> pd.DataFrame:
        """The finished evaluations of all runs."""
        table = self.table
        return table.loc[(table["state"] == DONE) & table["evaluation_id"].notna()]

    def rows(self, cell: AskedCell) -> pd.DataFrame:
        """The finished evaluations of a cell: one row a training seed and sampling seed."""
        table = self.table
        wanted = table["run_id"].isin(cell.run_ids) & table["evaluation_id"].isin(cell.evaluation_ids)
        return table.loc[wanted & (table["state"] == DONE)]

    def sweeps(self, name: str) -> list[Manifest]:
        """The manifests of one sweep, e.g. `layers`: one a preset and mode."""
        return [manifest for manifest in self.manifests if manifest.sweep == name]


@any_text
def load_records(root: Path | str, cache: ReadCache | None = None, allow_empty: bool = False) -> Records:
    """Read a results directory.

    Args:
        root: the results directory.
        cache: of an earlier reading: runs that have not changed since are not read again.
        allow_empty: where there is no run at all, return an empty table and say so among the problems.

    Raises:
        UserError: it holds no run at all; says which command makes some.
    """
    store, cache = Store(root), cache or ReadCache()
    problems: list[str] = []
    rows: list[dict[str, Any]] = []
    configs: dict[str, RunConfig] = {}
    schema = digest(RunConfig.model_json_schema())  # what another version of the code has kept is read anew
    for path in sorted(path for path in (store.root / layout.RUNS).glob("*") if path.is_dir()):
        files = [*(path / name for name in READ), *sorted(path.glob(TIMINGS))]
        read = cache.value(f"run {path.name} {schema}", files, lambda path=path: _read_run(store.run(path.name)))
        problems += read["problems"]
        if read["config"] is not None:
            configs[path.name] = from_dict(RunConfig, read["config"], lenient=True)
            rows += read["rows"]
    for path in sorted(store.root.glob(f"{layout.STAGES}/*/{layout.STATUS}")):
        _attempt(problems, f"{layout.STAGES}/{path.parent.name}", lambda path=path: read_document(path))
    problems += map(str, damaged_origins(store))
    if not rows:
        told = "; ".join(["", *problems])
        error = f"results: {store.root} {NO_RUN}{told}; {MAKE_RUNS}"
        if not allow_empty:
            raise UserError(error)
        problems.append(error)
    table = _with_defaults(frame(rows, columns=None if rows else EMPTY))
    renamed = _renamed(configs)
    manifests = read_manifests(
        store,
        lambda where, read: _attempt(problems, where, read),
        lambda run_id, key: _directory(run_id, key, renamed),
    )
    return Records(store, table, configs, manifests, missing_of(manifests, table), problems, cache)


def _read_run(run: RunDirectory) -> dict[str, Any]:
    """Config, rows and problems of one run as JSON values."""
    problems: list[str] = []
    config = _attempt(problems, f"{layout.RUNS}/{run.name}", lambda: run.config(to_compute=False))
    for path in sorted(run.path.glob(TIMINGS)):
        _attempt(problems, f"{layout.RUNS}/{run.name}", lambda path=path: read_document(path))
    rows = [] if config is None else _run_rows(run, config, problems)
    return {"config": config and config.model_dump(mode="json"), "rows": rows, "problems": problems}


def _attempt(problems: list[str], where: str, read: Callable[[], Any], default: Any = None) -> Any:
    """What `read` returns, or `default` and a line in `problems` where the file is not what it should be."""
    try:
        return read()
    except UserError as error:
        problems.append(f"{where}: {error}")
    except (
        OSError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        ArithmeticError,
        RecursionError,
    ) as error:  # valid JSON of another shape
        problems.append(f"{where}: not as this version writes it ({type(error).__name__}: {error})")
    return default


def _run_rows(run: RunDirectory, config: RunConfig, problems: list[str]) -> list[dict[str, Any]]:
    where = f"{layout.RUNS}/{run.name}"
    status = _status(run, where, problems)
    state = status.get("state", "unknown")
    if state != DONE:
        reason = f" ({status['reason']})" if status.get("reason") else ""
        progress = f" in {status['stage']}, step {status.get('step', 0)} of {status.get('steps', 0)}" if status else ""
        problems.append(f"{where}: {state}{progress}{reason}; the command that made it goes on from there")
    common = _config_columns(run, config) | {"state": state, "stage": status.get("stage")}
    evaluations = _attempt(problems, where, lambda: read_or_empty(run.path / layout.EVAL).get("evaluations", {}), {})
    rows = []
    for evaluation_id, record in evaluations.items():
        here = f"{where}/{layout.EVAL}: evaluation {evaluation_id}"
        columns = _attempt(problems, here, lambda record=record, here=here: _evaluation_columns(record, here, problems))
        if columns is not None:
            counted = {FIRST_READING: True} if columns.get(DUPLICATES) and _is_first_reading(config) else {}
            rows.append(common | {"evaluation_id": evaluation_id} | columns | counted)
    return rows or [common | {"evaluation_id": None}]


def _is_first_reading(config: RunConfig) -> bool:
    """Whether pictures are read as by the first version; not known of a source that is not loaded."""
    return config.data.name in SOURCES and find(config.data.name).reading(config.data) == 1


def _status(run: RunDirectory, where: str, problems: list[str]) -> dict[str, Any]:
    """The run's status; of a damaged one, which is a problem, what the other files tell."""
    try:
        return read_document(run.path / layout.STATUS)
    except FileNotFoundError:
        return {}
    except Damaged as damaged:
        problems.append(f"{where}: {damaged}")
        return run.derived_status()


def _config_columns(run: RunDirectory, config: RunConfig) -> dict[str, Any]:
    model, train = config.model, config.train
    return {
        "run_id": run.name,
        "data": config.data.name,
        "seed": config.seed,
        "pattern": model.pattern,
        "depth": model.depth,
        "width": model.width,
        "num_heads": model.num_heads,
        "steps": train.steps,
        "batch_size": train.batch_size,
        "tokenizer_id": config.tokenizer_id,
    }


def _evaluation_columns(record: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    # only what sets an evaluation apart: a field that is newer than the record, at its default, does not
    sample = identity.hashed(SampleConfig, record["sample"])
    evaluation = identity.hashed(EvaluationConfig, record["evaluation"])
    reference = dict(record["reference"])
    # a file of reference is known by its digest, wherever it lies and whatever it is called
    named = {FILE: reference.pop("file", None)} if reference.get("sha256") else {}
    if named:
        evaluation.pop("reference", None)
    columns: dict[str, Any] = {
        "sample_seed": sample.pop("seed", None),  # a replicate, not a setting
        "acceptance_rate": 1 / record["sample"].get("candidates", 1),
        "settings": json.dumps(
            {
                "extractor_id": record["extractor_id"],
                **{f"evaluation.{key}": value for key, value in evaluation.items()},
                **{f"sample.{key}": value for key, value in sample.items()},
                **{f"reference.{key}": value for key, value in reference.items()},
            },
            sort_keys=True,
        ),
        **named,
        **{f"sample.{key}": value for key, value in sample.items() if isinstance(value, int | float | str)},
        "execution": _execution(record.get("execution", {})),
        "extractor_id": record["extractor_id"],
        "num_images": record["evaluation"]["num_images"],
    }
    if told := versions(record):
        columns["versions"] = json.dumps(told, sort_keys=True)
    for section in ("metrics", "cost", "timing"):
        for key, value in record[section].items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                columns[key] = value
            else:
                problems.append(f"{where}: {key} is {value!r}, not a number; its cells are dashes")
    return columns


def shared_settings(rows: pd.DataFrame) -> dict[str, Any]:
    """The settings of rows that compare, and by what names they have their file of reference."""
    settings = json.loads(str(rows["settings"].iloc[0]))
    names = rows[FILE].dropna().unique() if FILE in rows else ()
    return settings | ({FILE: ", ".join(sorted(map(str, names)))} if len(names) else {})


def _with_defaults(table: pd.DataFrame) -> pd.DataFrame:
    """The table with settings of the sampling that some evaluations say for all: a later field at its default is not
    stored, and is no empty cell (EMA 0 beside EMA 1000)."""
    for name in SampleConfig.model_fields:
        column = f"sample.{name}"
        if column in table and isinstance(default := identity.pinned(SampleConfig, name), int | float | str):
            evaluated = table["evaluation_id"].notna()
            table[column] = table[column].where(table[column].notna() | ~evaluated, default)
    return table


def _execution(record: Mapping[str, Any]) -> str:
    """How a row was made, for people: it is no setting, rows that differ in it compare. Empty for older rows."""

    def told(way: Mapping[str, Any]) -> str:
        tf32 = ", TF32" if way.get("tf32") else ""
        processes = f"{way.get('processes')} process{'es' if way.get('processes') != 1 else ''}"
        return f"{way.get('device')}, {processes}, attention {way.get('attention')}, scan {way.get('scan')}{tf32}"

    parts = [f"trained on {told(way)}" for way in record.get("train", [])]
    if drawn := record.get("sample"):
        parts.append(f"drawn on {told(drawn)}")
    return "; ".join(parts)


def _renamed(configs: Mapping[str, RunConfig]) -> dict[str, str]:
    """Run id or key -> directory: the one that is called after the id, else any that holds the run."""
    found: dict[str, str] = {}
    for name, config in configs.items():
        if config.run_id == name:
            found[name] = name
    for name, config in configs.items():
        found.setdefault(config.run_id, name)
        found.setdefault(config.key, name)
    return found


def _directory(run_id: str, key: str | None, renamed: Mapping[str, str]) -> str:
    """The directory of a run that was asked for, whatever it is called; its id where there is none."""
    return renamed.get(run_id) or renamed.get(key or "") or run_id


def training_curve(run: RunDirectory, key: str, problems: list[str], cache: ReadCache | None = None) -> pd.DataFrame:
    """A logged quantity over training: columns `step` and `value`; lines that cannot be read become problems.

    At most `MAX_POINTS` of it, evenly spread.
    """
    cache = cache or ReadCache()
    found = cache.value(f"curve {run.name} {key}", [run.metrics], lambda: _read_curve(run, key))
    problems += found["problems"]
    return pd.DataFrame(found["points"], columns=["step", "value"])


def _read_curve(run: RunDirectory, key: str) -> dict[str, Any]:
    points, problems = [], []
    try:
        lines = run.metrics.read_text(errors="replace").splitlines()
    except OSError:
        problems.append(f"{layout.RUNS}/{run.name}: {layout.METRICS} is missing; no training curve")
        lines = []
    if missing := missing_rows(run.path):
        problems.append(f"{layout.RUNS}/{run.name}: {missing}")
    for number, line in enumerate(lines, start=1):
        where = f"{layout.RUNS}/{run.name}/{layout.METRICS} line {number}"
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise TypeError
            if key in values and math.isfinite(values[key]):
                points.append((int(values["step"]), float(values[key])))
            elif key in values:
                problems.append(f"{where}: {key} is {values[key]}; skipped")
        except (ValueError, RecursionError):
            problems.append(f"{where}: not valid JSON; skipped")
        except (KeyError, TypeError, OverflowError):
            problems.append(f"{where}: not a logged step; skipped")
    return {"points": points[:: -(-len(points) // MAX_POINTS) or 1], "problems": problems}
