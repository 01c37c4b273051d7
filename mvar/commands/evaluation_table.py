"""What `mvar evaluate` prints: the metrics of one evaluation, and where they are kept."""

from contextlib import suppress

from rich.console import Console
from rich.table import Table

from mvar import layout
from mvar.checkpoints.warm_start import Start
from mvar.config import RunConfig
from mvar.errors import say
from mvar.escaping import rich_text
from mvar.runs.documents import read_document
from mvar.runs.store import RunDirectory


def print_evaluation(run: RunDirectory, config: RunConfig) -> None:
    """Settings and metrics of a finished evaluation; of weights that came from a checkpoint also what was taken."""
    record = run.evaluations()[config.evaluation_id]
    settings = ", ".join(f"{name} {value}" for name, value in record["sample"].items())
    say(f"{record['evaluation']['num_images']} images: {settings}")
    table = Table("metric")
    table.add_column("value", justify="right")
    for name, value in sorted(record["metrics"].items()):
        table.add_row(rich_text(name), f"{value:.4g}" if isinstance(value, float) else rich_text(value))
    Console().print(table)
    with suppress(FileNotFoundError):
        say(f"starts {Start.from_json(read_document(run.path / layout.START))}")
    say(f"evaluation {config.evaluation_id} of {run.path}")
