"""How to read a table, said from its numbers: whether a trend or an order agrees with the paper's, as verdicts."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise

from mvar.analysis.compare import Measured
from mvar.analysis.family import Family, Row, along, ordered, rule_pairs
from mvar.analysis.verdicts import BETTER, INCONCLUSIVE, SMALL, WORSE, Verdict, left_out, p_text
from mvar.escaping import markdown


def trend_reading(rows: Sequence[Row], family: Family) -> list[str]:
    """Sentences on a metric along an axis (Figure 5): from first to last row, and step by step."""
    measured = along(rows)
    printed = [row for row in rows if row.get("paper_fid") is not None]
    if len(measured) < 2:
        return ["Fewer than two points are measured: there is no trend to state."]
    first, last = measured[0], measured[-1]
    whole = _of(family, "fid", last, first)
    lines = [_change("FID", first, last, "fid", whole)]
    if len(printed) >= 2:
        start, end = printed[0]["paper_fid"], printed[-1]["paper_fid"]
        lines.append(f"In the paper it {_direction(start, end)} from {start:.2f} to {end:.2f}: {_agrees(rows, whole)}.")
    steps = [_of(family, "fid", after, before) for before, after in pairwise(measured)]
    if len(steps) > 1:  # of two rows the one step is the whole
        counts = Counter(verdict.outcome for verdict in steps)
        small = f"{counts[SMALL]} {SMALL}, " if counts[SMALL] else ""
        lines.append(
            f"Step by step ({len(steps)}): {counts[BETTER]} better, {counts[WORSE]} worse, {small}"
            f"{counts[INCONCLUSIVE]} inconclusive; the paper calls the improvement consistent."
        )
    if all(isinstance(row.get("nll"), Measured) for row in (first, last)):
        likelihood = _of(family, "nll", last, first)
        lines.append(_change("Held-out NLL", first, last, "nll", likelihood))
        lines += _opposition(whole, likelihood)
    if all(isinstance(row.get("copy_rate"), Measured) for row in (first, last)):
        a, b = (row["copy_rate"].text(1, 100) for row in (first, last))
        lines.append(f"Near-copies of training images: {a} % at {_name(first)}, {b} % at {_name(last)}.")
    return [*lines, *left_out([whole, *steps]), family.told]


def _of(family: Family, metric: str, row: Row, other: Row) -> Verdict:
    return family.verdict(metric, row["label"], other["label"])


def _agrees(rows: Sequence[Row], whole: Verdict) -> str:
    """Whether the change from the first row to the last goes the paper's way: it falls there."""
    if not (isinstance(rows[0].get("fid"), Measured) and isinstance(rows[-1].get("fid"), Measured)):
        return "an end point is not measured here, so the two are not compared"
    if whole.word == INCONCLUSIVE:
        return "whether it does here is inconclusive"
    if whole.outcome == SMALL:
        return f"here it changes by less than {whole.smallest:.3f}, the smallest difference that counts"
    return "the direction agrees" if whole.word == BETTER else "the direction does not agree"


def _opposition(fid: Verdict, nll: Verdict) -> list[str]:
    """What FID and likelihood say together, where both are more than chance."""
    if (fid.outcome, nll.word) == (BETTER, WORSE):
        return [
            "Samples come closer to the reference in features while unseen images become less likely, which is what "
            "fitting the training images more closely looks like: see the near-copies."
        ]
    return []


def _direction(a: float, b: float) -> str:
    return "falls" if b < a else "rises" if b > a else "stays the same"


def _change(name: str, first: Row, last: Row, key: str, verdict: Verdict) -> str:
    a, b = first[key], last[key]
    values = f"{name}: {a.text(2)} ({_name(first)}), {b.text(2)} ({_name(last)})"
    return f"{values}. {_name(last)} against {_name(first)} is {verdict.told}."


