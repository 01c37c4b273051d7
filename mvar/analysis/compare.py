"""Replicates and comparisons: seeds become mean and standard deviation, and what must not be compared is refused."""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mvar.errors import UserError
from mvar.probes.interval import CONFIDENCE, t_factor

DASH = "—"
DUPLICATES = "eval/heldout_in_training"
FIRST_READING = "first_reading"  # a column that says of rows with duplicates that the threshold counts them


@dataclass(frozen=True)
class Measured:
    """A quantity over `n` training seeds: mean and sample standard deviation (None for one seed), its runs, and the
    value of each seed, by which it is paired with another."""

    mean: float
    sd: float | None
    n: int
    run_ids: tuple[str, ...] = ()
    by_seed: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, values: pd.Series, run_ids: Collection[str] = ()) -> "Measured | None":
        """Of one value a seed, NaN for those that lack it; None where no seed has one."""
        values = values.dropna()
        if values.empty:
            return None
        scatter: Any = values.std(ddof=1)
        sd = float(scatter) if len(values) > 1 else None
        each = tuple(zip(map(int, values.index), map(float, values), strict=True))
        return cls(float(values.mean()), sd, len(values), tuple(sorted(set(run_ids))), each)

    def text(self, decimals: int, factor: float = 1.0) -> str:
        """`mean ± sd` with so many decimals, or the mean alone for one seed."""
        mean = f"{self.mean * factor:.{decimals}f}"
        return mean if self.sd is None else f"{mean} ± {self.sd * factor:.{decimals}f}"

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % t interval of the mean over seeds; None for one seed."""
        return None if self.sd is None else self.sd * t_factor(self.n)

    def paired(self, other: "Measured") -> np.ndarray:
        """Differences `(n,)` of the seeds that both have, this minus the other, in the order of the seeds."""
        ours, theirs = dict(self.by_seed), dict(other.by_seed)
        return np.array([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])

    def minus(self, other: "Measured") -> "Difference | None":
        """The mean of the paired differences, with its interval; None where there is no pair."""
        pairs, run_ids = self.paired(other), tuple(sorted({*self.run_ids, *other.run_ids}))
        if not len(pairs):
            return None
        mean, n = float(pairs.mean()), len(pairs)
        if n < 2:
            return Difference(mean, None, None, n, run_ids)
        half = float(half_width(pairs))
        return Difference(mean, mean - half, mean + half, n, run_ids)


@dataclass(frozen=True)
class Difference:
    """Mean of `n` differences paired by training seed, with a confidence interval (None for a single pair).

    The interval is Student's t over the pairs: it takes them for a sample of normally distributed differences, which
    two or three seeds cannot show, and it is not corrected for the number of rows that are compared.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    run_ids: tuple[str, ...] = ()

    def text(self, decimals: int, factor: float = 1.0) -> str:
        """`-0.30 [-0.52, -0.08]`, or the mean alone for one pair."""
        mean = f"{self.mean * factor:+.{decimals}f}"
        if self.low is None or self.high is None:
            return mean
        return f"{mean} [{self.low * factor:+.{decimals}f}, {self.high * factor:+.{decimals}f}]"


OVER_IMAGES = "over images: half of the 95 % t interval of one run, mean of the runs"


def over_images(half: Measured | None) -> float | None:
    """Half of a 95 % interval over images, which every run has its own of: the mean of the runs'."""
    return half and half.mean


def by_seed(rows: pd.DataFrame, column: str) -> pd.Series:
    """One value a training seed, indexed by seed: sampling seeds replicate no training, so they are averaged first."""
    if column not in rows.columns:
        return pd.Series(dtype=float)
    return pd.Series(rows.groupby("seed")[column].mean())


def aggregate(rows: pd.DataFrame, column: str) -> Measured | None:
    """Mean and standard deviation of a column over training seeds."""
    return Measured.of(by_seed(rows, column), _run_ids(rows, column))


def _run_ids(rows: pd.DataFrame, column: str) -> list[str]:
    return list(rows.loc[rows[column].notna(), "run_id"]) if column in rows.columns and "run_id" in rows.columns else []


def ratio(rows: pd.DataFrame, reference: pd.DataFrame, column: str) -> Measured | None:
    """A column relative to a reference row's, paired seed by seed: what seeds share cancels."""
    run_ids = [*_run_ids(rows, column), *_run_ids(reference, column)]
    return Measured.of(by_seed(rows, column) / by_seed(reference, column), run_ids)


def difference(rows: pd.DataFrame, reference: pd.DataFrame, column: str) -> Difference | None:
    """A column minus a reference row's, paired over the training seeds that both have; None where there is no pair."""
    ours, theirs = aggregate(rows, column), aggregate(reference, column)
    return ours.minus(theirs) if ours and theirs else None


def half_width(paired: np.ndarray) -> np.ndarray:
    """Half of Student's interval of the mean of paired differences `(..., n)`, n at least 2."""
    return paired.std(-1, ddof=1) * t_factor(paired.shape[-1])


