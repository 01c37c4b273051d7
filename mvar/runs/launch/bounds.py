"""What is refused when runs are launched, and never when a stored config is read."""

from collections.abc import Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from mvar.errors import UserError, quoted
from mvar.pattern import mixer_name, mixer_texts
from mvar.registries import SOURCES

if TYPE_CHECKING:
    from mvar.config import RunConfig

# Far above all that anybody trains; what is larger is a slip of the hand. Depth is bounded by the pattern.
LARGEST: dict[str, int] = {
    "data.image_size": 100_000,
    "data.num_classes": 100_000_000,
    "tokenizer.vocab_size": 100_000_000,
    "tokenizer.code_channels": 1_000_000,
    "tokenizer.width": 1_000_000,
    "tokenizer.num_res_blocks": 10_000,
    "tokenizer.share_phi": 10_000,
    "tokenizer.train.steps": 10**15,
    "tokenizer.train.batch_size": 100_000_000,
    "model.width": 1_000_000,
    "model.num_heads": 1_000_000,
    "model.mlp_ratio": 10_000,
    "model.mamba.d_state": 1_000_000,
    "model.mamba.d_conv": 10_000,
    "model.mamba.expand": 10_000,
    "model.mamba.headdim": 1_000_000,
    "train.steps": 10**15,
    "train.batch_size": 100_000_000,
    "sample.candidates": 1_000_000,
    "evaluation.num_images": 10_000_000_000,
    "evaluation.classifier_steps": 10**15,
}

PATTERN = {"model.pattern", "model.replacement"}  # fields whose text may hold settings of mixers


def check_launched(config: "RunConfig", asked: Iterable[str]) -> None:
    """Look at the fields that a command sets.

    Args:
        config: what it asks for.
        asked: dotted names of the fields that it sets, as today's.

    Raises:
        UserError: a size beyond reason; held-out images for a data set that has its own.
    """
    asked = set(asked)
    for name in sorted(asked & LARGEST.keys()):
        _check_size(name, name, attrgetter(name)(config))
    for text in sorted(mixer_texts(config.model.pattern)) if PATTERN & asked else ():
        mixer = mixer_name(text)
        for field, value in dict(config.model.settings_of(text) or ()).items():
            _check_size(f"model.{mixer}.{field}", f"model.pattern: {quoted(text)}: {mixer}.{field}", value)
    if "data.heldout_root" in asked and config.data.heldout_root:
        _check_heldout(config.data.name)


def _check_size(field: str, where: str, value: Any) -> None:
    largest = LARGEST.get(field)
    if largest is not None and value > largest:
        raise UserError(f"{where}: {value:,} is too large; allowed: at most {largest:,}")


def _check_heldout(name: str) -> None:
    from mvar.data.sources.contract import find

    if not find(name).takes_heldout:
        taking = ", ".join(other for other in SOURCES.names() if find(other).takes_heldout)
        raise UserError(
            f"data.heldout_root: data.name={name} has held-out images of its own; allowed: with data.name={taking}"
        )
