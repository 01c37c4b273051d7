"""`mvar inspect`: what a checkpoint file holds."""

from dataclasses import asdict, dataclass

import tyro

from mvar.commands.checkpoint import CheckpointFiles
from mvar.commands.options import Answer, Count, Numbers, Word
from mvar.errors import OK, say


@dataclass(frozen=True)
class Inspect(Answer):
    """Say what a checkpoint of VAR, M-VAR or their tokenizer holds: sizes, scales, mixers.

    Example: `mvar inspect var_d16.pth`
    """

    checkpoint: tyro.conf.Positional[str]
    """A .pth or .safetensors file."""
    patch_sides: Numbers = ""
    """The scales, e.g. 1,2,3,4, where the checkpoint cannot tell them."""
    num_heads: Count = 0
    """Attention heads, where the checkpoint cannot tell them."""
    weights: Word = ""
    """Which of several models in the checkpoint, e.g. ema where it holds model and ema."""

    def execute(self, arguments: list[str]) -> int:
        """Print what is inside; returns the exit code."""
        from mvar.checkpoints.checkpoint_files import NotInside, read_checkpoint
        from mvar.checkpoints.published import infer_generator, infer_tokenizer

        files = CheckpointFiles(self.checkpoint, patch_sides=self.patch_sides, num_heads=self.num_heads)
        mistakes, facts = [], {}
        for kind in ("generator", "tokenizer"):
            try:
                found = read_checkpoint(self.checkpoint, kind, self.weights)
            except NotInside as error:
                mistakes.append(error)
                continue
            if kind == "generator":
                generator = infer_generator(found, patch_sides=files.sides(), num_heads=self.num_heads or None)
                facts[kind] = {
                    "model": generator.config.model_dump(mode="json"),
                    "tokens": asdict(generator.space),
                    "assumed": generator.assumed,
                }
                say(f"generator: {generator}")
            else:
                config, channels = infer_tokenizer(found, files.sides())
                facts[kind] = config.model_dump(mode="json") | {"image_channels": channels}
                sides = "-".join(map(str, config.patch_sides))
                say(
                    f"tokenizer: {config.vocab_size} codes of {config.code_channels} channels, scales {sides}, "
                    f"{channels} image channels, downsamples {config.downsample} times, phi shared {config.share_phi}"
                )
        if len(mistakes) == 2:
            raise mistakes[0]
        if self.json:
            self.answer(facts)
        return OK
