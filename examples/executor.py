"""An executor of one's own, for a machine that others work on too, or that has to be free by the morning.

mvar submit mixers --preset smoke --plugin examples/executor.py --cluster examples/polite.toml

It makes runs as `mvar run` does, at the lowest priority, with variables of the profile, and stops after `timeout_min`
minutes: the same command goes on from there.
"""

import os
import shutil
import signal
import threading

import mvar

LEAST_FREE_GB = 1


@mvar.register("executor", "polite")
class Polite(mvar.LocalExecutor):
    """As `local`; the processes that it starts have its priority and variables."""

    def uses(self, field):
        """Fields of the profile that mean something here; a profile that sets another one is refused."""
        return field in ("workers", "env", "timeout_min")

    def check_results(self, results):
        """Called before anything is read or written: what is refused here is one line and costs nothing."""
        there = next(path for path in (results.absolute(), *results.absolute().parents) if path.exists())
        if (free := shutil.disk_usage(there).free / 1e9) < LEAST_FREE_GB:
            raise mvar.UserError(f"results: {free:.1f} GB are free at {there}; allowed: {LEAST_FREE_GB} or more")

    def execute(self, requests, store, dry_run=False):
        """Make the runs; returns how they ended, of which the command prints what failed and why."""
        ((profile, _),) = requests  # one profile, and the runs that are asked for
        os.nice(19)
        os.environ.update(profile.env)
        clock = threading.Timer(60 * profile.timeout_min, os.kill, (os.getpid(), signal.SIGINT))
        clock.daemon = True
        clock.start()  # as Ctrl-C: each process ends its step and saves
        try:
            return super().execute(requests, store, dry_run)
        finally:
            clock.cancel()
