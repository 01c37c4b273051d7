"""`mvar.runs`: the runs of a results directory as one table."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from mvar.errors import existing_directory, warn_once
from mvar.place import results_directory

if TYPE_CHECKING:
    from pandas import DataFrame


def runs(results: str | PathLike[str] | None = None) -> "DataFrame":
    """Every run and evaluation of a results directory: the table that `mvar report` writes as runs.csv.

    Examples:
        >>> import mvar
        >>> table = mvar.runs("results")
        >>> table["pattern"].to_list(), table["steps"].to_list()
        (['global'], [8])
        >>> bool(table["eval/fid"].notna().any())
        True

    Args:
        results: where runs are kept; None: `$MVAR_RESULTS`, else `results`.

    Returns:
        A row an evaluation (one without its columns for a run that has none yet): run_id, evaluation_id, state, the
        main fields of the config, every metric, cost and time under its own name. Empty where there is no run. What
        cannot be read is left out, with a warning each.

    Raises:
        UserError: no such directory.
    """
    from mvar.analysis.records import load_records

    root = existing_directory("results", Path(results or results_directory()), "one that `mvar run` has made")
    records = load_records(root, allow_empty=True)
    for problem in records.problems:
        warn_once(problem)
    return records.table
