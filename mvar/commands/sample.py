"""`mvar sample`: draw images."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from mvar.errors import OK, UserError


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

    def execute(self, arguments: list[str]) -> int:
        """Draw and write the grid; returns the exit code."""
        from experiments.cells import parse_overrides
        from experiments.store import Store

        store = Store(self.results)
        run = store.find_run(self.run)
        settings = parse_overrides(setting for group in self.set for setting in group)
        classes = [name.strip() for name in self.classes.split(",") if name.strip()]
        if self.per_class < 1:
            raise UserError(f"per-class: {self.per_class}; allowed: 1 or more")
        if self.seed < 0:
            raise UserError(f"seed: {self.seed}; allowed: 0 or more")
        from experiments.gallery import draw_grid

        names = draw_grid(store, run, classes, self.per_class, self.seed, settings, self.out)
        print(f"{self.out}: rows {', '.join(names)}")
        return OK
