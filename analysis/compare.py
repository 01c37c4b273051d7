"""Replicates and comparisons: seeds become mean and standard deviation, and what must not be compared is refused."""

import json
import math
from dataclasses import dataclass

import pandas as pd

from mvar.errors import UserError

DASH = "—"


@dataclass(frozen=True)
class Measured:
    """A quantity over `n` training seeds: mean and sample standard deviation (None for one seed)."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: pd.Series) -> "Measured | None":
        """Of one value a seed, NaN for those that lack it; None where no seed has one."""
        values = values.dropna()
        if values.empty:
            return None
        return cls(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, len(values))

    def text(self, decimals: int, factor: float = 1.0) -> str:
        """`mean ± sd` with so many decimals, or the mean alone for one seed."""
        mean = f"{self.mean * factor:.{decimals}f}"
        return mean if self.sd is None else f"{mean} ± {self.sd * factor:.{decimals}f}"


def by_seed(rows: pd.DataFrame, column: str) -> pd.Series:
    """One value a training seed, indexed by seed: sampling seeds replicate no training, so they are averaged first."""
    if column not in rows.columns:
        return pd.Series(dtype=float)
    return rows.groupby("seed")[column].mean()


def aggregate(rows: pd.DataFrame, column: str) -> Measured | None:
    """Mean and standard deviation of a column over training seeds."""
    return Measured.of(by_seed(rows, column))


def ratio(rows: pd.DataFrame, reference: pd.DataFrame, column: str) -> Measured | None:
    """A column relative to a reference row's, paired seed by seed: what seeds share cancels."""
    return Measured.of(by_seed(rows, column) / by_seed(reference, column))


def check_comparable(rows: pd.DataFrame) -> None:
    """Refuse rows whose evaluator, number of images, sampling settings or reference differ.

    Raises:
        UserError: they differ; names what differs and lists the groups with their runs.
    """
    groups = {json_text: set(group["run_id"]) for json_text, group in rows.groupby("settings")}
    if len(groups) < 2:
        return
    settings = [json.loads(text) for text in groups]
    names = sorted({name for values in settings for name in values})
    differing = [name for name in names if len({json.dumps(values.get(name)) for values in settings}) > 1]
    told = []
    for values, run_ids in zip(settings, groups.values(), strict=True):
        says = ", ".join(f"{name} = {values.get(name)}" for name in differing)
        told.append(f"[{says}: {', '.join(sorted(run_ids))}]")
    raise UserError(
        f"evaluations differ in {', '.join(differing)} and are not compared in one table; groups: {' '.join(told)}"
    )


def resolved(first: Measured, second: Measured) -> bool | None:
    """Whether two means lie further apart than their standard deviations explain; None where a seed is all there is.

    The yardstick is the standard deviation of the difference of two single runs. It is no test of significance: with
    two or three seeds none would mean much.
    """
    if first.sd is None or second.sd is None:
        return None
    return abs(first.mean - second.mean) > math.hypot(first.sd, second.sd)
