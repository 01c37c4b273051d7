"""What names and shapes of a checkpoint's tensors say of its model: layers, mixers, sizes, scales.

Whatever a file holds, every function here ends with an answer or with a `UserError` that names file and key.
"""

import math
import re
from collections.abc import Sequence

from mvar.checkpoints.checkpoint_files import Checkpoint
from mvar.errors import UserError
from mvar.scales import PATCH_SIDES, ScaleSchedule


class Shapes:
    """Keys and shapes of a checkpoint; a key that inference needs and does not find is the user's error."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path, self.state = checkpoint.path, checkpoint.state

    def has(self, key: str) -> bool:
        return key in self.state

    def shape(self, key: str, num_dims: int) -> tuple[int, ...]:
        """Of a tensor with that many dimensions, none of which is empty."""
        if key not in self.state:
            raise UserError(f"checkpoint: {self.path} lacks {key!r}; allowed: complete checkpoints with official keys")
        shape = tuple(self.state[key].shape)
        if len(shape) != num_dims or not all(shape):
            raise UserError(
                f"checkpoint: {self.path}: {key} has shape {list(shape)[:8]}; allowed: {num_dims} dimensions, not 0"
            )
        return shape

    def count(self, prefix: str) -> int:
        """How many numbered modules `prefix.N` there are."""
        numbers = {int(m[1]) for key in self.state if (m := re.match(rf"{re.escape(prefix)}\.(\d{{1,9}})\.", key))}
        if not numbers or numbers != set(range(len(numbers))):
            raise UserError(
                f"checkpoint: {self.path} has {prefix} {sorted(numbers)[:20]}; allowed: all from 0 on, without a gap"
            )
        return len(numbers)


def layer(reader: Shapes, number: int) -> str:
    """The mixers of a layer. M-VAR's attention, known by its Mamba or its `patch_nums`, is intra-scale.

    The two are in parallel where the modulation is that of one branch and the feed-forward.
    """
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
    return ("|" if _num_branches(reader, block) == 2 else "+").join(names)


def _num_branches(reader: Shapes, block: str) -> int:
    """Branches of a layer, its feed-forward among them: gate, scale and shift of each modulate it."""
    own, shared = f"{block}.ada_lin.1.weight", f"{block}.ada_gss"
    if reader.has(own):
        rows, width = reader.shape(own, 2)
        return rows // width // 3
    return reader.shape(shared, 4)[2] // 3 if reader.has(shared) else 0


def mamba_sizes(reader: Shapes, prefix: str, width: int) -> dict[str, int]:
    (inner,), (heads,) = reader.shape(f"{prefix}.norm.weight", 1), reader.shape(f"{prefix}.A_log", 1)
    channels, _, d_conv = reader.shape(f"{prefix}.conv1d.weight", 3)
    return {"d_state": (channels - inner) // 2, "d_conv": d_conv, "expand": inner // width, "headdim": inner // heads}


def patch_sides_of(reader: Shapes, given: Sequence[int] | None) -> tuple[int, ...]:
    """The scales: as given, from a buffer of the checkpoint, or the known schedule of that many scales and tokens."""
    num_scales, num_tokens, _ = _told_lengths(reader)
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
    check_sides(reader, sides, stored)
    return sides


def _told_lengths(reader: Shapes) -> tuple[int, int, int]:
    """Scales, tokens, and tokens of the first scale, as the embeddings have them."""
    num_tokens, first = reader.shape("pos_1LC", 3)[1], reader.shape("pos_start", 3)[1]
    return reader.shape("lvl_embed.weight", 2)[0], num_tokens, first


def check_sides(reader: Shapes, sides: tuple[int, ...], stored: tuple[int, ...] | None) -> None:
    """Refuse sides that do not fit the embeddings, or are not those that the file names."""
    num_scales, num_tokens, first = _told_lengths(reader)
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


def _stored_sides(reader: Shapes) -> tuple[int, ...] | None:
    if reader.has("lvl_1L"):
        counts = reader.state["lvl_1L"].flatten().unique(return_counts=True)[1].tolist()
    elif reader.has("blocks.0.attn.patch_nums"):  # M-VAR's buffer of that name holds tokens, not sides
        counts = [int(count) for count in reader.state["blocks.0.attn.patch_nums"].flatten().nan_to_num(0).tolist()]
    else:
        return None
    sides = tuple(math.isqrt(max(count, 0)) for count in counts)
    if not sides or sides[0] < 1 or list(sides) != sorted(sides):
        raise UserError(
            f"checkpoint: {reader.path}: lvl_1L or patch_nums hold no schedule ({list(sides)[:20]}); allowed: ascending"
        )
    return sides


def num_shared_phis(reader: Shapes) -> int:
    if reader.has("quantize.quant_resi.qresi.weight"):
        return 1
    if reader.has("quantize.quant_resi.0.weight"):
        return 0
    return reader.count("quantize.quant_resi.qresi_ls")


def tokenizer_sides(reader: Shapes) -> tuple[int, ...]:
    num_scales = reader.shape("quantize.ema_vocab_hit_SV", 2)[0]
    fitting = [sides for sides in PATCH_SIDES.values() if len(sides) == num_scales]
    if not fitting:
        raise UserError(
            f"checkpoint: {reader.path} has {num_scales} scales, which no known schedule has; allowed: give patch_sides"
        )
    return fitting[0]
