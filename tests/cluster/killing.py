"""Processes that end at a chosen step, in a fork of this one."""

import importlib
import os
import sys
import time


def end_at(step: tuple[str, str, int], number: int) -> None:
    """Patch this process to get a signal before or after the n-th call of a function."""
    where, when, count = step
    module, _, path = where.partition(":")
    *parents, name = path.split(".")
    owner = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), []

    def patched(*arguments, **named):
        calls.append(name)
        if when == "before" and len(calls) == count:
            os.kill(os.getpid(), number)
        result = original(*arguments, **named)
        if when == "after" and len(calls) == count:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        return result

    setattr(owner, name, patched)


def in_child(work) -> int:
    """Call something in a fork, which it may kill; returns what `os.waitpid` says, as an exit code."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            os._exit(int(work() or 0))
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
