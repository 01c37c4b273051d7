"""The generator's section of a run's configuration: sizes, and the mixers of every layer with their settings."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, model_validator

from mvar.config.extensible import Config, Extensible, is_lenient
from mvar.config.mixer_settings import read_settings, write_settings
from mvar.pattern import (
    format_pattern,
    map_mixers,
    mixer_name,
    mixer_texts,
    mixers_of,
    parse_layer,
    parse_pattern,
    replace_layers,
)
from mvar.registries import MIXERS
from mvar.registry import Registry


class MambaConfig(Config):
    """Mamba-2's sizes; the defaults are M-VAR's."""

    d_state: int = Field(default=64, ge=1, description="N, size of the SSM state a channel.")
    d_conv: int = Field(default=4, ge=2, description="K, tokens that the causal convolution sees.")
    expand: int = Field(default=2, ge=1, description="Inner width, relative to the model's.")
    headdim: int = Field(default=64, ge=1, description="P, head size; it divides expand * width.")
    scan_order: Literal["raster", "snake", "columns", "both"] = Field(
        default="raster",
        description="The way through a scale: row by row, every other row backwards, column by column, or row by row "
        "forwards and backwards with the same weights.",
    )

    @property
    def num_scans(self) -> int:
        """How often the tokens are scanned."""
        return 2 if self.scan_order == "both" else 1


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
        default="global",
        description="Mixers of every layer (mvar.pattern), e.g. intra+mamba, 4*global 4*intra or intra|mamba:32.",
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
        if "replacement" in values and "replace" not in values and not is_lenient(info):
            raise ValueError(
                "model.replacement: given without model.replace, it replaces nothing; allowed: beside model.replace, "
                "which says which layers"
            )
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
    def _check_mixers(self, info: ValidationInfo) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"model.num_heads: {self.num_heads} does not divide model.width {self.width}")
        if not is_lenient(info):  # what is stored is in its one form already
            object.__setattr__(self, "pattern", self._with_texts(self._on_base))
            _ = self.resolved_pattern  # settings that no pattern can hold are refused here
        for text in sorted(mixer_texts(self.pattern)):
            if mixer_name(text) == "mamba":
                self._check_mamba(self.settings_of(text))
        return self

    def _check_mamba(self, mamba: MambaConfig) -> None:
        if (self.width * mamba.expand) % mamba.headdim:
            raise ValueError(
                f"model.mamba.headdim: {mamba.headdim} does not divide expand * width = {self.width * mamba.expand}"
            )

    def _on_base(self, text: str) -> str:
        """A mixer's text without what its section says anyway."""
        name = mixer_name(text)
        return write_settings(name, self.settings_of(text), self.settings_of(name)) if name != text else text

    def settings_of(self, name: str) -> Any:
        """The settings of a mixer as a pattern names it: `markov:2` is section `model.markov`, its first field 2.

        Raises:
            UserError: an unknown mixer, or settings that it does not take.
        """
        mixer = mixer_name(name)
        MIXERS.check(mixer)
        base = self._own_section(mixer) or super().settings_of(mixer)
        where = self.pattern if name in mixer_texts(self.pattern) else name
        return read_settings(name, type(base) if base is not None else None, base, where)

    @property
    def resolved_pattern(self) -> str:
        """The pattern with all settings in it that are not a mixer's defaults; Mamba's stand in its section.

        Two spellings of one model have one: `model.markov.w=3 model.pattern=markov` and `model.pattern=markov:3`.
        """
        return self._with_texts(partial(self._on_defaults, self._own_sections()))

    def _with_texts(self, change: Callable[[str], str]) -> str:
        """The pattern with the text of every mixer changed, in its shortest form."""
        layers = {layer: map_mixers(layer, change) for layer in self.layers}
        return format_pattern(tuple(layers[layer] for layer in self.layers))

    def _own_section(self, name: str) -> Config | None:
        """The section of a mixer that had one in the first version, as a field."""
        section = self.__dict__.get(name)
        return section if isinstance(section, Config) else None

    def _own_sections(self) -> dict[str, Config]:
        """What such sections say in the one spelling: the settings of the first mixer that has one."""
        found: dict[str, Config] = {}
        for text in (text for layer in self.layers for text in parse_layer(layer, known=False)):
            if self._own_section(name := mixer_name(text)):
                found.setdefault(name, self.settings_of(text))
        return found

    def _on_defaults(self, sections: Mapping[str, Config], text: str) -> str:
        name = mixer_name(text)
        if name in sections:
            return write_settings(name, self.settings_of(text), sections[name])
        if name not in MIXERS or name not in (self.__pydantic_extra__ or {}):
            return text  # on the defaults already; and no mixer is loaded, for which `mvar status` would wait
        kind = self.settings_class(name)
        return write_settings(name, self.settings_of(text), kind() if kind else None)

    def plain(self) -> dict[str, Any]:
        """As `Config.plain`; the settings of registered mixers stand in the pattern alone."""
        values = super().plain()
        for name in self.__pydantic_extra__ or {}:
            if name in MIXERS:
                values.pop(name, None)
        sections = {name: section.model_dump(mode="json") for name, section in self._own_sections().items()}
        return values | sections | {"pattern": self.resolved_pattern}

    @property
    def layers(self) -> tuple[str, ...]:
        """The pattern, one entry a layer."""
        return parse_pattern(self.pattern, self.depth, known=False)  # checked when the config was made

    def chosen(self) -> list[tuple[Registry[Any], str]]:
        """The mixers of the pattern."""
        return [(MIXERS, name) for name in sorted(mixers_of(self.pattern))]
