"""Published checkpoints of VAR, M-VAR and their tokenizer: loaded as they are, and written so that official code loads.

Sizes, scales, qk-norm, shared AdaLN and the mixers of every layer come from keys and shapes; nothing is edited by
hand. Parameter names here are the official ones, so loading is inference of the config and a strict comparison.
Shapes: `S` scales, `L` tokens, `D` width, `V` codebook size, `C` code channels.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mvar.checkpoint_files import Checkpoint, complain_of_keys, read_checkpoint
from mvar.config import ModelConfig, RunConfig, RuntimeConfig, TokenizerConfig, TokenSpace, from_dict
from mvar.errors import UserError
from mvar.files import atomic_write
from mvar.pattern import format_pattern
from mvar.scales import PATCH_SIDES, ScaleSchedule
from mvar.tokenizer.model import Tokenizer
from mvar.transformer import ScaleTransformer

HEAD_DIM = 64  # of every released generator
# Buffers of official checkpoints that follow from the schedule; kept out of strict comparison, written on export.
BUFFERS = re.compile(r"(^|\.)(lvl_1L|attn_bias_for_masking|zero_k_bias|patch_nums)$")
OFFICIAL_PATTERNS = {"global": "VAR", "intra+mamba": "M-VAR"}


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
) -> tuple[ScaleTransformer, GeneratorFacts]:
    """Load a generator from any checkpoint file of VAR, M-VAR or this project.

    Args:
        path: `.pth` or `.safetensors`; a state dict, or a training checkpoint that holds one.
        patch_sides: the scales, where neither the file nor a known schedule tells them.
        num_heads: attention heads, where the file cannot tell them (no qk-norm, heads not of 64).
        runtime: kernels that the model is to use.

    Returns:
        The model in fp32 on the CPU, in evaluation mode, and what the file said.

    Raises:
        UserError: an unreadable file, another model, keys that are missing, unexpected or mis-shaped (all listed).
    """
    checkpoint = read_checkpoint(path, "generator")
    facts = infer_generator(checkpoint, patch_sides=patch_sides, num_heads=num_heads)
    model = ScaleTransformer.empty(facts.config, facts.space, runtime)
    state = {key: tensor for key, tensor in checkpoint.state.items() if not BUFFERS.search(key)}
    complain_of_keys(checkpoint.path, model.state_dict(), state, str(facts))
    model.load_state_dict(state)
    return model.eval(), facts


def infer_generator(
    checkpoint: Checkpoint, *, patch_sides: Sequence[int] | None = None, num_heads: int | None = None
) -> GeneratorFacts:
    """The configuration of a checkpoint: from its own metadata if this project wrote it, else from keys and shapes.

    Raises:
        UserError: a key that is needed for it is missing; scales or heads that cannot be told or do not fit.
    """
    if "config" in checkpoint.metadata:
        config = from_dict(RunConfig, checkpoint.metadata["config"])
        return GeneratorFacts(config.model, config.token_space)
    reader = _Shapes(checkpoint)
    depth = reader.count("blocks")
    width, code_channels = reader.shape("word_embed.weight")
    assumed: list[str] = []
    if reader.has("blocks.0.attn.scale_mul_1H11"):
        heads = reader.shape("blocks.0.attn.scale_mul_1H11")[1]
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
        "pattern": format_pattern(tuple(_layer(reader, i) for i in range(depth))),
        "mlp_ratio": reader.shape("blocks.0.ffn.fc1.weight")[0] / width,
        "attn_l2_norm": reader.has("blocks.0.attn.scale_mul_1H11"),
        "shared_adaln": reader.has("shared_ada_lin.1.weight"),
    }
    mamba = next((f"blocks.{i}.mamba" for i in range(depth) if reader.has(f"blocks.{i}.mamba.A_log")), None)
    if mamba:
        values["mamba"] = _mamba_sizes(reader, mamba, width)
    space = TokenSpace(
        _patch_sides(reader, patch_sides),
        vocab_size=reader.shape("head.weight")[0],
        code_channels=code_channels,
        num_classes=reader.shape("class_emb.weight")[0] - 1,
    )
    return GeneratorFacts(from_dict(ModelConfig, values), space, tuple(assumed))


class _Shapes:
    """Keys and shapes of a checkpoint; a key that inference needs and does not find is the user's error."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path, self.state = checkpoint.path, checkpoint.state

    def has(self, key: str) -> bool:
        return key in self.state

    def shape(self, key: str) -> tuple[int, ...]:
        if key not in self.state:
            raise UserError(f"checkpoint: {self.path} lacks {key!r}; allowed: complete checkpoints with official keys")
        return tuple(self.state[key].shape)

    def count(self, prefix: str) -> int:
        """How many numbered modules `prefix.N` there are."""
        numbers = {int(m[1]) for key in self.state if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", key))}
        if not numbers or numbers != set(range(len(numbers))):
            raise UserError(
                f"checkpoint: {self.path} has {prefix} {sorted(numbers)}; allowed: all from 0 on, without a gap"
            )
        return len(numbers)


def _layer(reader: _Shapes, number: int) -> str:
    """The mixers of a layer. M-VAR's attention, known by its Mamba or its `patch_nums`, is intra-scale."""
    block = f"blocks.{number}"
    has_mamba = reader.has(f"{block}.mamba.A_log")
    names = ["mamba"] if has_mamba else []
    if reader.has(f"{block}.attn.proj.weight"):
        is_intra = has_mamba or reader.has(f"{block}.attn.patch_nums")
        names.insert(0, "intra" if is_intra else "global")
    if not names:
        raise UserError(
            f"checkpoint: {reader.path} has neither attention nor Mamba in {block}; allowed: VAR's, M-VAR's"
        )
    return "+".join(names)


def _mamba_sizes(reader: _Shapes, prefix: str, width: int) -> dict[str, int]:
    (inner,), (heads,) = reader.shape(f"{prefix}.norm.weight"), reader.shape(f"{prefix}.A_log")
    channels, _, d_conv = reader.shape(f"{prefix}.conv1d.weight")
    return {"d_state": (channels - inner) // 2, "d_conv": d_conv, "expand": inner // width, "headdim": inner // heads}


def _patch_sides(reader: _Shapes, given: Sequence[int] | None) -> tuple[int, ...]:
    """The scales: as given, from a buffer of the checkpoint, or the known schedule of that many scales and tokens."""
    num_scales, num_tokens = reader.shape("lvl_embed.weight")[0], reader.shape("pos_1LC")[1]
    first = reader.shape("pos_start")[1]
    stored = _stored_sides(reader)
    sides = tuple(given) if given else stored
    if sides is None:
        known = {s: ScaleSchedule(s) for s in PATCH_SIDES.values()}
        fitting = [s for s, k in known.items() if (k.num_scales, k.num_tokens) == (num_scales, num_tokens)]
        if not fitting:
            raise UserError(
                f"checkpoint: {reader.path} has {num_scales} scales and {num_tokens} tokens, which no known schedule "
                "has; allowed: give patch_sides"
            )
        sides = fitting[0]
    schedule = ScaleSchedule(sides)
    if (schedule.num_scales, schedule.num_tokens, schedule.lengths[0]) != (num_scales, num_tokens, first) or (
        stored not in (None, sides)
    ):
        of_file = f"the checkpoint's {'-'.join(map(str, stored))}" if stored else "its level and position embeddings"
        raise UserError(
            f"patch_sides: {'-'.join(map(str, sides))} ({schedule.num_scales} scales, {schedule.num_tokens} tokens) "
            f"does not fit {reader.path}; allowed: {of_file} ({num_scales} scales, {num_tokens} tokens, {first} in the "
            "first)"
        )
    return sides


def _stored_sides(reader: _Shapes) -> tuple[int, ...] | None:
    if reader.has("lvl_1L"):
        counts = reader.state["lvl_1L"].flatten().to(torch.int64).bincount().tolist()
    elif reader.has("blocks.0.attn.patch_nums"):  # M-VAR's buffer of that name holds tokens, not sides
        counts = reader.state["blocks.0.attn.patch_nums"].tolist()
    else:
        return None
    return tuple(math.isqrt(count) for count in counts)


# Tokenizers -----------------------------------------------------------------------------------------------------------


def load_tokenizer(path: Path | str, *, patch_sides: Sequence[int] | None = None) -> Tokenizer:
    """Load a tokenizer (official `VQVAE`) from any checkpoint file; its `config` and `in_channels` are inferred.

    Args:
        path: as for `load_generator`.
        patch_sides: the scales that it is to write; a tokenizer's weights fit any. None: the known schedule with as
            many scales as its usage statistics have.

    Returns:
        The tokenizer in fp32 on the CPU, in evaluation mode.

    Raises:
        UserError: as for `load_generator`.
    """
    checkpoint = read_checkpoint(path, "tokenizer")
    config, in_channels = infer_tokenizer(checkpoint, patch_sides)
    tokenizer = Tokenizer(config, in_channels)
    own = tokenizer.state_dict()
    state = {"quantize.ema_vocab_hit_SV": own["quantize.ema_vocab_hit_SV"]} | checkpoint.state  # statistics may lack
    if state["quantize.ema_vocab_hit_SV"].shape[0] != config.schedule.num_scales:
        state["quantize.ema_vocab_hit_SV"] = own["quantize.ema_vocab_hit_SV"]  # of other scales: mean nothing here
    complain_of_keys(checkpoint.path, own, state, f"a tokenizer with {config.vocab_size} codes")
    tokenizer.load_state_dict(state)
    return tokenizer.eval()


def infer_tokenizer(checkpoint: Checkpoint, patch_sides: Sequence[int] | None = None) -> tuple[TokenizerConfig, int]:
    """The configuration of a tokenizer's checkpoint and the channels of its images, from keys and shapes.

    `beta` and `phi_ratio` leave no trace in the weights: they are the official code's 0.25 and 0.5.
    """
    reader = _Shapes(checkpoint)
    if patch_sides is None and "tokenizer" in checkpoint.metadata:
        config = from_dict(TokenizerConfig, checkpoint.metadata["tokenizer"])
        return config, reader.shape("encoder.conv_in.weight")[1]
    width, in_channels = reader.shape("encoder.conv_in.weight")[:2]
    stages = reader.count("encoder.down")
    vocab_size, code_channels = reader.shape("quantize.embedding.weight")
    firsts = [reader.shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(stages)]
    values = {
        "patch_sides": tuple(patch_sides) if patch_sides else _tokenizer_sides(reader),
        "vocab_size": vocab_size,
        "code_channels": code_channels,
        "width": width,
        "channel_multipliers": tuple(channels // width for channels in firsts),
        "num_res_blocks": reader.count("encoder.down.0.block"),
        "attention": reader.has(f"encoder.down.{stages - 1}.attn.0.qkv.weight"),
        "mid_attention": reader.has("encoder.mid.attn_1.qkv.weight"),
        "share_phi": _num_shared_phis(reader),
        "beta": 0.25,
    }
    return from_dict(TokenizerConfig, values), in_channels


def _num_shared_phis(reader: _Shapes) -> int:
    if reader.has("quantize.quant_resi.qresi.weight"):
        return 1
    if reader.has("quantize.quant_resi.0.weight"):
        return 0
    return reader.count("quantize.quant_resi.qresi_ls")


def _tokenizer_sides(reader: _Shapes) -> tuple[int, ...]:
    num_scales = reader.shape("quantize.ema_vocab_hit_SV")[0]
    fitting = [sides for sides in PATCH_SIDES.values() if len(sides) == num_scales]
    if not fitting:
        raise UserError(
            f"checkpoint: {reader.path} has {num_scales} scales, which no known schedule has; allowed: give patch_sides"
        )
    return fitting[0]


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
    if config.pattern not in OFFICIAL_PATTERNS or (config.pattern != "global" and config.shared_adaln):
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


def write_official(path: Path | str, state: dict[str, Tensor]) -> None:
    """Write a state dict as `.pth` or, by its name, `.safetensors`; atomically."""
    path = Path(path)
    if path.suffix not in (".pth", ".safetensors"):
        raise UserError(f"out: {str(path)!r}; allowed: a name that ends in .pth or .safetensors")
    with atomic_write(path) as file:
        if path.suffix == ".pth":
            torch.save(state, file)
        else:
            from safetensors.torch import save

            file.write(save({key: tensor.contiguous() for key, tensor in state.items()}))
