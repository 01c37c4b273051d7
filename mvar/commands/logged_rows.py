"""The rows of a training's metrics.jsonl as a table for people: the columns that fit, what tells most first."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mvar.escaping import rich_text

FIRST = {  # the first that are kept, with what they are called here
    "step": "step",
    "train/loss": "loss",
    "heldout/nll_bits_per_token": "held-out bits/token",
    "train/lr": "learning rate",
    "train/step_ms": "ms/step",
    "train/accuracy": "accuracy",
    "train/grad_norm": "gradient norm",
}
BY_SCALE = re.compile(r"_scale_\d+$")
GAP = 4  # characters between two columns


def show_rows(lines: Sequence[str], console: Console) -> str:
    """Print rows of a metrics.jsonl; lines that are none (of a file that was cut or damaged) as they are.

    Args:
        lines: of the file.
        console: where to; its width is what there is room for.

    Returns:
        What stands in the rows and not in the table, in words; empty where nothing is left out.
    """
    rows: list[Mapping[str, Any]] = []
    for line in lines:
        row = _read(line)
        if row is None:
            console.print(rich_text(line), soft_wrap=True)
        else:
            rows.append(row)
    if not rows:
        return ""
    there = dict.fromkeys(key for row in rows for key in row)
    keys = [*[key for key in FIRST if key in there], *[k for k in there if k not in FIRST and not BY_SCALE.search(k)]]
    columns, widths, room = {}, [], console.width
    for key in keys:
        heading = FIRST.get(key) or key.removeprefix("train/").replace("_", " ").replace("/", " ")
        cells = [_cell(row.get(key)) for row in rows]
        needed = max(*(len(word) for word in heading.split()), *map(len, cells))
        if needed + GAP <= room:
            columns[heading] = cells
            widths.append(needed)
            room -= needed + GAP
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for heading, wide in zip(columns, widths, strict=True):
        table.add_column(rich_text(heading), justify="right", vertical="bottom", min_width=wide, max_width=wide)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(rich_text, cells))
    console.print(table)
    hidden = len(keys) - len(columns)
    left = [f"{hidden} columns" if hidden > 1 else "a column"] if hidden else []
    return " and ".join([*left, *(["values by scale"] if any(map(BY_SCALE.search, there)) else [])])


def _read(line: str) -> Mapping[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
