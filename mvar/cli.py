"""The front door: parses the command line, runs the command, says what went wrong in one line.

Exit codes: 0 well, 1 something failed, 2 a mistake in what was asked for, 130 interrupted. A command is a file of
`mvar/commands/` and a word in `GROUPS`. They import heavy modules where they use them: `mvar --help` must not wait
for torch.
"""

import contextlib
import inspect
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

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
from mvar.commands.evaluate_tokenizer import EvaluateTokenizer
from mvar.commands.explore import Explore
from mvar.commands.export import Export
from mvar.commands.forget import Forget
from mvar.commands.inspect import Inspect
from mvar.commands.knockout import Knockout
from mvar.commands.logs import Logs
from mvar.commands.options import Answer
from mvar.commands.overview import name_of, overview
from mvar.commands.plugged import Plugged
from mvar.commands.probe import Probe
from mvar.commands.profile import Profile
from mvar.commands.refused import HELP, refusal, renamed
from mvar.commands.repair import Repair
from mvar.commands.report import Report
from mvar.commands.request import with_budget_value
from mvar.commands.retry import Retry
from mvar.commands.run import Plan, Run
from mvar.commands.sample import Sample
from mvar.commands.status import Status
from mvar.commands.submit import Submit
from mvar.errors import OK, UserError, begin_command, exit_code, one_of, say, speak_aside
from mvar.escaping import degrade

GROUPS: dict[str, tuple[type, ...]] = {
    "Make runs": (Run, Plan, Submit, Config, Data, Check, Profile),
    "Follow them": (Status, Logs, Cancel, Retry, Forget, Repair, Doctor),
    "Look at what they are": (
        *(Report, Sample, Attention, Explore, Knockout, Probe),
        *(Evaluate, EvaluateTokenizer, Inspect),
    ),
    "Take along": (Export, Copy),
}
COMMANDS = {name_of(command): command for commands in GROUPS.values() for command in commands}
VERSION = "--version"


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
    if not arguments or arguments[0] in HELP:
        print(overview(GROUPS))
        return OK
    if arguments == [VERSION]:
        say(f"mvar {__version__}")
        return OK
    return exit_code(lambda: _execute(arguments))


def _execute(arguments: list[str]) -> int:
    command = parse(arguments)
    if isinstance(command, Answer) and command.json:
        speak_aside()
    if isinstance(command, Plugged):
        command.load_plugins()
    try:
        return command.execute(arguments)
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:
        if told := _of_a_plug_in(error):
            raise UserError(told) from error
        raise


def _of_a_plug_in(error: Exception) -> str:
    """What a plug-in has raised, in one line; empty of what is a fault of ours."""
    from mvar.plugins import blamed

    return blamed(error)


def parse(arguments: list[str]) -> Command:
    """Parse by tyro; its boxed complaint becomes the one line of every other mistake.

    Raises:
        UserError: a command or an option that is unknown, a value that is not allowed.
    """
    name, *rest = arguments
    if name not in COMMANDS:
        if name.startswith("-"):
            raise one_of("option", name, (HELP[1], VERSION))
        raise one_of("command", name, COMMANDS)
    rest = renamed(COMMANDS[name], rest)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), _whole_paragraphs():
            return tyro.cli(
                COMMANDS[name],
                prog=f"mvar {name}",
                args=with_budget_value(rest),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as leave:
        if leave.code in (0, None):
            raise
        raise refusal(COMMANDS[name], rest, complaint.getvalue()) from None


@contextlib.contextmanager
def _whole_paragraphs() -> Iterator[None]:
    """tyro joins only lines that begin with a letter, not those below a field, which are indented: `--help` would break
    where the source does."""
    strings: Any = getattr(tyro, "_strings", None)
    join = getattr(strings, "remove_single_line_breaks", None)
    if join is None:  # a tyro that does it otherwise
        yield
        return
    strings.remove_single_line_breaks = lambda text: join(re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text)))
    try:
        yield
    finally:
        strings.remove_single_line_breaks = join


if __name__ == "__main__":
    sys.exit(main())
