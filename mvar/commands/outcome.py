"""How a command that makes runs ends: what it prints, and its exit code."""

from typing import TYPE_CHECKING

from mvar.errors import FAILURE, INTERRUPTED, OK, USER_ERROR, complain, say

if TYPE_CHECKING:
    from mvar.runs.runner import Summary
    from mvar.runs.store import Store


def conclude(summary: "Summary", store: "Store") -> int:
    """Say how runs ended; returns the exit code. Failures that the user can mend are the user's mistakes."""
    for line in summary.complaints():
        complain(line, FAILURE)
    lacking = ", ".join(f"metric {name} of {count}" for name, count in summary.lacking.items())
    left = f"; not done: {lacking}" if lacking else ""
    say(f"{summary.num_done} of {summary.num_runs} runs done in {store.root}{left}")
    if summary.interrupted:
        return complain("interrupted; the same command goes on where it was", INTERRUPTED)
    if not summary.failures:
        return OK
    only_mistakes = all(outcome.is_user_error for outcome in summary.failures.values())
    return USER_ERROR if only_mistakes else FAILURE
