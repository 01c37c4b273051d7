"""Published checkpoints of VAR, M-VAR and their tokenizer: loaded as they are, and written so that official code loads.

Sizes, scales, qk-norm, shared AdaLN and the mixers of every layer come from keys and shapes; nothing is edited by
hand. Parameter names here are the official ones, so loading is inference of the config and a strict comparison.
Shapes: `S` scales, `L` tokens, `D` width, `V` codebook size, `C` code channels.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvar.checkpoints.checkpoint_files import Checkpoint, complain_of_keys, read_checkpoint
from mvar.checkpoints.checkpoint_shapes import (
    Shapes,
    check_sides,
    layer,
    mamba_sizes,
    num_shared_phis,
    patch_sides_of,
    tokenizer_sides,
)
from mvar.checkpoints.weights import METADATA, complain_of_values, to_safetensors
from mvar.config import ModelConfig, RunConfig, RuntimeConfig, TokenizerConfig, TokenSpace, from_dict
from mvar.errors import UserError, in_field
from mvar.files import atomic_write
from mvar.pattern import format_pattern
from mvar.tokenizer.model import Tokenizer
from mvar.transformer import ScaleTransformer

HEAD_DIM = 64  # of every released generator
# Buffers of official checkpoints that follow from the schedule; kept out of strict comparison, written on export.
BUFFERS = re.compile(r"(^|\.)(lvl_1L|attn_bias_for_masking|zero_k_bias|patch_nums)$")
OFFICIAL_PATTERNS = {"global": "VAR", "intra+mamba": "M-VAR"}
UNTOLD = ("beta", "phi_ratio")  # of a tokenizer: what its weights cannot tell


@dataclass(frozen=True)
class GeneratorFacts:
    """What a generator's checkpoint says of itself; `assumed` is what its keys cannot tell."""

    config: ModelConfig
    space: TokenSpace
    assumed: tuple[str, ...] = ()

    def __str__(self) -> str:
        c, s = self.config, self.space
        name = OFFICIAL_PATTERNS.get(c.pattern, "mixed")
        text = (
            f"{name}: {c.depth} layers ({c.pattern}), width {c.width}, {c.num_heads} heads, "
            f"qk-norm {'on' if c.attn_l2_norm else 'off'}, shared AdaLN {'on' if c.shared_adaln else 'off'}, "
            f"{s.num_classes} classes, scales {'-'.join(map(str, s.patch_sides))}, "
            f"{s.vocab_size} codes of {s.code_channels} channels"
        )
        return text + "".join(f"; assumed: {fact}" for fact in self.assumed)


# Generators -----------------------------------------------------------------------------------------------------------


def load_generator(
    path: Path | str,
    *,
    patch_sides: Sequence[int] | None = None,
    num_heads: int | None = None,
    runtime: RuntimeConfig = RuntimeConfig(),
    weights: str = "",
) -> tuple[ScaleTransformer, GeneratorFacts]:
    """Load a generator from any checkpoint file of VAR, M-VAR or this project.

    Args:
        path: `.pth`, `.safetensors` or the index of its shards; a state dict, or a training checkpoint that holds one.
        patch_sides: the scales, where neither the file nor a known schedule tells them.
        num_heads: attention heads, where the file cannot tell them (no qk-norm, heads not of 64).
        runtime: kernels that the model is to use.
        weights: which of several models in the file, e.g. `ema`; `FILE#ema` as the path says the same.

    Returns:
        The model in fp32 on the CPU, in evaluation mode, and what the file said.

    Raises:
        UserError: an unreadable file, another model, keys that are missing, unexpected or mis-shaped (all listed),
            values that are not finite.
    """
    checkpoint = read_checkpoint(path, "generator", weights)
    facts = infer_generator(checkpoint, patch_sides=patch_sides, num_heads=num_heads)
    state = {key: tensor for key, tensor in checkpoint.state.items() if not BUFFERS.search(key)}
    expected = _without_memory(checkpoint, lambda: ScaleTransformer(facts.config, facts.space, runtime))
    complain_of_keys(checkpoint.path, expected, state, str(facts))
    complain_of_values(checkpoint.path, state)
    model = ScaleTransformer.empty(facts.config, facts.space, runtime)
    model.load_state_dict(state)
    return model.eval(), facts


