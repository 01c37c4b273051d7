"""`mvar probe`: what a registered probe measures on a trained model, row by row."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mvar.commands.checkpoint import MeasuredOn
from mvar.commands.options import Answer, Folder, InResults, RunName, Settings
from mvar.errors import OK, say

if TYPE_CHECKING:
    from mvar.probes.contract import Probe as Kind
    from mvar.probes.contract import Row, Shown

ProbeName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]", help_behavior_hint="")]


@dataclass(frozen=True)
class Probe(MeasuredOn, InResults, Answer):
    """Measure on a trained model what a probe is for: true scales given, tokens replaced, and so on.

    Without a name: the probes that there are, with their settings. What is measured is kept row by row; interrupted,
    the same command goes on where it was.

    Example: `mvar probe prefix digits --set scales=0,2,4 cfg_scale=0,1.5`
    """

    name: ProbeName = ""
    """The probe."""
    run: RunName = ""
    """Run id, a unique beginning of one, or the run's directory."""
    set: Settings = ()
    """Settings of the probe."""
    out: Folder = ""
    """Folder to keep the rows in; default: the run's directory, or results/probes/... for what is not the default."""

    def execute(self, arguments: list[str]) -> int:
        """Measure, print a table, write the rows; returns the exit code."""
        if not self.name:
            return self._list()
        from mvar.config.parsing import parse_overrides
        from mvar.registries import PROBES

        kind: type[Kind] = PROBES.find(self.name)
        options = self.options(self.run)
        trained = self.load(self.run, self.results)
        settings: dict[str, Any] = dict(parse_overrides(setting for group in self.set for setting in group))
        found = trained.probe(self.name, self.images, self.batch, self.out or None, **settings | options)
        if self.json:
            self.answer({"probe": found.probe, "model": trained.name, "rows": found.rows})
        else:
            show(kind, found.rows, f"{trained.name}: {self.name}")
        return OK

    def _list(self) -> int:
        """Every probe, what it measures, and its settings."""
        from mvar.registries import PROBES

        kinds: dict[str, type[Kind]] = {name: PROBES.find(name) for name in PROBES.names()}
        if self.json:
            self.answer({name: {"about": kind.about(), "settings": described(kind)} for name, kind in kinds.items()})
            return OK
        for name, kind in kinds.items():
            say(f"{name}: {kind.about()}")
            for field, (default, text) in described(kind).items():
                say(f"    {field}={default}  {text}")
        return OK


def described(kind: "type[Kind]") -> dict[str, tuple[str, str]]:
    """Default, as it would be typed, and description of every setting of a probe."""
    fields = kind.Settings.model_fields if kind.Settings else {}
    found = {}
    for name, field in fields.items():
        default = field.get_default()
        typed = ",".join(map(str, default)) if isinstance(default, tuple) else "" if default is None else str(default)
        found[name] = (typed.lower() if isinstance(default, bool) else typed, field.description or "")
    return found


def show(kind: "type[Kind]", rows: "list[Row]", title: str) -> None:
    """Print a row for each case: what was measured, and its values with half-widths where there are some.

    A field that is the same in all rows stands in the title; one that no row has is left out.
    """
    from mvar.commands.console import wide_console
    from mvar.commands.narrow import print_in_parts
    from mvar.probes.contract import HALF_WIDTH

    fields = [f for n, f in enumerate(kind.fields) if not n or len({str(row[f.name]) for row in rows}) > 1]
    known = [f for f in kind.fields if rows and f not in fields and rows[0][f.name] is not None]
    same = [f"{f.label} {written(rows[0][f.name], f)}" for f in known]
    title = ", ".join([title, *same])
    halves = {shown.name for shown in kind.values if any(row.get(shown.name + HALF_WIDTH) for row in rows)}
    columns = [(shown.label, [written(row[shown.name], shown) for row in rows]) for shown in fields]
    for shown in kind.values:
        columns.append((shown.label, [written(row[shown.name], shown) for row in rows]))
        if shown.name in halves:
            columns.append(("±", [written(row.get(shown.name + HALF_WIDTH), shown) for row in rows]))
    print_in_parts(columns, wide_console(400), title)
    if halves:
        say("±: half of the 95 % interval over images.")


def written(value: Any, shown: "Shown") -> str:
    """A field or value as text; a dash where there is none."""
    if value is None or value != value:
        return "–"
    return (
        f"{value:.{shown.decimals}f}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
    )
