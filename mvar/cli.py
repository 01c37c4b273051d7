"""The front door: parses the command line, runs the command, says what went wrong in one line.

Exit codes: 0 well, 1 something failed, 2 a mistake in what was asked for, 130 interrupted. A command is a file of
`mvar/commands/` and a line in `COMMANDS`. They import heavy modules where they use them: `mvar --help` must not wait
for torch.
"""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Protocol

import tyro

from mvar import __version__
from mvar.commands.attention import Attention
from mvar.commands.cancel import Cancel
from mvar.commands.check import Check
from mvar.commands.config import Config
from mvar.commands.copy import Copy
from mvar.commands.data import Data
from mvar.commands.doctor import Doctor
from mvar.commands.evaluate import Evaluate
from mvar.commands.export import Export
from mvar.commands.forget import Forget
from mvar.commands.inspect import Inspect
from mvar.commands.logs import Logs
from mvar.commands.plugged import Plugged
from mvar.commands.repair import Repair
from mvar.commands.report import Report
from mvar.commands.request import with_budget_value
from mvar.commands.retry import Retry
from mvar.commands.run import Plan, Run
from mvar.commands.sample import Sample
from mvar.commands.status import Status
from mvar.commands.submit import Submit
from mvar.errors import OK, UserError, begin_command, exit_code, say
from mvar.escaping import degrade

DESCRIPTION = "Ablations of sequence mixers in scale-wise autoregressive image generation."
COMMANDS = (
    Run,
    Plan,
    Submit,
    Status,
    Logs,
    Cancel,
    Retry,
    Doctor,
    Check,
    Repair,
    Report,
    Sample,
    Attention,
    Evaluate,
    Inspect,
    Export,
    Copy,
    Data,
    Config,
    Forget,
)


class Command(Protocol):
    """What the command line is parsed into."""

    def execute(self, arguments: list[str]) -> int:
        """Do it; returns the exit code. `arguments` are the words that were typed."""
        ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script.

    Args:
        arguments: without the program's name; None: those of the process.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        degrade(stream)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    begin_command()
    if arguments == ["--version"]:
        say(f"mvar {__version__}")
        return OK
    return exit_code(lambda: _execute(arguments))


def _execute(arguments: list[str]) -> int:
    command = parse(arguments)
    if isinstance(command, Plugged):
        command.load_plugins()
    return command.execute(arguments)


def parse(arguments: list[str]) -> Command:
    """Parse by tyro; its boxed complaint becomes the one line of every other mistake."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                reduce(or_, COMMANDS),
                prog="mvar",
                args=with_budget_value(arguments),
                description=DESCRIPTION,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as leave:
        if leave.code in (0, None):
            raise
        raise UserError(_unboxed(complaint.getvalue())) from None


def _unboxed(text: str) -> str:
    lines = [re.sub(r"[╭╮╰╯│─]+|^ *-{4,} *$", " ", line).strip() for line in text.splitlines()[1:]]
    message = " ".join(line for line in lines if line)
    return re.split(r"\s*(?:For full helptext|Argument helptext)", message)[0]


if __name__ == "__main__":
    sys.exit(main())