def infer_generator(
    checkpoint: Checkpoint, *, patch_sides: Sequence[int] | None = None, num_heads: int | None = None
) -> GeneratorFacts:
    """The configuration of a checkpoint: from its own metadata if this project wrote it, else from keys and shapes.

    Raises:
        UserError: a key that is needed for it is missing; scales or heads that cannot be told or do not fit.
    """
    reader = Shapes(checkpoint)
    depth = reader.count("blocks")
    width, code_channels = reader.shape("word_embed.weight", 2)
    if "config" in checkpoint.metadata:
        return _told_by_metadata(reader, checkpoint.metadata["config"], patch_sides)
    assumed: list[str] = []
    if reader.has("blocks.0.attn.scale_mul_1H11"):
        heads = reader.shape("blocks.0.attn.scale_mul_1H11", 4)[1]
    elif num_heads or not reader.has("blocks.0.attn.proj.weight"):
        heads = num_heads or max(1, width // HEAD_DIM)
    elif width % HEAD_DIM == 0:
        heads = width // HEAD_DIM
        assumed.append(f"{heads} heads, {HEAD_DIM} channels each as in every released model (num_heads says otherwise)")
    else:
        raise UserError(
            f"checkpoint: {checkpoint.path} has no qk-norm and width {width} is no multiple of {HEAD_DIM}: "
            "its heads cannot be told; allowed: give num_heads"
        )
    values = {
        "depth": depth,
        "width": width,
        "num_heads": heads,
        "pattern": format_pattern(tuple(layer(reader, i) for i in range(depth))),
        "mlp_ratio": reader.shape("blocks.0.ffn.fc1.weight", 2)[0] / width,
        "attn_l2_norm": reader.has("blocks.0.attn.scale_mul_1H11"),
        "shared_adaln": reader.has("shared_ada_lin.1.weight"),
    }
    mamba = next((f"blocks.{i}.mamba" for i in range(depth) if reader.has(f"blocks.{i}.mamba.A_log")), None)
    if mamba:
        values["mamba"] = mamba_sizes(reader, mamba, width)
    space = TokenSpace(
        patch_sides_of(reader, patch_sides),
        vocab_size=reader.shape("head.weight", 2)[0],
        code_channels=code_channels,
        num_classes=reader.shape("class_emb.weight", 2)[0] - 1,
    )
    return GeneratorFacts(from_dict(ModelConfig, values), space, tuple(assumed))


def _told_by_metadata(reader: Shapes, values: Any, patch_sides: Sequence[int] | None) -> GeneratorFacts:
    """What the file says itself. Its depth is compared with its keys before a config of that depth is made."""
    depth = reader.count("blocks")
    with in_field(f"checkpoint: {reader.path}: its configuration"):
        try:
            told = values["model"]["depth"]
        except (KeyError, TypeError):
            raise UserError("has no model.depth; allowed: as a run writes it") from None
        if told != depth:
            raise UserError(f"model.depth {told!r}; allowed: {depth}, the layers that the file holds")
        config = from_dict(RunConfig, values)
    sides = config.tokenizer.patch_sides
    check_sides(reader, sides if patch_sides is None else tuple(patch_sides), sides)
    return GeneratorFacts(config.model, config.token_space)


def _without_memory(checkpoint: Checkpoint, make: Callable[[], nn.Module]) -> Mapping[str, Tensor]:
    """Names and shapes of the model that a file's facts make, before any memory is taken for it."""
    try:
        with torch.device("meta"):
            return make().state_dict()
    except (RuntimeError, ValueError, TypeError, OverflowError, ZeroDivisionError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"checkpoint: {checkpoint.path}: no model has its sizes ({reason}); allowed: VAR's") from None


# Tokenizers -----------------------------------------------------------------------------------------------------------


def load_tokenizer(path: Path | str, *, patch_sides: Sequence[int] | None = None, weights: str = "") -> Tokenizer:
    """Load a tokenizer (official `VQVAE`) from any checkpoint file; its `config` and `in_channels` are inferred.

    Args:
        path: as for `load_generator`.
        patch_sides: the scales that it is to write; a tokenizer's weights fit any. None: the known schedule with as
            many scales as its usage statistics have.
        weights: as for `load_generator`.

    Returns:
        The tokenizer in fp32 on the CPU, in evaluation mode.

    Raises:
        UserError: as for `load_generator`.
    """
    checkpoint = read_checkpoint(path, "tokenizer", weights)
    config, in_channels = infer_tokenizer(checkpoint, patch_sides)
    expected = _without_memory(checkpoint, lambda: Tokenizer(config, in_channels))
    state = {"quantize.ema_vocab_hit_SV": expected["quantize.ema_vocab_hit_SV"]} | checkpoint.state
    usage = state["quantize.ema_vocab_hit_SV"]
    if not usage.ndim or usage.shape[0] != config.schedule.num_scales:  # of other scales: they mean nothing here
        usage = expected["quantize.ema_vocab_hit_SV"]
    state["quantize.ema_vocab_hit_SV"] = torch.zeros_like(usage, device="cpu") if usage.is_meta else usage
    complain_of_keys(checkpoint.path, expected, state, f"a tokenizer with {config.vocab_size} codes")
    complain_of_values(checkpoint.path, state)
    tokenizer = Tokenizer(config, in_channels)
    tokenizer.load_state_dict(state)
    return tokenizer.eval()


def infer_tokenizer(checkpoint: Checkpoint, patch_sides: Sequence[int] | None = None) -> tuple[TokenizerConfig, int]:
    """The configuration of a tokenizer's checkpoint and the channels of its images.

    Files of this project tell all of it; from others it is inferred from keys and shapes. `beta` and `phi_ratio` leave
    no trace in the weights: where the file does not tell them they are the official code's 0.25 and 0.5.
    """
    reader = Shapes(checkpoint)
    width, in_channels = reader.shape("encoder.conv_in.weight", 4)[:2]
    told = checkpoint.metadata.get("tokenizer")
    own = None
    if told is not None:
        with in_field(f"checkpoint: {checkpoint.path}: its configuration"):
            own = from_dict(TokenizerConfig, told)
            _check_told(reader, own)
        if patch_sides is None:
            return own, in_channels
    stages = reader.count("encoder.down")
    vocab_size, code_channels = reader.shape("quantize.embedding.weight", 2)
    firsts = [reader.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(stages)]
    values = {
        "patch_sides": tuple(patch_sides) if patch_sides else tokenizer_sides(reader),
        "vocab_size": vocab_size,
        "code_channels": code_channels,
        "width": width,
        "channel_multipliers": tuple(channels // width for channels in firsts),
        "num_res_blocks": reader.count("encoder.down.0.block"),
        "attention": reader.has(f"encoder.down.{stages - 1}.attn.0.qkv.weight"),
        "mid_attention": reader.has("encoder.mid.attn_1.qkv.weight"),
        "share_phi": num_shared_phis(reader),
        "beta": 0.25,
    }
    if own:
        values |= {name: getattr(own, name) for name in UNTOLD}
    return from_dict(TokenizerConfig, values), in_channels


def _check_told(reader: Shapes, config: TokenizerConfig) -> None:
    """Compare the numbers of modules that a file claims with those that it holds, before any is made."""
    stages, blocks = reader.count("encoder.down"), reader.count("encoder.down.0.block")
    found = {"channel_multipliers": stages, "num_res_blocks": blocks}
    told = {"channel_multipliers": len(config.channel_multipliers), "num_res_blocks": config.num_res_blocks}
    if told != found:
        raise UserError(f"it tells of {told}; allowed: {found}, as its keys have them")
    if config.phi_ratio > 1e-6 and config.share_phi != num_shared_phis(reader):
        raise UserError(f"share_phi {config.share_phi}; allowed: {num_shared_phis(reader)}, as its keys have them")


def check_pair(config: TokenizerConfig, space: TokenSpace) -> None:
    """Whether a tokenizer of this config writes the tokens that a generator models.

    Raises:
        UserError: another codebook or other scales; names both.
    """
    theirs = {
        "codebook": f"{config.vocab_size} codes of {config.code_channels} channels",
        "scales": "-".join(map(str, config.patch_sides)),
    }
    ours = {
        "codebook": f"{space.vocab_size} codes of {space.code_channels} channels",
        "scales": "-".join(map(str, space.patch_sides)),
    }
    for what, value in theirs.items():
        if value != ours[what]:
            raise UserError(f"tokenizer: its {what} ({value}) do not fit the generator's; allowed: {ours[what]}")


# Export ---------------------------------------------------------------------------------------------------------------


def official_state(model: ScaleTransformer) -> dict[str, Tensor]:
    """A generator's state dict with the official keys and buffers, which the official code loads strictly.

    Raises:
        UserError: a model that the official code cannot build: mixed layers, other mixers, M-VAR with shared AdaLN.
    """
    config, schedule = model.config, model.schedule
    if config.resolved_pattern not in OFFICIAL_PATTERNS or (config.pattern != "global" and config.shared_adaln):
        raise UserError(
            f"export: official code has no model with pattern {config.pattern!r} and shared AdaLN "
            f"{'on' if config.shared_adaln else 'off'}; allowed: 'global' (VAR), or 'intra+mamba' without shared AdaLN "
            "(M-VAR); model.safetensors of the run holds any model"
        )
    state = {key: tensor.detach().cpu().clone() for key, tensor in model.state_dict().items()}
    levels = torch.tensor(schedule.levels)
    visible = levels[:, None] >= levels if config.pattern == "global" else levels[:, None] == levels
    bias = torch.where(visible, 0.0, -torch.inf)
    state |= {"lvl_1L": levels[None], "attn_bias_for_masking": bias[None, None]}
    for i in range(config.depth):
        state[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(config.width)
        if config.pattern != "global":
            state[f"blocks.{i}.attn.patch_nums"] = torch.tensor(schedule.lengths, dtype=torch.int32)
    return state


def write_official(path: Path | str, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write a state dict as `.pth` or, by its name, `.safetensors`; atomically.

    Args:
        metadata: the configuration, JSON values, which this project reads back and the official code passes over: in
            the header of a `.safetensors` file; in a `.pth` file in the state dict's `_metadata`, where torch keeps
            the modules' versions and looks for the names of modules only.
    """
    path = Path(path)
    if path.suffix not in (".pth", ".safetensors"):
        raise UserError(f"out: {str(path)!r}; allowed: a name that ends in .pth or .safetensors")
    with atomic_write(path) as file:
        if path.suffix == ".safetensors":
            file.write(to_safetensors(state, metadata or {}))
            return
        ordered = OrderedDict(state)
        if metadata:
            kept = {METADATA: {"json": json.dumps(metadata, allow_nan=False)}}
            ordered._metadata = kept  # pyright: ignore[reportAttributeAccessIssue]  torch's own name, see above
        torch.save(ordered, file)
