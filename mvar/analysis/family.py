"""All that is said of one sweep is one family of comparisons: its table of differences, and sentences under its table.

They are corrected together, so that at most 5 % of sweeps have a false verdict anywhere in the two.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import pandas as pd

from mvar.analysis.compare import Measured, aggregate
from mvar.analysis.manifests import AskedCell, Manifest
from mvar.analysis.verdicts import ALPHA, Verdict, judge

Row = Mapping[str, Any]  # of `tables`: label, fid, nll, copy_rate (`Measured` or absent), paper_fid
Key = tuple[str, str, str]  # a metric of `KEYS`, a row, the row that it is compared with
KEYS = {"fid": "eval/fid", "nll": "eval/nll_bits_per_token"}  # lower is better


@dataclass(frozen=True)
class Family:
    """The verdicts on all comparisons of a sweep, of both of its tables; lower is better in each."""

    verdicts: Mapping[Key, Verdict]
    decided: Sequence[Verdict]  # each comparison once
    counts: float  # the smallest difference of FID that counts, as a share

    @classmethod
    def of(cls, rows: Sequence[Row], pairs: Iterable[Key], counts: float) -> "Family":
        """Of some pairs of rows.

        One that is asked for twice, in whichever order, is one comparison; so are two of the same numbers, as those of
        NLL are, which is the same at any guidance.

        Args:
            rows: of a sweep's table.
            pairs: each with both rows measured.
            counts: the smallest difference of FID that counts, as a share of the second row's.
        """
        measured = {row["label"]: row for row in rows}
        found: dict[Any, tuple[Measured, Measured]] = {}
        asked: dict[Key, Any] = {}
        for metric, first, second in pairs:
            if (metric, second, first) not in asked:
                both = measured[first][metric], measured[second][metric]
                numbers = metric, both[0].by_seed, both[1].by_seed
                found[numbers], asked[metric, first, second] = both, numbers
        decided = judge(found, counts={numbers: counts for numbers in found if numbers[0] == "fid"})
        return cls({key: decided[numbers] for key, numbers in asked.items()}, list(decided.values()), counts)

    def verdict(self, metric: str, first: str, second: str) -> Verdict:
        """On the first row, beside the second; a `KeyError` for a comparison that is not of the family."""
        there = self.verdicts.get((metric, first, second))
        return there or self.verdicts[metric, second, first].reversed

    def has(self, metric: str, first: str, second: str) -> bool:
        """Whether two rows are compared by a metric."""
        return (metric, first, second) in self.verdicts or (metric, second, first) in self.verdicts

    @property
    def told(self) -> str:
        """A sentence on how verdicts come about."""
        tested = sum(verdict.p is not None for verdict in self.decided)
        return (
            f"Better and worse are verdicts of paired t-tests at {ALPHA:.0%}, p corrected by Holm's method over those "
            f"of all {len(self.decided)} comparisons, of the table of differences and of sentences under the table of "
            f"means together, that have two pairs of seeds or more ({tested}); all else is inconclusive."
        )


def family_of(manifest: Manifest, cells: Sequence[tuple[AskedCell, pd.DataFrame]]) -> Family:
    """Of a sweep's finished evaluations, as `tables.reported_rows` gives them."""
    rows = [
        dict(cell.axes)
        | {"label": cell.label, "paper_fid": cell.printed.get("fid")}
        | {name: aggregate(found, key) for name, key in KEYS.items()}
        for cell, found in cells
    ]
    told = PAIRS.get(manifest.experiment.compares, _none)(rows)
    return Family.of(rows, [*_from_baseline(manifest, rows), *told], manifest.experiment.counts)


def baseline_of(manifest: Manifest, cell: AskedCell) -> AskedCell | None:
    """The cell that another is compared with, as its experiment has it; None for that cell itself."""
    found = manifest.experiment.against(cell, manifest.cells)
    return None if found is cell else found


def _from_baseline(manifest: Manifest, rows: Sequence[Row]) -> Iterator[Key]:
    """Of the table of differences: FID, and NLL where the two rows are not one model, sampled in two ways."""
    measured = {row["label"]: row for row in rows}
    for cell in manifest.cells:
        base = baseline_of(manifest, cell)
        for name in KEYS:
            ours, theirs = (measured[one.label][name] if one else None for one in (cell, base))
            if base and ours and theirs and (name != "nll" or set(ours.run_ids) != set(theirs.run_ids)):
                yield name, cell.label, base.label


# What sentences tell of -----------------------------------------------------------------------------------------------


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Rows with a measured and a printed FID, in the paper's order."""
    both = [row for row in rows if isinstance(row.get("fid"), Measured) and row.get("paper_fid") is not None]
    return sorted(both, key=lambda row: row["paper_fid"])


def order_pairs(rows: Sequence[Row]) -> Iterator[Key]:
    """Every two of the rows that the paper orders, the better one in the paper first."""
    for better, other in combinations(ordered(rows), 2):
        yield "fid", better["label"], other["label"]


def along(rows: Sequence[Row]) -> list[Row]:
    """Points of a trend that are measured."""
    return [row for row in rows if isinstance(row.get("fid"), Measured)]


def trend_pairs(rows: Sequence[Row]) -> Iterator[Key]:
    """The last point of a trend against the first, of FID and NLL, and FID step by step."""
    points = along(rows)
    if len(points) < 2:
        return
    first, last = points[0], points[-1]
    yield "fid", last["label"], first["label"]
    if all(isinstance(row.get("nll"), Measured) for row in (first, last)):
        yield "nll", last["label"], first["label"]
    for before, after in pairwise(points):
        yield "fid", after["label"], before["label"]


def rule_pairs(rows: Sequence[Row]) -> Iterator[Key]:
    """Every two rules that replace as many layers, where both are measured, by each metric."""
    for first, second in combinations(rows, 2):
        if first.get("rule") and second.get("rule") and first["layers_replaced"] == second["layers_replaced"]:
            for name in KEYS:
                if isinstance(first.get(name), Measured) and isinstance(second.get(name), Measured):
                    yield name, first["label"], second["label"]


def _none(rows: Sequence[Row]) -> Iterator[Key]:
    """Nothing beside the table of differences."""
    return iter(())


PAIRS: dict[str, Callable[[Sequence[Row]], Iterator[Key]]] = {
    "pairs": order_pairs,
    "trend": trend_pairs,
    "rules": rule_pairs,
}
