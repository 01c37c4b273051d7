"""`mvar config`: what a run would be made with, every field that there is, and the presets."""

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from mvar.commands.options import File, InResults, Settings, Word
from mvar.commands.plugged import Plugged
from mvar.errors import OK, UserError, existing_directory, one_of, say

if TYPE_CHECKING:
    from mvar.config import RunConfig

DEFAULT_PRESET = "digits"


@dataclass(frozen=True)
class Config(Plugged, InResults):
    """Show a whole config, every field with what is allowed, or the presets.

    Example: `mvar config fields train`
    """

    action: tyro.conf.Positional[Literal["show", "fields", "presets"]]
    """show: a whole config, as YAML. fields: every field with its default, limits and description. presets: all."""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]", help_behavior_hint="")] = ""
    """Of show, a run (its id, a unique beginning of one, its directory); of fields, a field or section, e.g. train."""
    preset: Word = ""
    """What is shown, or whose values are the defaults; digits where neither a run nor a file is named."""
    config: File = ""
    """A .yaml, .toml or .json file, as `mvar run --config` reads it: the whole config that it stands for."""
    set: Settings = ()
    """FIELD=VALUE ...: fields that differ from the preset, file or run, e.g. model.depth=4 train.steps=100."""
    json: bool = False
    """JSON in place of YAML or text."""
    computes: ClassVar[bool] = False

    def load_plugins(self) -> None:
        """Load them; what is printed besides is the config alone, which may go into a file."""
        with contextlib.redirect_stdout(sys.stderr):
            super().load_plugins()

    def execute(self, arguments: list[str]) -> int:
        """Print it; returns the exit code."""
        {"show": self._show, "fields": self._fields, "presets": self._presets}[self.action]()
        return OK

    def _show(self) -> None:
        from mvar.config.described import as_yaml, resolved

        values = resolved(self._config(self.name))
        _say_lines(json.dumps(values, indent=2) if self.json else as_yaml(values))

    def _fields(self) -> None:
        from mvar.config.described import fields_of

        found = fields_of(self._config(), self.name)
        if self.json:
            _say_lines(json.dumps([asdict(field) for field in found], indent=2))
            return
        if not self.name:
            given = self.config or f"preset {self.preset or DEFAULT_PRESET}"
            given += " and --set" if self.set else ""
            say(f"Defaults are those of {given}; of settings that it does not give, their own.")
        for field in found:
            for line in field.lines:
                say(line)

    def _presets(self) -> None:
        from mvar.presets import PRESETS

        if self.name or self.preset or self.set or self.config:
            given = self.name or self.preset or self.config or "--set"
            raise UserError(f"presets: {given} is of no use; allowed: mvar config show --preset NAME shows one")
        rows = [_summary(name, preset) for name, preset in PRESETS.items()]
        if self.json:
            _say_lines(json.dumps(rows, indent=2))
            return
        for line in _table(rows):
            say(line)

    def _config(self, run: str = "") -> "RunConfig":
        """The preset, file or run, with what differs from it."""
        from mvar.config import override
        from mvar.config.parsing import parse_overrides
        from mvar.presets import PRESETS

        for option in ("preset", "config") if run else ():
            if given := getattr(self, option):
                raise UserError(f"{option}: {given!r:.200} beside run {run!r:.200}; allowed: one of them")
        if self.preset and self.preset not in PRESETS:
            raise one_of("preset", self.preset, PRESETS)
        config = self._stored(run) if run else self._of_file() or PRESETS[self.preset or DEFAULT_PRESET]
        values = parse_overrides(setting for group in self.set for setting in group)
        return override(config, values) if values else config  # one that is stored needs no plug-in to be shown

    def _of_file(self) -> "RunConfig | None":
        from mvar.runs.config_file import read_config_file

        if not self.config:
            return None
        file = read_config_file(self.config)
        return file.applied(file.preset_beside(self.preset))

    def _stored(self, run: str) -> "RunConfig":
        from mvar import layout
        from mvar.runs.store import Store

        if not Path(run, layout.CONFIG).is_file():
            existing_directory("results", self.results, "one that `mvar run` has made")
        return Store(self.results).find_run(run).config(to_compute=False)


def _summary(name: str, preset: "RunConfig") -> dict[str, Any]:
    """What tells a preset from the others."""
    return {
        "preset": name,
        "data": preset.data.name,
        "pixels": preset.data.image_size,
        "tokens": preset.token_space.schedule.num_tokens,
        "depth": preset.model.depth,
        "width": preset.model.width,
        "steps": preset.train.steps,
        "batch": preset.train.batch_size,
    }


def _table(rows: list[dict[str, Any]]) -> Iterable[str]:
    """Columns under their names: texts on the left, numbers on the right."""
    cells = [{name: f"{value:,}" if isinstance(value, int) else value for name, value in row.items()} for row in rows]
    width = {name: max(len(name), *(len(row[name]) for row in cells)) for name in rows[0]}

    def line(texts: Mapping[str, str]) -> str:
        aligned = (t.rjust(width[n]) if isinstance(rows[0][n], int) else t.ljust(width[n]) for n, t in texts.items())
        return "  ".join(aligned).rstrip()

    yield line({name: name for name in width})
    yield from map(line, cells)


def _say_lines(text: str) -> None:
    for line in text.splitlines():
        say(line)
