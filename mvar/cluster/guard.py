"""Start Python with the warning signals held back, so that none is lost or kills before the job can handle it.

`python -m mvar.cluster.guard ARGUMENTS...` becomes `python ARGUMENTS...`; blocked signals stay blocked over exec and
are delivered once `mvar.cluster.job` has its handlers and unblocks them. Nothing may be imported here that takes time.
"""

import os
import signal
import sys

WARNINGS = frozenset({signal.SIGUSR2, signal.SIGTERM})  # time limit and preemption; preemption, requeue and scancel

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
