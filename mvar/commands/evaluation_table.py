"""What `mvar evaluate` prints: the metrics of one evaluation, or of several beside each other, and where they are."""

import json
from collections.abc import Sequence
from contextlib import suppress

import pandas as pd
from rich.console import Console
from rich.table import Table

from mvar import layout
from mvar.analysis.versions import COLUMN as VERSIONS
from mvar.analysis.versions import newest, only, rows_of
from mvar.checkpoints.warm_start import Start
from mvar.commands.console import WIDTH, wide_console
from mvar.commands.narrow import print_in_parts, shortened_ids
from mvar.config import RunConfig
from mvar.errors import say
from mvar.escaping import rich_text
from mvar.registries import METRICS
from mvar.runs.documents import read_document
from mvar.runs.measured import versions
from mvar.runs.store import RunDirectory


def print_evaluation(run: RunDirectory, config: RunConfig) -> None:
    """Settings and metrics of a finished evaluation; of weights that came from a checkpoint also what was taken."""
    record = run.evaluations()[config.evaluation_id]
    settings = ", ".join(f"{name} {value}" for name, value in record["sample"].items())
    say(f"{record['evaluation']['num_images']} images: {settings}")
    table = Table("metric")
    table.add_column("value", justify="right")
    told = {key: f"{key}, version {version}" for key, version in versions(record).items()}
    for name, value in sorted(record["metrics"].items()):
        table.add_row(rich_text(told.get(name, name)), f"{value:.4g}" if isinstance(value, float) else rich_text(value))
    Console().print(table)
    with suppress(FileNotFoundError):
        say(f"starts {Start.from_json(read_document(run.path / layout.START))}")
    say(f"evaluation {config.evaluation_id} of {run.path}")


def print_evaluations(rows: Sequence[tuple[str, RunDirectory, RunConfig]]) -> None:
    """The first key of each metric, a row an evaluation; what is not there, or of another version, is a dash.

    Args:
        rows: a label, the run, and the config of the evaluation.
    """
    records = [run.evaluations().get(config.evaluation_id, {}) for _, run, config in rows]
    whole = pd.DataFrame([{**r.get("metrics", {}), VERSIONS: json.dumps(versions(r)) if r else None} for r in records])
    found = rows_of(only(whole, newest(whole)))
    kinds = [METRICS.find(name) for name in METRICS.names()]
    keys = [kind.keys[0] for kind in kinds if any(kind.keys[0] in metrics for metrics in found)]
    console, ids = wide_console(400), [run.name for _, run, _ in rows]
    columns = [
        ("row", [label for label, _, _ in rows]),
        ("run", ids if console.width >= WIDTH else shortened_ids(ids)),
        ("evaluation", [config.evaluation_id for _, _, config in rows]),
        *(
            (key.removeprefix("eval/"), [f"{metrics[key]:.4g}" if key in metrics else "-" for metrics in found])
            for key in keys
        ),
    ]
    print_in_parts(columns, console)
    say("all metrics: eval.json of each run; the table with its differences: `mvar report`")
