"""What drawing an image takes by its number of tokens L: every repeat's time, the most memory held, where they cross.

- ms: a value for each of several fresh processes, as what lies where in memory differs by process, and times with it:
  the median of its repeats. All that are measured take their turn in every repeat, so that a change of the machine's
  speed meets all of them.
- difference: of the mean of these from the dense one's, its 95 % interval (Welch's t; of one difference by itself).
- crossing: from which L on that interval lies below 0 at every L that was measured.
- peak: bytes of the tensors that torch makes meanwhile, the most that are held at once, state and result included.
  Weights are not in it, nor tables that are made once a process, nor what a kernel takes for itself and gives back.
  It is counted as the tensors are made, so it is the same every time; an allocation is rounded up by a few bytes.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, TypeVar

from rich.table import Table

from benchmarks.machine import times
from mvar.errors import UserError
from mvar.probes.interval import welch_interval
from mvar.training.footprint import Held

Runs = Mapping[str, Callable[[], object]]  # by name: what draws one image
Row = dict[str, Any]
S = TypeVar("S")


@dataclass
class Measured:
    """What one process has measured, by name and L: milliseconds of every repeat, bytes held at most."""

    ms: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    peaks: dict[str, dict[int, int]] = field(default_factory=dict)


def measure(at: Mapping[int, Callable[[], Runs]], repeats: int, clock: Callable[[], float]) -> Measured:
    """All that are measured, in this process.

    Args:
        at: by L, smallest first: what makes the functions that draw an image of so many tokens.
        repeats: of every time.
        clock: seconds that are taken.
    """
    found = Measured()
    for length, make in at.items():
        runs = make()
        for name, taken in times(runs, repeats, clock).items():
            found.ms.setdefault(name, {})[length] = [1e3 * each for each in taken]
            found.peaks.setdefault(name, {})[length] = peak(runs[name])
    return found


def in_processes(count: int, what: Callable[[S], Measured], settings: S) -> list[Measured]:
    """What is measured in so many fresh processes, one after another; of one, in this process.

    Raises:
        UserError: no process.
    """
    if count < 1:
        raise UserError(f"processes: {count}; allowed: 1 or more")
    if count == 1:
        return [what(settings)]
    found = []
    for _ in range(count):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            found.append(process.submit(what, settings).result())
    return found


def rows_of(found: Sequence[Measured], key: str, dense: str) -> list[Row]:
    """One row of each that was measured, over processes.

    Args:
        found: of each process.
        key: what a row calls its name.
        dense: the name of that which all others are held against.
    """
    repeats = {
        name: {at: [each.ms[name][at] for each in found] for at in by_length} for name, by_length in found[0].ms.items()
    }
    ms = {name: {at: [statistics.median(r) for r in taken] for at, taken in by.items()} for name, by in repeats.items()}
    peaks = {n: {at: max(each.peaks[n][at] for each in found) for at in by} for n, by in found[0].peaks.items()}
    return [
        {key: name, "repeats_ms": repeats[name], **compared(ms[name], ms[dense], peaks[name], peaks[dense])}
        for name in ms
    ]


def peak(run: Callable[[], object]) -> int:
    """The most bytes of tensors that a call holds, of those that it makes."""
    with Held() as held:
        run()
    return held.most


def compared(
    ms: Mapping[int, Sequence[float]],
    dense_ms: Mapping[int, Sequence[float]],
    peaks: Mapping[int, int],
    dense_peaks: Mapping[int, int],
) -> Row:
    """What is measured of one by L, and where it crosses the dense one."""
    intervals = {length: welch_interval(taken, dense_ms[length]) for length, taken in ms.items()}
    return {
        "ms": ms,
        "ms_difference": intervals,
        "ms_crossing": crossing({at: interval is not None and interval[1] < 0 for at, interval in intervals.items()}),
        "peak_bytes": peaks,
        "peak_crossing": crossing({length: held < dense_peaks[length] for length, held in peaks.items()}),
    }


def crossing(less: Mapping[int, bool]) -> int | None:
    """The least L from which on it takes less at every larger one too; None where it does not at the largest."""
    more = max((length for length, is_less in less.items() if not is_less), default=0)
    return min((length for length in less if length > more), default=None)


def tables(rows: Sequence[Row], key: str, dense: str, title: str) -> list[Table]:
    """Times and peaks to look at."""
    found = []
    for what, told in (("ms", "ms, mean and standard deviation over processes"), ("peak", "most memory held, MB")):
        table = Table(title=f"{title}: {told}")
        table.add_column(key)
        for length in rows[0]["ms"]:
            table.add_column(f"L = {length}", justify="right")
        table.add_column(f"less than {dense} from L =", justify="right")
        for row in rows:
            cells = (
                map(_ms, row["ms"].values()) if what == "ms" else (f"{n / 1e6:.3f}" for n in row["peak_bytes"].values())
            )
            table.add_row(row[key], *cells, str(row[f"{what}_crossing"] or "-"))
        found.append(table)
    return found


def _ms(taken: Sequence[float]) -> str:
    scatter = f" ± {statistics.stdev(taken):.2f}" if len(taken) > 1 else ""
    return f"{statistics.mean(taken):.2f}{scatter}"
