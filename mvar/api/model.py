"""`mvar.Model`: an untrained model by its layers, to be counted, differentiated and drawn from."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mvar import cost
from mvar.config import ModelConfig, SampleConfig, TokenizerConfig, TokenSpace, from_dict, override
from mvar.sampling.generation import generate
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.transformer import ScaleTransformer


class Model(nn.Module):
    """A generator that is only initialised, and a random codebook, so that it takes tokens.

    Examples:
        >>> import mvar, torch
        >>> model = mvar.Model("4*mamba 4*global", width=128)
        >>> model.num_params == sum(p.numel() for p in model.parameters())
        True
        >>> tokens, labels = torch.zeros(2, 30, dtype=torch.int64), torch.tensor([3, 8])
        >>> model(tokens, labels).shape
        torch.Size([2, 30, 96])
        >>> model.flops > mvar.Model("8*intra", width=128).flops
        True

    Args:
        pattern: mixers of every layer, e.g. `4*mamba 4*global`; a single one, `mamba`, is for all.
        width: D.
        depth: layers; None: as many as the pattern has, 8 where it has a single one.
        num_heads: H; None: one for 64 channels.
        patch_sides: tokens a side of every scale.
        vocab_size: V.
        code_channels: C.
        num_classes: that it can be asked for.
        seed: of its weights and of the codebook.
        fields: others of `ModelConfig`, and settings of mixers: `mlp_ratio=2`, `mamba={"d_state": 16}`.

    Raises:
        UserError: an unknown mixer or field, or sizes that do not fit each other.
    """

    def __init__(
        self,
        pattern: str = "global",
        width: int = 64,
        *,
        depth: int | None = None,
        num_heads: int | None = None,
        patch_sides: Sequence[int] = (1, 2, 3, 4),
        vocab_size: int = 96,
        code_channels: int = 8,
        num_classes: int = 10,
        seed: int = 0,
        **fields: Any,
    ) -> None:
        super().__init__()
        sizes = {"pattern": pattern, "width": width, "depth": depth or _depth(pattern)}
        sizes["num_heads"] = num_heads or max(1, width // 64)
        codes = {"patch_sides": tuple(patch_sides), "vocab_size": vocab_size, "code_channels": code_channels}
        codebook = from_dict(TokenizerConfig, codes)
        self.config = from_dict(ModelConfig, sizes | fields)
        self.space = TokenSpace(codebook.patch_sides, vocab_size, code_channels, num_classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.generator = ScaleTransformer(self.config, self.space)
            quantizer = ResidualQuantizer(codebook)
        self._codebook = [quantizer.eval().requires_grad_(False)]  # in a list: it is no part of the model

    @property
    def quantizer(self) -> ResidualQuantizer:
        """The random codebook, on the device of the model."""
        return self._codebook[0].to(self.generator.pos_1LC.device)

    @property
    def num_params(self) -> int:
        """Trainable parameters, by formula; the codebook has none of them."""
        return cost.num_params(self.config, self.space)

    @property
    def flops(self) -> int:
        """FLOPs of one teacher-forced forward pass for one image, by formula (a multiply-add is 2)."""
        return cost.forward_flops(self.config, self.space)

    @property
    def state_bytes(self) -> int:
        """Bytes that the mixers carry from scale to scale for one image, in fp32."""
        return cost.state_bytes(self.config, self.space)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Logits `(B, L, V)` of every token, given the coarser scales and the class: teacher forcing.

        Args:
            tokens: `(B, L)` int64, of all scales. Those of the last one are only predicted.
            labels: `(B,)` classes; `num_classes` is none.
        """
        return self.generator(labels, self.quantizer.inputs(tokens))[0]

    def generate(self, labels: Sequence[int] | Tensor, seed: int = 0, **settings: Any) -> Tensor:
        """Draw tokens `(B, L)` int64, an image a class.

        Examples:
            >>> import mvar
            >>> mvar.Model("mamba", depth=2).generate([3, 8], cfg_scale=0).shape
            torch.Size([2, 30])

        Args:
            labels: B classes.
            seed: image i has the seed `(seed, i)`.
            settings: fields of `SampleConfig`.

        Raises:
            UserError: an unknown field, or a value that is not allowed.
        """
        classes = torch.as_tensor(labels)
        sample = override(SampleConfig(), settings)
        seeds = [(seed, number) for number in range(len(classes))]
        was_training = self.training
        self.eval()
        try:
            return generate(self.generator, self.quantizer, classes, seeds, sample).tokens
        finally:
            self.train(was_training)


def _depth(pattern: str) -> int:
    """Layers of a pattern that says how many there are; else the default."""
    groups = pattern.split()
    counts = [re.match(r"(\d{1,9})\*", group) for group in groups]
    if len(groups) == 1 and not counts[0]:
        return ModelConfig.model_fields["depth"].default
    return max(1, sum(int(count[1]) if count else 1 for count in counts))
