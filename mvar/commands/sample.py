"""`mvar sample`: draw images from a run or a published checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from mvar.commands.checkpoint import CheckpointFiles, check_source, check_unused, sampling_settings
from mvar.commands.options import InResults, Labels, RunName, Settings, Word
from mvar.errors import OK, UserError, quoted, say
from mvar.files import check_place

MOST_PER_CLASS = 10_000  # images: they are one picture


@dataclass(frozen=True)
class Sample(CheckpointFiles, InResults):
    """Draw images from a trained run, or from a checkpoint and its tokenizer, as one grid: a row for each class.

    Example: `mvar sample digits --classes 3,8 --set sample.cfg_scale=3`
    """

    run: RunName = ""
    """Run id, a unique beginning of one, or the run's directory."""
    classes: Labels = ""
    """Class names or numbers, separated by commas; default: the first ten."""
    per_class: int = 8
    """Images a class."""
    seed: int = 0
    """Numbers the set of images."""
    sampling: Word = ""
    """Published settings: fid (cfg 1.5, top-k 900, top-p 0.96) or visual (cfg 4, more smooth)."""
    set: Settings = ()
    """Fields of the sampling, e.g. sample.cfg_scale=3 sample.top_p=0.9."""
    out: Path = Path("grid.png")
    """The PNG to write."""

    def execute(self, arguments: list[str]) -> int:
        """Draw and write the grid; returns the exit code."""
        check_source(self.run, self.checkpoint)
        if self.run:
            check_unused(self)
        if not 1 <= self.per_class <= MOST_PER_CLASS:
            raise UserError(f"per-class: {self.per_class}; allowed: 1 to {MOST_PER_CLASS:,}")
        if self.seed < 0:
            raise UserError(f"seed: {self.seed}; allowed: 0 or more")
        settings = sampling_settings(self.sampling, self.set)
        for name in ("classes", "per_class", "seed"):
            if name in settings:
                raise UserError(f"set: {name} is given by --{name.replace('_', '-')}; allowed: fields of the sampling")
        classes = [name.strip() for name in self.classes.split(",") if name.strip()]
        if self.classes.strip() and not classes:
            raise UserError(f"classes: {quoted(self.classes)} names none; allowed: e.g. 0,3 (empty: the first ten)")
        check_place("out", self.out)
        from mvar.runs.gallery import class_numbers
        from mvar.runs.stages.sample import save_grid

        trained = self.load(self.run, self.results)
        if self.checkpoint:
            say(f"{self.checkpoint}: {trained.facts}")
        numbers = class_numbers(classes, trained.class_names)
        images = trained.sample(numbers, self.per_class, self.seed, **settings)
        save_grid(self.out, images.reshape(len(numbers), self.per_class, *images.shape[1:]))
        say(f"{self.out}: rows {', '.join(trained.class_names[number] for number in numbers)}")
        return OK
