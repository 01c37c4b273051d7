"""`mvar` alone: what it is for, five examples, and the commands with a line each."""

import textwrap
from collections.abc import Mapping, Sequence
from inspect import getdoc

WIDTH = 80
NAMES = 20  # columns of the commands' names
DESCRIPTION = "Ablations of sequence mixers in scale-wise autoregressive image generation."
EXAMPLES = (
    ("mvar run mixers", "train and measure four mixers on digits, on this machine"),
    ("mvar status", "what is done, what runs, what is left"),
    ("mvar report", "the paper's tables and figures, with what was measured"),
    ("mvar attention digits", "where the attention of a run goes"),
    ("mvar submit mixers --preset imagenet256-d16-online --cluster node-of-eight", "the same on a SLURM cluster"),
)


def overview(groups: Mapping[str, Sequence[type]]) -> str:
    """The text of `mvar` and `mvar --help`, at most 80 columns wide.

    Args:
        groups: the classes of the commands by what they are for; the first sentence of a docstring is a command's line.
    """
    lines = ["usage: mvar COMMAND ...", "", DESCRIPTION, "", "Examples:"]
    for command, what in EXAMPLES:
        lines += [f"  {command}", f"      {what}"]
    for title, commands in groups.items():
        lines += ["", f"{title}:"]
        for command in commands:
            text = textwrap.fill(summary(command), WIDTH - NAMES - 3).splitlines()
            lines += [f"  {name_of(command):<{NAMES}}{text[0]}", *(" " * (NAMES + 2) + more for more in text[1:])]
    return "\n".join([*lines, "", "mvar COMMAND --help: its options, and an example. mvar --version: the version."])


def name_of(command: type) -> str:
    """The word that a command is called by: `EvaluateTokenizer` is `evaluate-tokenizer`."""
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in command.__name__).lstrip("-")


def summary(command: type) -> str:
    """The first sentence of a command's docstring."""
    first = " ".join((getdoc(command) or "").split("\n\n")[0].split())
    return first.split("; ")[0].split(": ")[0].rstrip(".")
