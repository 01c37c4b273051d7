"""Where runs are kept, unless one is told otherwise."""

import os
from pathlib import Path

VARIABLE = "MVAR_RESULTS"


def results_directory() -> Path:
    """`$MVAR_RESULTS`, else `results` in the working directory."""
    return Path(os.environ.get(VARIABLE) or "results")
