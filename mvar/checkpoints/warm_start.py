"""Starts a generator from a checkpoint: layers that are the same are taken over, replaced ones are initialised.

That is how a VAR becomes a hybrid (the paper's "From VAR to M-VAR", Figure 5), and how published weights become a run.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvar.checkpoints.checkpoint_files import split_choice
from mvar.checkpoints.published import GeneratorFacts, load_generator
from mvar.config import ModelConfig, TokenSpace
from mvar.errors import UserError, in_field, ranges
from mvar.files import file_digest
from mvar.pattern import mixer_name, parse_branches
from mvar.transformer import ScaleTransformer

# What a checkpoint and the model that starts from it must share.
SHARED_FIELDS = ("depth", "width", "num_heads", "mlp_ratio", "attn_l2_norm", "shared_adaln")
SHARED_SPACE = ("patch_sides", "vocab_size", "code_channels")
CLASSES = "class_emb.weight"


@dataclass(frozen=True)
class Start:
    """What was taken from a checkpoint and what was initialised."""

    checkpoint: str
    sha256: str
    loaded_layers: tuple[int, ...]
    new_layers: tuple[int, ...]
    new_parameters: tuple[str, ...]  # beside those of the new layers

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Start":
        """Read `to_json`'s values back, fields beside them aside."""
        try:
            found = {field.name: values[field.name] for field in fields(cls)}
        except KeyError as error:
            raise UserError(f"start.json: lacks {error}; allowed: as a run writes it") from None
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
        return cls(**plain)

    def __str__(self) -> str:
        layers = f"layers {ranges(self.loaded_layers) or 'none'}"
        new = [f"layers {ranges(self.new_layers)}"] if self.new_layers else []
        new += self.new_parameters
        return f"from {Path(self.checkpoint).name}: {layers} loaded; {', '.join(new) or 'nothing'} initialised anew"


def start_from(model: ScaleTransformer, path: Path | str) -> Start:
    """Take over from a generator's checkpoint what fits; the rest of the model stays as it was initialised.

    A layer is taken over where checkpoint and model have the same branches of the same mixers in it. Everything outside
    the layers is taken over, but for the class embedding where the number of classes differs. With shared AdaLN a new,
    wider modulation keeps the chunks that the kept layers read.

    Args:
        model: freshly initialised, on the CPU; changed in place.
        path: any file that `load_generator` reads; `FILE#ema` chooses one of the models in it.

    Raises:
        UserError: an unreadable checkpoint, or one of other sizes; names every field that differs.
    """
    with in_field("train.init_from"):
        source, facts = load_generator(path, patch_sides=model.space.patch_sides, num_heads=model.config.num_heads)
    check_sizes(model.config, model.space, facts, path)
    kept = _kept_layers(facts.config, model.config)
    own, given = model.state_dict(), source.state_dict()
    new = []
    for name, tensor in own.items():
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else None
        if layer is not None:
            if layer in kept:
                tensor.copy_(given[name])
        elif name == CLASSES and tensor.shape != given[name].shape:
            new.append(f"{name} ({len(tensor) - 1} classes, the checkpoint has {len(given[name]) - 1})")
        elif name.startswith("shared_ada_lin.") and tensor.shape != given[name].shape:
            _copy_chunks(tensor, given[name], model.config.width)
            new.append(f"{name} (chunks of the new branches)")
        else:
            tensor.copy_(given[name])
    others = tuple(i for i in range(model.config.depth) if i not in kept)
    return Start(str(path), file_digest(split_choice(path)[0]), tuple(sorted(kept)), others, tuple(new))


def _kept_layers(theirs: ModelConfig, ours: ModelConfig) -> set[int]:
    def branches(config: ModelConfig, layer: str) -> list[list[tuple[str, Any]]]:
        return [[(mixer_name(text), config.settings_of(text)) for text in branch] for branch in parse_branches(layer)]

    layers = enumerate(zip(theirs.layers, ours.layers, strict=True))
    return {i for i, (a, b) in layers if branches(theirs, a) == branches(ours, b)}


def check_sizes(config: ModelConfig, space: TokenSpace, facts: GeneratorFacts, path: Path | str) -> None:
    """Refuse a checkpoint that a model of these sizes cannot start from; names every field that differs."""
    pairs = [(f"model.{name}", getattr(facts.config, name), getattr(config, name)) for name in SHARED_FIELDS]
    pairs += [(name, getattr(facts.space, name), getattr(space, name)) for name in SHARED_SPACE]
    wrong = [f"{name}: {ours!r} here, {theirs!r} in the checkpoint" for name, theirs, ours in pairs if theirs != ours]
    if wrong:
        raise UserError(f"train.init_from: {path} does not fit; {'; '.join(wrong)}; allowed: the checkpoint's values")


@torch.no_grad()
def _copy_chunks(own: Tensor, given: Tensor, width: int) -> None:
    """Copy gates, scales and shifts of k branches into those of more: the first k - 1, and the last one's (the
    feed-forward) to the last place, as `Block` reads them."""
    ours, theirs = own.view(3, -1, width, *own.shape[1:]), given.view(3, -1, width, *given.shape[1:])
    branches = theirs.shape[1]
    if branches > ours.shape[1]:  # a model with fewer branches reads the first ones and the last
        ours.copy_(torch.cat((theirs[:, : ours.shape[1] - 1], theirs[:, -1:]), dim=1))
        return
    ours[:, : branches - 1].copy_(theirs[:, :-1])
    ours[:, -1].copy_(theirs[:, -1])
