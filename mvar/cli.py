"""The front door: `mvar run | status | report | sample`.

Exit codes: 0 well, 1 something failed, 2 a mistake in what was asked for, 130 interrupted. Whatever is wrong is one
line on stderr. Heavy modules are imported where they are used: `mvar --help` must not wait for torch.
"""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mvar.errors import UserError, one_of

if TYPE_CHECKING:
    from experiments.cells import Request

OK, FAILURE, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
DESCRIPTION = "Ablations of sequence mixers in scale-wise autoregressive image generation."
DEFAULT_BUDGET = "baseline"


@dataclass(frozen=True)
class Run:
    """Make the runs of one or more sweeps that are not done yet; interrupted ones go on where they were."""

    sweeps: tyro.conf.Positional[tuple[str, ...]]
    """Sweeps: mixers (Table 6), layers (Figure 5), parameters (Table 5). What they share is made once."""
    preset: str = "digits"
    """Where sizes, data and recipe come from, see mvar/presets.py."""
    seeds: str = "1"
    """A count (3: seeds 0, 1, 2) or a list (0,4,7) of seeds of initialisation and training."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """FIELD=VALUE ...: fields that differ from the preset, e.g. model.depth=4 train.steps=100."""
    budget: Annotated[str, tyro.conf.arg(metavar="[FLOPS]")] = ""
    """Equal training FLOPs instead of equal steps; without a number, those of VAR at the preset's steps."""
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Worker processes; 0: one a core (or the cores of runtime.threads), or one a GPU."""
    dry_run: bool = False
    """Only print runs, parameters, FLOPs and estimated time."""
    results: Path = Path("results")
    """Where runs are kept."""


@dataclass(frozen=True)
class Status:
    """Show every run that was begun or asked for: done, running, stopped, failed, missing."""

    results: Path = Path("results")
    """Where runs are kept."""


@dataclass(frozen=True)
class Report:
    """Write tables and figures of what is there: Markdown, CSV, LaTeX, PNG, PDF."""

    results: Path = Path("results")
    """Where runs are kept."""


@dataclass(frozen=True)
class Sample:
    """Draw images from a finished run as one grid, a row for each class."""

    run: tyro.conf.Positional[str]
    """Run id, a unique beginning of one, or the run's directory."""
    classes: str = ""
    """Class names or numbers, separated by commas; empty: the first ten."""
    per_class: int = 8
    """Images a class."""
    seed: int = 0
    """Numbers the set of images."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """FIELD=VALUE ... of the sampling, e.g. cfg_scale=3 top_p=0.9."""
    out: Path = Path("grid.png")
    """The PNG to write."""
    results: Path = Path("results")
    """Where runs are kept."""


Command = Annotated[Run | Status | Report | Sample, tyro.conf.configure(tyro.conf.FlagCreatePairsOff)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script.

    Args:
        arguments: without the program's name; None: those of the process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(_parse(arguments), arguments)
    except UserError as error:
        return _complain(str(error), USER_ERROR)
    except OSError as error:  # a full disk, a directory that may not be written
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", FAILURE)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on where it was", INTERRUPTED)


def _complain(message: str, code: int) -> int:
    message = re.sub(r"\s+", " ", message)
    print(f"mvar: error: {message}", file=sys.stderr)
    return code


def _parse(arguments: list[str]) -> Run | Status | Report | Sample:
    """Parse by tyro; its boxed complaint becomes the one line of every other mistake."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(Command, prog="mvar", args=_with_budget_value(arguments), description=DESCRIPTION)
    except SystemExit as leave:
        if leave.code in (0, None):
            raise
        raise UserError(_unboxed(complaint.getvalue())) from None


def _with_budget_value(arguments: list[str]) -> list[str]:
    """`--budget` may stand alone: then it means the baseline's FLOPs."""
    result = []
    for i, argument in enumerate(arguments):
        result.append(argument)
        following = arguments[i + 1] if i + 1 < len(arguments) else ""
        if argument == "--budget" and not re.match(r"[\d.]", following):
            result.append(DEFAULT_BUDGET)
    return result


def _unboxed(text: str) -> str:
    lines = [re.sub(r"[╭╮╰╯│─]+", " ", line).strip() for line in text.splitlines()[1:]]
    message = " ".join(line for line in lines if line)
    return re.split(r"\s*(?:For full helptext|Argument helptext)", message)[0]


