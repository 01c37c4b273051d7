"""What commands on published checkpoints share: which files, and what the files cannot tell."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvar.commands.options import Count, File, Folder, Numbers, Settings, Word
from mvar.commands.plugged import Plugged
from mvar.errors import UserError, one_of, quoted, say

if TYPE_CHECKING:
    from mvar.api.trained_files import TrainedFiles
    from mvar.api.trained_run import TrainedRun
    from mvar.config import RunConfig


@dataclass(frozen=True)
class CheckpointFiles(Plugged):
    """A generator's checkpoint and its tokenizer."""

    checkpoint: File = ""
    """A generator's .pth or .safetensors: VAR's, M-VAR's, or one of this project."""
    tokenizer: File = ""
    """Its tokenizer's file, e.g. vae_ch160v4096z32.pth."""
    patch_sides: Numbers = ""
    """The scales, e.g. 1,2,3,4, where the checkpoint cannot tell them."""
    num_heads: Count = 0
    """Attention heads, where the checkpoint cannot tell them (no qk-norm, not 64 channels a head)."""
    weights: Word = ""
    """Which of several models in the checkpoint, e.g. ema where it holds model and ema."""

    def sides(self) -> tuple[int, ...] | None:
        """The scales that were given, or None."""
        if not self.patch_sides:
            return None
        from mvar.config.parsing import whole_numbers

        return tuple(whole_numbers("patch-sides", re.sub("(?<=[0-9])-(?=[0-9])", ",", self.patch_sides)))

    def imported(self, base: "RunConfig", adapt_data: bool) -> "RunConfig":
        """The run that the files are, data and sampling from `base`; prints what the generator's file says."""
        from mvar.checkpoints.imported import imported_config

        config, facts = imported_config(
            base,
            self.checkpoint,
            self.tokenizer,
            patch_sides=self.sides(),
            num_heads=self.num_heads or None,
            weights=self.weights,
            adapt_data=adapt_data,
        )
        say(f"{self.checkpoint}: {facts}")
        return config

    def load(self, run: str, results: Path) -> "TrainedRun | TrainedFiles":
        """What `mvar.load` makes of a run, or of the files."""
        from mvar.api.loading import load

        if run:
            return load(run, results=results)
        if not self.tokenizer:
            raise UserError("tokenizer: not given; allowed: the tokenizer's file, which --checkpoint needs")
        cannot_tell: dict[str, Any] = {
            "patch_sides": self.sides(),
            "num_heads": self.num_heads or None,
            "weights": self.weights,
        }
        return load(self.checkpoint, self.tokenizer, results=results, **cannot_tell)


@dataclass(frozen=True)
class MeasuredOn(CheckpointFiles):
    """A checkpoint's files, and the held-out images that something is measured on, of it or of a run."""

    images: Count = 0
    """At most so many held-out images; default: 1000 of a run, 64 for a checkpoint."""
    images_from: Folder = ""
    """Held-out images for a checkpoint: a folder with a subfolder for each class."""
    evaluation: Settings = ()
    """FID for a checkpoint: fields of evaluation, e.g. extractor=mobilenet num_images=1000, reference=FILE.npz.
    Default: none; of a run: its own."""
    batch: Count = 0
    """Images at a time; default: runtime.sample_batch of a run, 8 for a checkpoint."""

    def options(self, run: str) -> dict[str, Any]:
        """What a checkpoint's measurement takes; of a run nothing, which knows all that itself."""
        check_source(run, self.checkpoint)
        if run:
            check_unused(self)
            if self.images_from:
                raise UserError("images-from: a run has its own images; allowed: with --checkpoint only")
            if self.evaluation:
                raise UserError("evaluation: a run has its own; allowed: --evaluation with --checkpoint only")
        from mvar.config.parsing import parse_overrides

        given = dict(parse_overrides(setting for group in self.evaluation for setting in group))
        found = {"images_from": self.images_from} if self.images_from else {}
        return found | ({"evaluation": {n.removeprefix("evaluation."): v for n, v in given.items()}} if given else {})


def check_source(run: str, checkpoint: str) -> None:
    """Exactly one of a run and a checkpoint."""
    if bool(run) == bool(checkpoint):
        given = "both are given" if run else "neither is given"
        raise UserError(f"run, checkpoint: {given}; allowed: one of RUN and --checkpoint FILE")
    if Path(run).suffix in (".pth", ".pt", ".safetensors"):
        raise UserError(f"run: {quoted(run)} is a file; allowed: a run, or --checkpoint {run} --tokenizer FILE")


def check_unused(files: CheckpointFiles) -> None:
    """Refuse what tells of a checkpoint where a run is given, which knows all that itself."""
    for name in ("tokenizer", "patch_sides", "num_heads", "weights"):
        if getattr(files, name):
            option = name.replace("_", "-")
            raise UserError(f"{option}: a run has its own; allowed: --{option} with --checkpoint only")


def sampling_settings(preset: str, settings: Iterable[Sequence[str]]) -> dict[str, Any]:
    """Fields of the sampling: those of a named setting, and after them what --set gives, with `sample.` or without."""
    from mvar.config.parsing import parse_overrides

    given = parse_overrides(setting for group in settings for setting in group)
    return sampling_preset(preset) | {name.removeprefix("sample."): value for name, value in given.items()}


def sampling_preset(name: str) -> dict[str, object]:
    """The fields of a named sampling setting; none for an empty name."""
    from mvar.presets import SAMPLING

    if not name:
        return {}
    if name not in SAMPLING:
        raise one_of("sampling", name, SAMPLING)
    return SAMPLING[name].model_dump(mode="json", exclude={"seed"})
