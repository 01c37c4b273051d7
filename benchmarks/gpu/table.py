"""What was found, for people: the aims, then a table a part, in the terminal and as Markdown."""

from typing import Any

from rich.console import Console
from rich.table import Table

MFU_AIM = 0.5
Row = dict[str, Any]
TITLES = {
    "parity": "Parity with fp64 on the CPU: largest error, of the largest value",
    "replay": "Replays of graphs",
    "agreement": "Tokens in half precision against fp32: as many differ as the logits say",
    "sampling": "Sampling",
    "training": "Training step, and its memory against the plan",
    "processes": "Two processes, and a step whose weights they share",
}


def aims(parts: dict[str, list[Row]]) -> list[Row]:
    """What is aimed at beside what was measured; None: it was not."""
    found = []
    for row in parts.get("sampling", []):
        if row.get("aim"):
            what = f"{row['model']}, batch {row['batch']}: times as fast as the official code"
            found.append({"aim": what, "wanted": row["aim"], "measured": row["times_the_official"]})
    for row in parts.get("training", []):
        if "mfu" in row:
            what = f"{row['model']}{', compiled' * row.get('compiled', False)}: MFU of a training step"
            found.append({"aim": what, "wanted": MFU_AIM, "measured": row["mfu"]})
    return found


def as_text(value: Any) -> str:
    """A cell; a dash where there is nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def columns(rows: list[Row]) -> list[str]:
    """Of a table: every key, in the order in which they come; what was said stands below it."""
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key != "said"]


def notes(rows: list[Row]) -> list[str]:
    """What was said of rows, each once, with the names in these rows."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if "said" in row:
            found.setdefault(row["said"], []).append(" ".join(v for k, v in row.items() if k in ("mixer", "model")))
    return [": ".join(filter(None, (", ".join(dict.fromkeys(names)), said))) for said, names in found.items()]


def tables(result: dict[str, Any]) -> list[tuple[str, list[Row]]]:
    """Title and rows of each."""
    found = [("Aims", aims(result["parts"]))]
    return [*found, *((TITLES[name], rows) for name, rows in result["parts"].items())]


def show(result: dict[str, Any]) -> None:
    """In the terminal."""
    console = Console(width=160)
    console.print(heading(result), markup=False)
    for title, rows in tables(result):
        table = Table(title=title)
        for name in columns(rows):
            table.add_column(name.replace("_", " "))
        for row in rows:
            table.add_row(*(as_text(row.get(name)) for name in columns(rows)))
        console.print(table)
        for note in notes(rows):
            console.print(note, markup=False)


def heading(result: dict[str, Any]) -> str:
    """The machine, and that a rehearsal is one."""
    machine = result["machine"]
    words = f"{machine['gpu']} ({machine['cpu']}), torch {machine['torch']}"
    return f"{words}: a rehearsal at a tiny size, whose times mean nothing" if result["settings"]["tiny"] else words


def as_markdown(result: dict[str, Any]) -> str:
    """The same as a page."""
    lines = [f"# {heading(result)}", ""]
    for title, rows in tables(result):
        names = columns(rows)
        lines += [f"## {title}", "", "| " + " | ".join(name.replace("_", " ") for name in names) + " |"]
        lines.append("|" + "---|" * len(names))
        lines += ["| " + " | ".join(as_text(row.get(name)).replace("|", "/") for name in names) + " |" for row in rows]
        lines += ["", *(f"- {note}" for note in notes(rows))] + [""] * bool(notes(rows))
    return "\n".join(lines)
