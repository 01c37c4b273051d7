"""The generator's section of a run's configuration: sizes, and the mixers of every layer with their settings."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, model_validator

from mvar.config.extensible import Config, Extensible, is_lenient
from mvar.pattern import mixers_of, parse_pattern, replace_layers
from mvar.registries import MIXERS
from mvar.registry import Registry


class MambaConfig(Config):
    """Mamba-2's sizes; the defaults are M-VAR's."""

    d_state: int = Field(default=64, ge=1, description="N, size of the SSM state a channel.")
    d_conv: int = Field(default=4, ge=2, description="K, tokens that the causal convolution sees.")
    expand: int = Field(default=2, ge=1, description="Inner width, relative to the model's.")
    headdim: int = Field(default=64, ge=1, description="P, head size; it divides expand * width.")


class ModelConfig(Extensible):
    """The generator: a VAR backbone whose layers hold the mixers of `pattern`.

    `replace` and `replacement` derive the pattern from a base (M-VAR's Figure 5) and are folded into it, so that two
    spellings of one model are one config.
    """

    SECTION = "model"
    REGISTRIES = (MIXERS,)

    depth: int = Field(default=8, ge=1, description="Layers.")
    width: int = Field(default=64, ge=1, description="D, channels of a token.")
    num_heads: int = Field(default=4, ge=1, description="H, attention heads; they divide width.")
    pattern: str = Field(
        default="global", description="Mixers of every layer (mvar.pattern), e.g. intra+mamba or 4*global 4*intra."
    )
    mlp_ratio: float = Field(default=4.0, gt=0, description="Hidden width of the feed-forward, relative to width.")
    attn_l2_norm: bool = Field(
        default=True, description="Queries and keys of unit length, with a learned temperature a head (qk-norm)."
    )
    shared_adaln: bool = Field(
        default=False, description="One modulation by the class for all layers, and a learned offset in each."
    )
    drop_path: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Probability that an image skips a branch of the last layer, linear from 0 at the first "
        "(VAR: 0.1 * depth / 24).",
    )
    init: Literal["official", "fixed"] = Field(
        default="official", description="fixed: every gate of a layer gets init_adaln_gamma, not only the first two."
    )
    init_adaln: float = Field(default=0.5, description="Factor on the initial weights of scales and shifts.")
    init_adaln_gamma: float = Field(default=1e-3, description="Factor on the initial weights of the gates.")
    init_head: float = Field(default=0.02, description="Factor on the initial weights of the head.")
    mamba: MambaConfig = MambaConfig()

    @model_validator(mode="before")
    @classmethod
    def _canonical_pattern(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        rule, replacement = values.pop("replace", "none"), values.pop("replacement", "intra+mamba")
        depth = values.get("depth", cls.model_fields["depth"].default)
        with suppress(ValidationError):  # 8.0 and "8" are whole numbers to the field itself
            depth = TypeAdapter(int).validate_python(depth)
        if isinstance(depth, int) and depth >= 1:  # otherwise depth's own check speaks
            base = values.get("pattern", cls.model_fields["pattern"].default)
            values["pattern"] = replace_layers(
                str(base), str(rule), str(replacement), depth, known=not is_lenient(info)
            )
        return values

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"model.num_heads: {self.num_heads} does not divide model.width {self.width}")
        if "mamba" in self.pattern and (self.width * self.mamba.expand) % self.mamba.headdim:
            raise ValueError(
                f"model.mamba.headdim: {self.mamba.headdim} does not divide expand * width = "
                f"{self.width * self.mamba.expand}"
            )
        return self

    @property
    def layers(self) -> tuple[str, ...]:
        """The pattern, one entry a layer."""
        return parse_pattern(self.pattern, self.depth, known=False)  # checked when the config was made

    def chosen(self) -> list[tuple[Registry[Any], str]]:
        """The mixers of the pattern."""
        return [(MIXERS, name) for name in sorted(mixers_of(self.pattern))]
