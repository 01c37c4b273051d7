"""What a command tells its user: the one exception that means "you can mend this", and lines on stdout and stderr.

A `UserError` is shown as a single line, with exit code 2 and no traceback.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mvar.escaping import one_line, printable

OK, FAILURE, USER_ERROR, INTERRUPTED = 0, 1, 2, 130  # exit codes
MEMORY_ERRORS = (MemoryError, RuntimeError)  # what a full memory raises; torch's OutOfMemoryError is a RuntimeError
FULL_MEMORY = re.compile(r"[^:]*out of memory|can't allocate memory|[^:]*CUBLAS_STATUS_ALLOC_FAILED")


class UserError(Exception):
    """A mistake in what was asked for; the message names the field, its value and what is allowed."""

    exit_code = USER_ERROR


def is_mistake(error: BaseException) -> bool:
    """Whether an error is a mistake in what was asked for: exit code 2; a damaged file is none."""
    return isinstance(error, UserError) and error.exit_code == USER_ERROR


def full_memory(error: BaseException) -> str:
    """What an error says of memory that is full, a GPU's or this machine's, in two sentences at most; else empty."""
    if not isinstance(error, MEMORY_ERRORS):
        return ""
    told = " ".join(str(error).split())
    found = FULL_MEMORY.search(told)
    if not found and not isinstance(error, MemoryError):
        return ""
    told = told[found.start() :].strip() if found else told or "no memory is left"
    return ". ".join(told.split(". ")[:2]).removesuffix(".")


def memory_told(error: BaseException) -> str:
    """The one line of an error that says that memory is full; of another one empty."""
    told = full_memory(error)
    less = "fewer images at once where a setting says how many (runtime.sample_batch, --batch)"
    return told and f"memory: {told}; allowed: {less}, or a device on which more is free (runtime.device)"


def ranges(numbers: Iterable[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3, 7, which ascend."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def counted(count: int, noun: str) -> str:
    """`1 class`, `2 classes`, `1,000 runs`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def one_of(what: str, value: object, allowed: Iterable[object], most: int | None = None) -> UserError:
    """The error for a name that is not in a list: says the value, what is allowed, and the nearest spelling.

    Args:
        what: the field.
        value: what was given.
        allowed: the names.
        most: so many of a long list are named, the nearest first; None: all.
    """
    from difflib import SequenceMatcher

    names, given = [str(a) for a in allowed], str(value)[:200]
    hint = did_you_mean(given, names)
    if most is not None and len(names) > most:
        nearest = sorted(names, key=lambda name: -SequenceMatcher(None, given, name).ratio())[:most]
        names = [*nearest[:-1], f"{nearest[-1]} and {len(names) - most} others"]
    return UserError(f"{what}: {quoted(str(value))} is unknown{hint}; allowed: {', '.join(names)}")


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """The nearest of some names, as a message says it after what was given; nothing where none is near."""
    from difflib import get_close_matches

    near = get_close_matches(given[:200], list(names), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def quoted(value: object, limit: int = 200) -> str:
    """A value as a message shows it: its `repr`, cut where it is long or nested without end."""
    try:
        text = repr(value[: limit + 1] if isinstance(value, str) else value)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}..."


def complain(message: str, code: int) -> int:
    """Say on stderr, in one line, what is wrong; returns the exit code."""
    print(f"mvar: error: {one_line(message)}", file=sys.stderr)
    return code


def say(message: str) -> None:
    """Say on stdout, in one line, what a command has found or done; names in it are shown and not obeyed."""
    line = printable(message).expandtabs().replace("\n", " ")  # a path keeps its spaces: it may be typed again
    print(line, file=sys.stderr if _is_aside else sys.stdout)


def speak_aside() -> None:
    """From now on `say` speaks on stderr, until the next command: stdout is for a document that programs read."""
    global _is_aside
    _is_aside = True


def warn(message: str) -> None:
    """Say on stderr, in one line, what was not as it should be; the work goes on."""
    line = one_line(message)
    if _told_elsewhere:
        _told_elsewhere(line)
    else:
        print(f"mvar: warning: {line}", file=sys.stderr)


def warn_once(message: str) -> None:
    """`warn`, unless this command has said the very same already: several processes may find it."""
    line = one_line(message)
    if line not in _told:
        _told.add(line)
        warn(line)


def note_once(message: str) -> None:
    """Say on stderr, once a command and in one line, what was chosen."""
    line = one_line(message)
    if line not in _told:
        _told.add(line)
        print(f"mvar: {line}", file=sys.stderr)


def begin_command() -> None:
    """A new command begins: it says again what an earlier one of this process has said."""
    global _is_aside
    _told.clear()
    _is_aside = False


_told: set[str] = set()
_is_aside = False
_told_elsewhere: Callable[[str], None] | None = None


def pass_warnings_on(tell: Callable[[str], None]) -> None:
    """Give the warnings of this process to `tell`: another one shows them, which has the terminal."""
    global _told_elsewhere
    _told_elsewhere = tell


def print_to_nowhere(stream: int) -> None:
    """What is still printed to a stream (1 or 2) that nobody reads any more goes nowhere, instead of failing."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream)
    os.close(nowhere)


def existing_directory(what: str, path: Path, allowed: str) -> Path:
    """A directory that a command reads; a missing one is a `UserError`."""
    if not path.is_dir():
        raise UserError(f"{what}: {path} is no directory; allowed: {allowed}")
    return path


def exit_code(act: Callable[[], int]) -> int:
    """The exit code of what a user has called: what goes wrong in it is one line on stderr, unless it is a fault."""
    try:
        code = act()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read it has read enough (`mvar status | head`)
        print_to_nowhere(sys.stdout.fileno())  # what Python itself writes at its end
        return OK
    except UserError as error:
        return complain(str(error), error.exit_code)
    except OSError as error:  # a full disk, a directory that may not be written
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{error.strerror or error}", FAILURE)
    except MEMORY_ERRORS as error:
        if told := memory_told(error):
            return complain(told, USER_ERROR)
        raise
    except KeyboardInterrupt:
        return complain("interrupted; the same command goes on where it was", INTERRUPTED)


@contextmanager
def in_field(name: str) -> Iterator[None]:
    """Mistakes inside the block are those of a field that holds a checkpoint's path, or of a file: say its name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {str(error).removeprefix('checkpoint: ')}") from None
