"""An executor of one's own: the worker processes of this machine, at the lowest priority, so that others' work goes on.

mvar submit mixers --preset smoke --plugin examples/executor.py --cluster examples/polite.toml
"""

import os

import mvar


@mvar.register("executor", "polite")
class Polite(mvar.LocalExecutor):
    """As `local`; processes that it starts have its priority."""

    def execute(self, requests, store, dry_run=False):
        """Make the runs; returns how they ended."""
        if not dry_run:
            os.nice(19)
        return super().execute(requests, store, dry_run)