def new_images_interval(share: float, heldout: int, count: int) -> tuple[float, float]:
    """Between which shares 95 % of sets of new images fall, below a threshold that held-out images have set.

    The threshold is itself one of few images: how many of `count` new ones are below it is a beta-binomial variable,
    whatever the distances are distributed like.

    Args:
        share: of the held-out images, at or below the threshold.
        heldout: how many of them there are.
        count: new images.
    """
    from scipy.stats import betabinom

    below = max(1, round(share * heldout))
    found = betabinom(count, below, heldout + 1 - below).ppf([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(found[0]) / count, float(found[1]) / count


def heldout_images(rows: pd.DataFrame) -> int:
    """The fewest held-out images that a threshold of near-copies rests on: those that are no training images, and of
    the first reading of data all.

    0 where samples are compared with a file: the count of a record is then that of the file's images.
    """
    references = [json.loads(text) for text in set(rows["settings"])]
    if any("reference.sha256" in settings for settings in references):
        return 0
    counts = [int(settings["reference.num_images"]) for settings in references]
    return max(1, min(counts) - duplicates(rows, counted=False))


def duplicates(rows: pd.DataFrame, counted: bool) -> int:
    """How many held-out images are training images too, the most of any row.

    Args:
        rows: of `Records.table`.
        counted: those that a threshold of near-copies counts, as the first reading of data does, or leaves out.
    """
    if DUPLICATES not in rows:
        return 0
    first = rows[FIRST_READING].eq(True) if FIRST_READING in rows else pd.Series(False, rows.index)
    found = rows.loc[first == counted, DUPLICATES].dropna()
    return 0 if found.empty else int(found.max())


def chosen_and_reported(seeds: Collection[int]) -> tuple[int | None, list[int]]:
    """The sampling seed that a model's best setting is chosen on, and those whose numbers are reported.

    None is for choosing where there is one alone: chosen and reported on the same images, the best would look better
    than it is.
    """
    there = sorted(seeds)
    return (there[0], there[1:]) if len(there) > 1 else (None, there)


def sampling_sd(rows: pd.DataFrame, column: str) -> float | None:
    """Standard deviation over sampling seeds within a trained run, pooled over runs; None with one set of images a run.

    It is what drawing other images is worth; the standard deviation over training seeds contains it.
    """
    if column not in rows.columns:
        return None
    groups = [values for _, values in rows.dropna(subset=[column]).groupby(["run_id", "settings"])[column]]
    groups = [values for values in groups if len(values) > 1]
    if not groups:
        return None
    squares = sum(float(((values - values.mean()) ** 2).to_numpy().sum()) for values in groups)
    return math.sqrt(squares / sum(len(values) - 1 for values in groups))


def training_sd(rows: pd.DataFrame, column: str) -> float | None:
    """Standard deviation over training seeds with what drawing images is worth taken out; None where it is not known.

    One-way random effects: the variance of the runs' means is that of training plus that of sampling over the number
    of sets. Pooled over rows; 0 where the means scatter no more than sampling alone would make them.

    Args:
        rows: evaluations; those of one value in the column `row` are trainings of one thing with other seeds.
        column: the metric.
    """
    within = sampling_sd(rows, column)
    if within is None:
        return None
    found = rows.dropna(subset=[column])
    squares, freedom, sets = 0.0, 0, []
    for _, row in found.groupby("row"):
        runs = [values.to_numpy(dtype=float) for _, values in row.groupby("run_id")[column]]
        means = np.array([values.mean() for values in runs])
        squares, freedom = squares + float(((means - means.mean()) ** 2).sum()), freedom + len(means) - 1
        sets += [len(values) for values in runs]
    if not freedom:
        return None
    mean_sets = len(sets) / sum(1 / count for count in sets)
    return math.sqrt(max(0.0, squares / freedom - within**2 / mean_sets))


def check_comparable(rows: pd.DataFrame, ignore: Collection[str] = ()) -> None:
    """Refuse rows whose evaluator, number of images, sampling settings or reference differ.

    Args:
        rows: of `Records.table`.
        ignore: settings that may differ, because they are what the table varies.

    Raises:
        UserError: they differ; names what differs and lists the groups with their runs.
    """
    groups = {json_text: set(group["run_id"]) for json_text, group in rows.groupby("settings")}
    if len(groups) < 2:
        return
    settings = [{k: v for k, v in json.loads(str(text)).items() if k not in ignore} for text in groups]
    names = sorted({name for values in settings for name in values})
    differing = [name for name in names if len({json.dumps(values.get(name)) for values in settings}) > 1]
    if not differing:
        return
    told = []
    for values, run_ids in zip(settings, groups.values(), strict=True):
        says = ", ".join(f"{name} = {values.get(name)}" for name in differing)
        told.append(f"[{says}: {', '.join(sorted(run_ids))}]")
    raise UserError(
        f"evaluations differ in {', '.join(differing)} and are not compared in one table; groups: {' '.join(told)}"
    )
