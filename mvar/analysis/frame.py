"""Rows of JSON values as a DataFrame in which whole numbers stay whole: a gap must not make floats of counts."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd

any_text = pd.option_context("mode.string_storage", "python")  # pyarrow's takes no file name that is not UTF-8
EXACT = 2**53  # a float holds every whole number up to it


@any_text
def frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """One row each, a column for each key in order of appearance (or as given); what a row lacks is missing.

    Columns of whole numbers with gaps are `Int64`; where a number is too large for that, or floats are among numbers
    that no float holds, the column keeps Python's own numbers.
    """
    table = pd.DataFrame(rows, columns=None if columns is None else list(columns))
    for name in [name for name in table if table[name].hasnans or table[name].dtype.kind == "f"]:
        values = [row.get(name) for row in rows]
        there = [value for value in values if value is not None]
        whole = [value for value in there if isinstance(value, int) and not isinstance(value, bool)]
        if whole and len(whole) == len(there):
            with suppress(OverflowError):  # pandas has made Python's own of them
                table[name] = pd.array(values, dtype="Int64")
        elif any(abs(value) > EXACT for value in whole):
            table[name] = pd.Series(values, dtype=object, index=table.index)
    return table
