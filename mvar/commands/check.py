"""`mvar check`: whether the mixers of a user's own file, or one that is there, keep the contract."""

import sys
import time
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mvar.errors import FAILURE, OK, UserError, say

if TYPE_CHECKING:
    from mvar.checking.mixer import Finding
    from mvar.config import ModelConfig


@dataclass(frozen=True)
class Check:
    """Run the whole contract on every mixer that a file registers, or on one by its name; say in words what is wrong.

    Each runs with its default settings and with its `examples` of others. Exit code 1 where anything is wrong.

    Example: `mvar check my_mixer.py`
    """

    mixer: tyro.conf.Positional[str]
    """A Python file of your own, or the name of a mixer that is there."""
    settings: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...", help_behavior_hint="")] = ()
    """Settings as in a pattern, instead of the mixer's examples: 2, or w=2,other=3."""
    width: int = 64
    """Channels of the model that it is checked in."""
    num_heads: int = 4
    """Heads of that model."""

    def execute(self, arguments: list[str]) -> int:
        """Print a line for every check; returns the exit code."""
        import torch

        from mvar.checking.mixer import check_mixer, texts_to_check

        names = self._names()
        config, wrong = self._sizes(), 0
        texts = {name: texts_to_check(name, self.settings, config) for name in names}  # mistakes are told before all
        torch.set_num_threads(1)  # small tensors, which more threads only wait for
        for name in names:
            began, findings = time.monotonic(), []
            for text in texts[name]:
                findings += map(_told, check_mixer(text, config))
            faults = sum(bool(finding.faults) for finding in findings)
            wrong += faults
            seconds = f"{len(findings)} checks, {time.monotonic() - began:.0f} s"
            say(f"{name}: {f'{faults} of them failed' if faults else 'nothing is wrong'} ({seconds})")
        return FAILURE if wrong else OK

    def _names(self) -> list[str]:
        from mvar import plugins
        from mvar.registries import MIXERS

        if not self.mixer.endswith(".py") and not Path(self.mixer).exists():
            plugins.begin([])
            MIXERS.find(self.mixer)
            return [self.mixer]
        plugins.begin([self.mixer], everything=False)
        plugin = plugins.load(self.mixer)
        names = [name for name, owner in MIXERS.owners.items() if owner == plugin.name]
        if not names:
            raise UserError(f"mixer: {self.mixer} registers no mixer; allowed: one with @mvar.register('mixer', NAME)")
        return names

    def _sizes(self) -> "ModelConfig":
        from mvar.checking.mixer import CONFIG
        from mvar.config import override

        sizes = {"width": self.width, "num_heads": self.num_heads}
        headdim = gcd(CONFIG.mamba.headdim, CONFIG.mamba.expand * max(self.width, 1))  # of Mamba beside it in a layer
        return override(CONFIG, {**sizes, "mamba.headdim": headdim})


def _told(finding: "Finding") -> "Finding":
    say(f"{finding.mixer}: {finding.check}: {'WRONG' if finding.faults else 'ok'}")
    for fault in finding.faults:
        say(f"    {fault}")
    sys.stdout.flush()  # a check may take seconds: the line before it is to be seen
    return finding
