"""What the report opens with: its name and date, the main table in short, samples of its rows, and the verdicts."""

import re
from collections.abc import Sequence
from contextlib import suppress

import pandas as pd

from mvar import layout
from mvar.analysis.document import Block, Section, Text
from mvar.analysis.manifests import Manifest
from mvar.analysis.records import Records
from mvar.analysis.render import Table
from mvar.analysis.style import Figure
from mvar.analysis.summary import Tables
from mvar.errors import UserError
from mvar.escaping import markdown
from mvar.files import read_json
from mvar.runs.columns import Column

DAY = re.compile(r"^\d{4}-\d\d-\d\d")
LIFTED = "Their samples are above, on the first screen of this report."
NAME = "Ablations of sequence mixers"
KEYS = ("fid", "paper_fid", "nll")  # as many columns as leave the samples a place on the first screen
SEEDS = "n"
VERDICT = Column("fid_verdict", "FID beside the baseline's", is_text=True)


def title(used: pd.DataFrame) -> str:
    """The report's name: over which data its runs are."""
    data = sorted(used["data"].unique()) if len(used) else []
    return f"{NAME} on {', '.join(data)}" if data else NAME


def date_line(records: Records, used: pd.DataFrame) -> list[Block]:
    """The day of the last change to a run that the tables use; a report itself has no date: the same runs are the same
    report."""
    days: set[str] = set()
    for run_id in sorted(set(used["run_id"])) if len(used) else ():
        with suppress(UserError, OSError, AttributeError):  # damaged: `records` has told it already
            updated = read_json(records.store.run(run_id).path / layout.STATUS).get("updated")
            days |= set(DAY.findall(str(updated)))
    found = sorted(days)
    if not found:
        return []
    return [Text(f"Runs of {found[0]}." if len(found) == 1 else f"Runs of {found[0]} to {found[-1]}.")]


def overview(tables: Tables) -> tuple[Manifest, Table, Table] | None:
    """The first table that compares a pair and that runs stand behind, in a few columns; and its verdicts."""
    measured = (one for one in tables if one[0].experiment.pair and any("n" in row for row in one[1].rows))
    found = next(measured, None)
    if found is None:
        return None
    manifest, table, differences = found
    told = {row["label"]: row.get("fid_verdict") for row in differences.rows} if differences else {}
    baseline = next((row["baseline"] for row in differences.rows), None) if differences else None
    rows = [row | {"fid_verdict": told.get(row["label"])} for row in table.rows]
    for row in rows:
        if row["label"] == baseline:
            row["fid_verdict"] = "the baseline"
    columns = [table.columns[0], *(column for column in table.columns if column.key in KEYS)]
    judged = [table.columns[0], VERDICT, *(column for column in table.columns if column.key == SEEDS)]
    short = Table("overview", f"In short: {table.title}", columns, rows, caption=table.caption)
    return manifest, short, Table("overview-verdicts", f"Verdicts: {table.title}", judged, rows)


def picture(sections: Sequence[Section], manifest: Manifest) -> Figure | None:
    """Samples of a request's rows; else the first figure that belongs to it."""
    figures = [block for section in sections for block in section.blocks if isinstance(block, Figure)]
    of_it = [figure for figure in figures if manifest.name in figure.name or figure.name.endswith(manifest.tag)]
    samples = [figure for figure in figures if figure.name == f"samples-{manifest.name}"]
    return next(iter([*samples, *of_it]), None)


def lift(figure: Figure, sections: Sequence[Section]) -> None:
    """Leave a sentence where a figure stood that the report opens with: it is shown once."""
    for section in sections:
        section.blocks = [Text(LIFTED) if block is figure else block for block in section.blocks]


def opening(records: Records, tables: Tables, used: pd.DataFrame, sections: Sequence[Section]) -> list[Block]:
    """The blocks above "What was run"; the figure among them is taken out of its section."""
    blocks: list[Block] = date_line(records, used)
    found = overview(tables)
    if found is None:
        return blocks
    manifest, table, verdicts = found
    figure = picture(sections, manifest)
    if figure:
        lift(figure, sections)
    about = Text(f"{markdown(manifest.artefact)}, {markdown(manifest.title)}, in short:")
    return [*blocks, about, table, *([figure] if figure else []), verdicts]
