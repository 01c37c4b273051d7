"""`mvar sample`: draw images from a run or a published checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from mvar.commands.checkpoint import CheckpointFiles, check_source, check_unused, sampling_preset
from mvar.errors import OK, UserError, quoted, say
from mvar.files import check_place

if TYPE_CHECKING:
    from mvar.runs.gallery import Generator

MOST_PER_CLASS = 10_000  # images: they are one picture


@dataclass(frozen=True)
class Sample(CheckpointFiles):
    """Draw images from a trained run, or from a checkpoint and its tokenizer, as one grid: a row for each class."""

    run: tyro.conf.Positional[str] = ""
    """Run id, a unique beginning of one, or the run's directory."""
    classes: str = ""
    """Class names or numbers, separated by commas; empty: the first ten."""
    per_class: int = 8
    """Images a class."""
    seed: int = 0
    """Numbers the set of images."""
    sampling: str = ""
    """Published settings: fid (cfg 1.5, top-k 900, top-p 0.96) or visual (cfg 4, more smooth)."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """FIELD=VALUE ... of the sampling, e.g. cfg_scale=3 top_p=0.9."""
    out: Path = Path("grid.png")
    """The PNG to write."""
    results: Path = Path("results")
    """Where runs are kept."""

    def execute(self, arguments: list[str]) -> int:
        """Draw and write the grid; returns the exit code."""
        from mvar.config.parsing import parse_overrides

        check_source(self.run, self.checkpoint)
        if self.run:
            check_unused(self)
        if not 1 <= self.per_class <= MOST_PER_CLASS:
            raise UserError(f"per-class: {self.per_class}; allowed: 1 to {MOST_PER_CLASS:,}")
        if self.seed < 0:
            raise UserError(f"seed: {self.seed}; allowed: 0 or more")
        settings = sampling_preset(self.sampling) | parse_overrides(s for group in self.set for s in group)
        classes = [name.strip() for name in self.classes.split(",") if name.strip()]
        if self.classes.strip() and not classes:
            raise UserError(f"classes: {quoted(self.classes)} names none; allowed: e.g. 0,3 (empty: the first ten)")
        check_place("out", self.out)
        from mvar.runs.gallery import draw_grid

        names = draw_grid(self._generator(settings, classes), classes, self.per_class, self.seed, self.out)
        say(f"{self.out}: rows {', '.join(names)}")
        return OK

    def _generator(self, settings: dict[str, Any], classes: list[str]) -> "Generator":
        from mvar.presets import PRESETS
        from mvar.runs import gallery
        from mvar.runs.store import Store

        if self.run:
            run, store = Store.locate(self.results, self.run)
            return gallery.of_run(store, run, settings, classes)
        if not self.tokenizer:
            raise UserError("tokenizer: not given; allowed: the tokenizer's file, which --checkpoint needs")
        config = self.config(PRESETS["imagenet256-d16"], adapt_data=True)
        return gallery.of_checkpoint(config, self.num_heads or None, settings, classes)
