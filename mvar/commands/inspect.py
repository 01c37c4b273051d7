"""`mvar inspect`: what a checkpoint file holds."""

from dataclasses import dataclass

import tyro

from mvar.commands.checkpoint import CheckpointFiles
from mvar.errors import OK, say


@dataclass(frozen=True)
class Inspect:
    """Say what a checkpoint of VAR, M-VAR or their tokenizer holds: sizes, scales, mixers."""

    checkpoint: tyro.conf.Positional[str]
    """A .pth or .safetensors file."""
    patch_sides: str = ""
    """The scales, e.g. 1,2,3,4, where the checkpoint cannot tell them."""
    num_heads: int = 0
    """Attention heads, where the checkpoint cannot tell them."""
    weights: str = ""
    """Which of several models in the checkpoint, e.g. ema where it holds model and ema."""

    def execute(self, arguments: list[str]) -> int:
        """Print what is inside; returns the exit code."""
        from mvar.checkpoints.checkpoint_files import NotInside, read_checkpoint
        from mvar.checkpoints.published import infer_generator, infer_tokenizer

        files = CheckpointFiles(self.checkpoint, patch_sides=self.patch_sides, num_heads=self.num_heads)
        mistakes = []
        for kind in ("generator", "tokenizer"):
            try:
                found = read_checkpoint(self.checkpoint, kind, self.weights)
            except NotInside as error:
                mistakes.append(error)
                continue
            if kind == "generator":
                facts = infer_generator(found, patch_sides=files.sides(), num_heads=self.num_heads or None)
                say(f"generator: {facts}")
            else:
                config, channels = infer_tokenizer(found, files.sides())
                sides = "-".join(map(str, config.patch_sides))
                say(
                    f"tokenizer: {config.vocab_size} codes of {config.code_channels} channels, scales {sides}, "
                    f"{channels} image channels, downsamples {config.downsample} times, phi shared {config.share_phi}"
                )
        if len(mistakes) == 2:
            raise mistakes[0]
        return OK
