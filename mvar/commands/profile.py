"""`mvar profile`: where the time of a training step goes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from mvar.commands.options import Answer, File, Settings
from mvar.commands.plugged import Plugged
from mvar.errors import OK, UserError, one_of, say

if TYPE_CHECKING:
    from mvar.config import RunConfig
    from mvar.training.profiling import Profile as Measured

FILES = (".yaml", ".yml", ".toml", ".json")


@dataclass(frozen=True)
class Profile(Plugged, Answer):
    """Measure training steps of a run's generator on random tokens: time by part, and a trace; nothing is kept else.

    Example: `mvar profile smoke --set model.pattern=intra+mamba train.batch_size=8`
    """

    config: tyro.conf.Positional[str]
    """A preset's name, or a .yaml, .toml or .json file as `mvar run --config` reads it."""
    set: Settings = ()
    """FIELD=VALUE ...: fields that differ, e.g. model.depth=4 runtime.compile=true."""
    steps: int = 3
    """Steps that are measured, after two that are not."""
    trace: File = "trace.json"
    """Where the trace goes: a file for chrome://tracing or Perfetto."""

    def execute(self, arguments: list[str]) -> int:
        """Print the table; returns the exit code."""
        from mvar.runs.at_hand import settled
        from mvar.training.profiling import profiled

        if self.steps < 1:
            raise UserError(f"steps: {self.steps}; allowed: 1 or more")
        trace = Path(self.trace)
        if not trace.absolute().parent.is_dir():
            raise UserError(f"trace: {trace.parent} is no directory; allowed: a file in one that there is")
        config = self._config()
        found = profiled(config.model_copy(update={"runtime": settled(config)}), self.steps, trace)
        if self.json:
            self.answer(vars(found) | {"trace": str(trace)})
        else:
            _print(found, trace)
        return OK

    def _config(self) -> "RunConfig":
        from mvar.config import override
        from mvar.config.parsing import parse_overrides
        from mvar.presets import PRESETS
        from mvar.runs.config_file import read_config_file

        if self.config.endswith(FILES):
            file = read_config_file(self.config)
            config = file.applied(file.preset_beside(""))
        elif self.config in PRESETS:
            config = PRESETS[self.config]
        else:
            raise one_of("config", self.config, PRESETS)
        return override(config, parse_overrides(setting for group in self.set for setting in group))


def _print(found: "Measured", trace: Path) -> None:
    from rich.table import Table

    from mvar.commands.console import wide_console

    table, total = Table(), sum(found.parts.values()) or 1.0
    table.add_column("part")
    for title in ("ms a step", "share"):
        table.add_column(title, justify="right")
    for part, spent in found.parts.items():
        table.add_row(part, f"{spent:,.2f}", f"{spent / total:.1%}")
    wide_console().print(table)
    speed = found.throughput
    say(
        f"a step takes {found.step_ms:,.1f} ms, measured while it is traced: "
        f"{speed['train/tokens_per_s']:,.0f} tokens/s, MFU {_or_dash(speed.get('train/mfu'), '.1%')}, "
        f"peak memory {_or_dash(speed.get('train/peak_mib'), ',.0f')} MiB"
    )
    say(f"{trace}: the trace, for chrome://tracing or Perfetto")


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
