"""How to read a table, said from its numbers: whether a trend or an order agrees with the paper's, as verdicts."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

from mvar.analysis.compare import Measured
from mvar.analysis.verdicts import BETTER, INCONCLUSIVE, WORSE, Verdict, judge, left_out, p_text
from mvar.escaping import markdown

Row = dict[str, Any]  # of `tables`: label, fid, nll, copy_rate (`Measured` or absent), paper_fid


def trend_reading(rows: Sequence[Row]) -> list[str]:
    """Sentences on a metric along an axis (Figure 5): from first to last row, and step by step."""
    measured = [row for row in rows if isinstance(row.get("fid"), Measured)]
    printed = [row for row in rows if row.get("paper_fid") is not None]
    if len(measured) < 2:
        return ["Fewer than two points are measured: there is no trend to state."]
    first, last = measured[0], measured[-1]
    verdicts = _trend_verdicts(measured)
    whole = verdicts["fid"]
    lines = [_change("FID", first, last, "fid", whole)]
    if len(printed) >= 2:
        start, end = printed[0]["paper_fid"], printed[-1]["paper_fid"]
        lines.append(f"In the paper it {_direction(start, end)} from {start:.2f} to {end:.2f}: {_agrees(rows, whole)}.")
    steps = [verdict for name, verdict in verdicts.items() if isinstance(name, int)]
    if steps:
        counts = Counter(verdict.word for verdict in steps)
        lines.append(
            f"Step by step ({len(steps)}; Holm's correction over the {len(verdicts)} comparisons here): "
            f"{counts[BETTER]} better, {counts[WORSE]} worse, {counts[INCONCLUSIVE]} inconclusive; the paper calls the "
            "improvement consistent."
        )
    if all(isinstance(row.get("nll"), Measured) for row in (first, last)):
        likelihood = verdicts["nll"]
        lines.append(_change("Held-out NLL", first, last, "nll", likelihood))
        lines += _opposition(whole, likelihood)
    if all(isinstance(row.get("copy_rate"), Measured) for row in (first, last)):
        a, b = (row["copy_rate"].text(1, 100) for row in (first, last))
        lines.append(f"Near-copies of training images: {a} % at {_name(first)}, {b} % at {_name(last)}.")
    return lines


def _trend_verdicts(measured: Sequence[Row]) -> dict[str | int, Verdict]:
    """From the first row to the last (`fid`, `nll`) and step by step (0, 1, ...), corrected over all of it."""
    first, last = measured[0], measured[-1]
    pairs: dict[str | int, tuple[Measured, Measured]] = {"fid": (last["fid"], first["fid"])}
    if all(isinstance(row.get("nll"), Measured) for row in (first, last)):
        pairs["nll"] = last["nll"], first["nll"]
    if len(measured) > 2:  # of two rows the one step is the whole
        pairs |= {number: (b["fid"], a["fid"]) for number, (a, b) in enumerate(pairwise(measured))}
    return judge(pairs)


def _agrees(rows: Sequence[Row], whole: Verdict) -> str:
    """Whether the change from the first row to the last goes the paper's way: it falls there."""
    if not (isinstance(rows[0].get("fid"), Measured) and isinstance(rows[-1].get("fid"), Measured)):
        return "an end point is not measured here, so the two are not compared"
    if whole.word == INCONCLUSIVE:
        return "whether it does here is inconclusive"
    return "the direction agrees" if whole.word == BETTER else "the direction does not agree"


def _opposition(fid: Verdict, nll: Verdict) -> list[str]:
    """What FID and likelihood say together, where both are more than chance."""
    if (fid.word, nll.word) == (BETTER, WORSE):
        return [
            "Samples come closer to the reference in features while unseen images become less likely, which is what "
            "fitting the training images more closely looks like: see the near-copies."
        ]
    return []


def _direction(a: float, b: float) -> str:
    return "falls" if b < a else "rises" if b > a else "stays the same"


def _change(name: str, first: Row, last: Row, key: str, verdict: Verdict) -> str:
    a, b = first[key], last[key]
    return f"{name}: {a.text(2)} ({_name(first)}), {b.text(2)} ({_name(last)}); the last is {verdict.told}."


def order_reading(rows: Sequence[Row]) -> list[str]:
    """Sentences on an order (Tables 5 and 6): each pair of rows, as measured and as printed."""
    both = [row for row in rows if isinstance(row.get("fid"), Measured) and row.get("paper_fid") is not None]
    if len(both) < 2:
        return ["Fewer than two rows are measured: there is no order to state."]
    ours = sorted(both, key=lambda row: row["fid"].mean)
    theirs = sorted(both, key=lambda row: row["paper_fid"])
    lines = [f"FID, lowest mean first: here {_names(ours)}; in the paper {_names(theirs)}.", *_pairs(theirs)]
    if all(isinstance(row.get("nll"), Measured) for row in both):
        by_nll = sorted(both, key=lambda row: row["nll"].mean)
        lines.append(f"Held-out NLL, lowest mean first: {_names(by_nll)}.")
        if by_nll != ours:
            lines.append(
                "That is not FID's order: a low FID alone does not say which model predicts new images better."
            )
    return lines


def _pairs(in_paper_order: Sequence[Row]) -> list[str]:
    """Which pairs are better or worse, as the paper has them or the other way, and which are inconclusive."""
    pairs = list(combinations(in_paper_order, 2))  # the first of each is the better one in the paper
    verdicts = judge({number: (a["fid"], b["fid"]) for number, (a, b) in enumerate(pairs)})
    names: dict[str, list[str]] = {BETTER: [], WORSE: [], INCONCLUSIVE: []}
    for (a, b), verdict in zip(pairs, verdicts.values(), strict=True):
        names[verdict.word].append(f"{_name(a)} / {_name(b)}")
    told = (
        f"Of {len(pairs)} pairs (paired by seed, Holm's correction), {len(names[BETTER])} are ordered as in the paper"
    )
    against = f", {len(names[WORSE])} the other way" + (f" ({'; '.join(names[WORSE])})" if names[WORSE] else "")
    told += f"{against}, {len(names[INCONCLUSIVE])} inconclusive"
    if names[WORSE]:
        end = "the order does not agree with the paper's"
    elif names[INCONCLUSIVE]:
        end = "the order is inconclusive"
    else:
        end = "the order agrees with the paper's"
    lines = [f"{told}: {end}."]
    resolved = [
        f"{_name(a)} / {_name(b)} (p {p_text(v.p)})"
        for (a, b), v in zip(pairs, verdicts.values(), strict=True)
        if v.p is not None and v.word != INCONCLUSIVE
    ]
    if resolved:
        lines.append(f"Those that are ordered: {'; '.join(resolved)}.")
    lines += left_out(verdicts.values())
    if any(verdict.p is None for verdict in verdicts.values()):
        lines.append("With one seed, or none in common, a pair is inconclusive: --seeds 3 trains three.")
    needed = [verdict.needed for verdict in verdicts.values() if verdict.word == INCONCLUSIVE and verdict.needed]
    if needed:
        lines.append(
            f"An inconclusive difference of the size seen here needs {min(needed)} to {max(needed)} seeds to be found "
            "in 80 % of trials, after correction."
        )
    return lines


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(map(_name, rows))


def _name(row: Row) -> str:
    return markdown(row["label"])