def _dispatch(command: Run | Status | Report | Sample, arguments: list[str]) -> int:
    match command:
        case Run():
            return _run(command, arguments)
        case Status():
            from experiments.tables import print_status

            print_status(_existing(command.results))
            return OK
        case Report():
            from analysis.report import write_report

            print(f"report: {write_report(_existing(command.results))}")
            return OK
        case Sample():
            return _sample(command)


def _existing(results: Path) -> Path:
    if not results.is_dir():
        raise UserError(f"results: {results} is no directory; allowed: one that `mvar run` has made")
    return results


# run ------------------------------------------------------------------------------------------------------------------


def _run(command: Run, arguments: list[str]) -> int:
    from experiments.cells import unique, write_manifest
    from experiments.store import Store, check_writable

    if command.workers < 0:
        raise UserError(f"workers: {command.workers} is negative; allowed: 1 or more, 0 for one a core or GPU")
    requests = _requests(command)
    configs = unique(config for request in requests for config in request.configs())
    store = Store(command.results)
    if command.dry_run:
        from experiments.tables import print_plan

        print_plan(requests, store, command.workers or None)
        return OK
    check_writable(command.results)
    for request in requests:
        write_manifest(store, request, arguments)

    from experiments.runner import run_all

    summary = run_all(configs, store, command.workers or None)
    for line in summary.complaints():
        _complain(line, FAILURE)
    print(f"{summary.num_done} of {summary.num_runs} runs done in {store.root}")
    if summary.interrupted:
        return _complain("interrupted; the same command goes on where it was", INTERRUPTED)
    if not summary.failures:
        return OK
    only_mistakes = all(outcome.is_user_error for outcome in summary.failures.values())
    return USER_ERROR if only_mistakes else FAILURE


def _requests(command: Run) -> "list[Request]":
    from experiments.cells import BUDGET, STEPS, Request, parse_overrides
    from experiments.sweeps import SWEEPS, find_sweep
    from mvar.config import override
    from mvar.presets import PRESETS

    if not command.sweeps:
        raise UserError(f"sweep: none given; allowed: {', '.join(SWEEPS)}")
    if command.preset not in PRESETS:
        raise one_of("preset", command.preset, PRESETS)
    overrides = parse_overrides(setting for group in command.set for setting in group)
    if "seed" in overrides:
        raise UserError("set: seed is given by --seeds; allowed there: a count or a list such as 0,4,7")
    config = override(PRESETS[command.preset], overrides)
    mode, budget = (BUDGET, _budget(command.budget)) if command.budget else (STEPS, None)
    return [
        Request(find_sweep(name), command.preset, config, _seeds(command.seeds), overrides, mode, budget)
        for name in dict.fromkeys(command.sweeps)
    ]


def _seeds(text: str) -> tuple[int, ...]:
    allowed = "allowed: a count of 1 or more, or a list such as 0,4,7"
    if not re.fullmatch(r"\d+(,\d+)*,?", text):
        raise UserError(f"seeds: {text!r} is neither; {allowed}")
    numbers = tuple(int(number) for number in text.split(",") if number)
    if "," in text:
        return tuple(dict.fromkeys(numbers))
    if numbers[0] < 1:
        raise UserError(f"seeds: {text} is no count; {allowed}")
    return tuple(range(numbers[0]))


def _budget(text: str) -> float | None:
    if text == DEFAULT_BUDGET:
        return None
    try:
        budget = float(text)
    except ValueError:
        budget = 0.0
    if not 0 < budget < float("inf"):
        raise UserError(f"budget: {text!r} is no number of FLOPs; allowed: a positive number such as 1e15, or none")
    return budget


# sample ---------------------------------------------------------------------------------------------------------------


def _sample(command: Sample) -> int:
    from experiments.cells import parse_overrides
    from experiments.store import Store

    store = Store(command.results)
    run = store.find_run(command.run)
    settings = parse_overrides(setting for group in command.set for setting in group)
    classes = [name.strip() for name in command.classes.split(",") if name.strip()]
    if command.per_class < 1:
        raise UserError(f"per-class: {command.per_class}; allowed: 1 or more")
    if command.seed < 0:
        raise UserError(f"seed: {command.seed}; allowed: 0 or more")
    from experiments.gallery import draw_grid

    names = draw_grid(store, run, classes, command.per_class, command.seed, settings, command.out)
    print(f"{command.out}: rows {', '.join(names)}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
