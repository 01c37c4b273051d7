"""How to read a table, said from its numbers: whether a trend or an order agrees with the paper's, and how surely."""

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

from analysis.compare import Measured, resolved
from mvar.escaping import markdown

Row = dict[str, Any]  # of `tables`: label, fid, nll, copy_rate (`Measured` or absent), paper_fid


def trend_reading(rows: Sequence[Row]) -> list[str]:
    """Sentences on a metric along an axis (Figure 5): from first to last row, and step by step."""
    measured = [row for row in rows if isinstance(row.get("fid"), Measured)]
    printed = [row for row in rows if row.get("paper_fid") is not None]
    if len(measured) < 2:
        return ["Fewer than two points are measured: there is no trend to state."]
    first, last = measured[0], measured[-1]
    lines = [_change("FID", first, last, "fid")]
    if len(printed) >= 2:
        start, end = printed[0]["paper_fid"], printed[-1]["paper_fid"]
        ours, theirs = _direction(first["fid"].mean, last["fid"].mean), _direction(start, end)
        ends = first is rows[0] and last is rows[-1]
        verdict = "the direction agrees" if ours == theirs else "the direction does not agree"
        told = verdict if ends else "an end point is not measured here, so the two are not compared"
        lines.append(f"In the paper it {theirs} from {start:.2f} to {end:.2f}: {told}.")
    steps = list(pairwise(row["fid"].mean for row in measured))
    falls = sum(b < a for a, b in steps)
    lines.append(f"FID falls at {falls} of {len(steps)} steps; the paper calls the improvement consistent.")
    if all(isinstance(row.get("nll"), Measured) for row in (first, last)):
        lines.append(_change("Held-out NLL", first, last, "nll"))
        lines += _opposition(first, last)
    if all(isinstance(row.get("copy_rate"), Measured) for row in (first, last)):
        a, b = (row["copy_rate"].text(1, 100) for row in (first, last))
        lines.append(f"Near-copies of training images: {a} % at {_name(first)}, {b} % at {_name(last)}.")
    return lines


def _opposition(first: Row, last: Row) -> list[str]:
    """What FID and likelihood say together, where both changes are more than chance or nothing is known of chance."""
    (fid, nll), (last_fid, last_nll) = ((row["fid"], row["nll"]) for row in (first, last))
    if False in (resolved(fid, last_fid), resolved(nll, last_nll)):
        return []
    if _direction(fid.mean, last_fid.mean) == "falls" and _direction(nll.mean, last_nll.mean) == "rises":
        return [
            "Samples come closer to the reference in features while unseen images become less likely, which is what "
            "fitting the training images more closely looks like: see the near-copies."
        ]
    return []


def _direction(a: float, b: float) -> str:
    return "falls" if b < a else "rises" if b > a else "stays the same"


def _change(name: str, first: Row, last: Row, key: str) -> str:
    a, b = first[key], last[key]
    told = f"{name} {_direction(a.mean, b.mean)} from {a.text(2)} ({_name(first)}) to {b.text(2)} ({_name(last)})"
    sure = resolved(a, b)
    if sure is None:
        return f"{told}; with one seed it is not known whether more than chance."
    return f"{told}, {'more' if sure else 'not more'} than the seeds' standard deviations explain."


def order_reading(rows: Sequence[Row]) -> list[str]:
    """Sentences on an order (Tables 5 and 6): each pair of rows, as measured and as printed."""
    both = [row for row in rows if isinstance(row.get("fid"), Measured) and row.get("paper_fid") is not None]
    if len(both) < 2:
        return ["Fewer than two rows are measured: there is no order to state."]
    ours = sorted(both, key=lambda row: row["fid"].mean)
    theirs = sorted(both, key=lambda row: row["paper_fid"])
    lines = [f"FID, lowest first: here {_names(ours)}; in the paper {_names(theirs)}.", _pairs(theirs)]
    if all(isinstance(row.get("nll"), Measured) for row in both):
        by_nll = sorted(both, key=lambda row: row["nll"].mean)
        lines.append(f"Held-out NLL, lowest first: {_names(by_nll)}.")
        if by_nll != ours:
            lines.append(
                "That is not FID's order: a low FID alone does not say which model predicts new images better."
            )
    return lines


def _pairs(in_paper_order: Sequence[Row]) -> str:
    """How many pairs are ordered as in the paper, which are not, and which differ too little to say."""
    agree, against, unresolved = [], [], []
    for first, second in combinations(in_paper_order, 2):
        pair = f"{_name(first)} / {_name(second)}"
        if resolved(first["fid"], second["fid"]) is False:
            unresolved.append(pair)
        else:
            (agree if first["fid"].mean < second["fid"].mean else against).append(pair)
    told = f"Of {len(agree) + len(against) + len(unresolved)} pairs, {len(agree)} are ordered as in the paper"
    told += f", {len(against)} the other way ({'; '.join(against)})" if against else ", none the other way"
    if unresolved:
        told += f", and {len(unresolved)} differ by less than the seeds' standard deviations ({'; '.join(unresolved)})"
    if against:
        verdict = "the order does not agree with the paper's"
    else:
        verdict = "the order is not resolved" if unresolved else "the order agrees with the paper's"
    chance = (
        " With one seed a pair may be ordered by chance." if any(r["fid"].sd is None for r in in_paper_order) else ""
    )
    return f"{told}: {verdict}.{chance}"


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(map(_name, rows))


def _name(row: Row) -> str:
    return markdown(row["label"])