def rule_reading(rows: Sequence[Row], family: Family) -> list[str]:
    """Sentences on rules that replace as many layers (Figure 5, where): which of two is better, by each metric."""
    lines = []
    for metric, name in (("fid", "FID"), ("nll", "Held-out NLL")):
        pairs = [(first, second) for key, first, second in rule_pairs(rows) if key == metric]
        told: dict[str, list[str]] = {}
        for first, second in pairs:
            verdict = family.verdict(metric, first, second)
            if verdict.word == WORSE:
                first, second, verdict = second, first, verdict.reversed
            p = f", p {p_text(verdict.p)}" if verdict.p is not None and verdict.word != INCONCLUSIVE else ""
            told.setdefault(verdict.outcome, []).append(f"{markdown(first)} ({markdown(second)}{p})")
        if pairs:
            said = "; ".join(
                f"{word}: {', '.join(told[word])}" for word in (BETTER, SMALL, INCONCLUSIVE) if word in told
            )
            lines.append(f"{name}, a rule beside another (in brackets) that replaces as many layers: {said}.")
    return [*lines, family.told]


def order_reading(rows: Sequence[Row], family: Family) -> list[str]:
    """Sentences on an order (Tables 5 and 6): each pair of rows, as measured and as printed."""
    theirs = ordered(rows)
    if len(theirs) < 2:
        return ["Fewer than two rows are measured: there is no order to state."]
    ours = sorted(theirs, key=lambda row: row["fid"].mean)
    lines = [f"FID, lowest mean first: here {_names(ours)}; in the paper {_names(theirs)}.", *_pairs(theirs, family)]
    if all(isinstance(row.get("nll"), Measured) for row in theirs):
        by_nll = sorted(theirs, key=lambda row: row["nll"].mean)
        lines.append(f"Held-out NLL, lowest mean first: {_names(by_nll)}.")
        if by_nll != ours:
            lines.append(
                "These are orders of means, and no verdicts: where they differ, a low FID alone does not say which "
                "model predicts new images better."
            )
    return [*lines, family.told]


def _pairs(in_paper_order: Sequence[Row], family: Family) -> list[str]:
    """Which pairs are better or worse, as the paper has them or the other way, and which are inconclusive."""
    verdicts: dict[str, Verdict] = {}
    for better, other in combinations(in_paper_order, 2):  # the first of each is the better one in the paper
        verdicts[f"{_name(better)} / {_name(other)}"] = _of(family, "fid", better, other)
    names: dict[str, list[str]] = {BETTER: [], WORSE: [], SMALL: [], INCONCLUSIVE: []}
    for name, verdict in verdicts.items():
        names[verdict.outcome].append(name)
    lines = [f"{_counted(names, family)}: {_end(names)}."]
    if ordered_ones := [*names[BETTER], *names[WORSE]]:
        told = (f"{name} (p {p_text(p)})" for name in verdicts if name in ordered_ones and (p := verdicts[name].p))
        which = "The one that is" if len(ordered_ones) == 1 else "Those that are"
        lines.append(f"{which} ordered: {'; '.join(told)}.")
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


def _counted(names: dict[str, list[str]], family: Family) -> str:
    """How many pairs there are of each outcome."""
    total = sum(map(len, names.values()))
    against = f" ({'; '.join(names[WORSE])})" if names[WORSE] else ""
    differ = "differs" if len(names[SMALL]) == 1 else "differ"
    small = f"{len(names[SMALL])} {differ} by less than counts, {family.counts:.1%} ({'; '.join(names[SMALL])}), "
    are = "is" if len(names[BETTER]) == 1 else "are"
    return (
        f"Of {total} pair{'s' * (total != 1)} of FIDs (paired by seed, Holm's correction), {len(names[BETTER])} {are} "
        f"ordered as in the paper, {len(names[WORSE])} the other way{against}, {small if names[SMALL] else ''}"
        f"{len(names[INCONCLUSIVE])} inconclusive"
    )


def _end(names: dict[str, list[str]]) -> str:
    if names[WORSE]:
        return "the order does not agree with the paper's"
    if names[INCONCLUSIVE]:
        return "the order is inconclusive"
    return (
        "the order agrees with the paper's, as far as differences count"
        if names[SMALL]
        else ("the order agrees with the paper's")
    )


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(map(_name, rows))


def _name(row: Row) -> str:
    return markdown(row["label"])
