"""What options look like in `--help`, and the one that nearly every command has: where runs are kept.

An option that was not given shows no default: `''` or `-1` tell a reader nothing. What is used then its text says.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from mvar.place import results_directory

Word = Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
File = Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[str, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Numbers = Annotated[str, tyro.conf.arg(metavar="N,N,...", help_behavior_hint="")]
Values = Annotated[str | None, tyro.conf.arg(metavar="VALUE,...", help_behavior_hint="")]
Labels = Annotated[str, tyro.conf.arg(metavar="NAME,...", help_behavior_hint="")]
Count = Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")]  # 0: not given
Number = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
RunName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]", help_behavior_hint="")]
Files = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE ...", help_behavior_hint="")]
Names = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME ...]", help_behavior_hint="")]
RunNames = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN ...]", help_behavior_hint="")]
Settings = Annotated[
    tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]],
    tyro.conf.arg(metavar="FIELD=VALUE ...", help_behavior_hint="(repeatable)"),
]


@dataclass(frozen=True)
class InResults:
    """A command on a results directory."""

    results: Path = field(default_factory=results_directory, kw_only=True)
    """Where runs are kept; $MVAR_RESULTS is another default."""


@dataclass(frozen=True)
class Answer:
    """A command whose answer a program can read: with --json one document is all that stdout gets."""

    json: bool = field(default=False, kw_only=True)
    """Answer with one JSON document; what is said besides goes to stderr."""

    def answer(self, document: Any) -> None:
        """Print the document; a number that JSON does not have (NaN: not measured) is null."""
        finite = json.loads(json.dumps(document), parse_constant=lambda _: None)
        print(json.dumps(finite, indent=2), file=sys.stdout)
