"""What runs take on given GPUs: memory, the settings that fit, GPU-hours and disk; counted, nothing is run."""

import re
from bisect import bisect_right
from dataclasses import dataclass

from mvar import cost
from mvar.config import RunConfig
from mvar.errors import UserError, one_of
from mvar.kernels.recompute import Kept
from mvar.training.footprint import Footprint, Strategy, footprint

# Dense bf16 FLOP/s of a card's matrix units, by the makers' data sheets.
CARDS = {"a100": 312e12, "h100": 989e12, "h200": 989e12, "b200": 2250e12, "l40s": 362e12, "rtx4090": 165e12}
USABLE = 0.95  # of a card's memory: 76 of 80 GB; the rest is the allocator's, the kernels' and the network's
FP32_SHARE = 0.5  # of the bf16 rate, by TF32
# FLOPs of a step over those without recomputing: backward costs two forward passes, and `full` does a third.
RECOMPUTED: dict[Kept, float] = {"none": 1.0, "selective": 1.0, "full": 4 / 3}
SMALL = 8  # images a card: below, recomputing layers costs less than the card's idle units
GB = 1e9


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind, on one node or many."""

    gpus: int
    card: str
    memory_gb: float

    @classmethod
    def parse(cls, text: str) -> "Machine":
        """`8xh100-80gb`: so many cards of a kind, each with its memory.

        Raises:
            UserError: another form, or a card whose speed is not known here.
        """
        found = re.fullmatch(r"([1-9]\d{0,4})x([a-z0-9]+)-([1-9]\d{0,3})gb", text.strip().lower())
        if not found:
            raise UserError(f"on: {text!r:.60} is no such machine; allowed: COUNTxCARD-MEMORYgb, e.g. 8xh100-80gb")
        if found[2] not in CARDS:
            raise one_of("on: card", found[2], CARDS)
        return cls(int(found[1]), found[2], float(found[3]))

    @property
    def limit_gb(self) -> float:
        """What a step may take of a card."""
        return USABLE * self.memory_gb

    def flops_per_s(self, precision: str) -> float:
        """Of one card, at best."""
        return CARDS[self.card] * (FP32_SHARE if precision == "fp32" else 1)


@dataclass(frozen=True)
class Setting:
    """How a run's step is made on a machine, and what it takes of each card."""

    strategy: Strategy
    kept: Kept
    micro_batch: int
    peak_gb: float

    @property
    def fields(self) -> str:
        """As it is set."""
        return (
            f"runtime.strategy={self.strategy} runtime.checkpoint_activations={self.kept} "
            f"runtime.micro_batch={self.micro_batch}"
        )


def settle(config: RunConfig, machine: Machine) -> Setting | None:
    """The quickest setting that fits; None where nothing does.

    All is kept before anything is recomputed, weights are whole before they are shared, and micro-batches are as large
    as fit; but those below `SMALL` images come last.

    Raises:
        UserError: the batch does not divide.
    """
    part, rest = divmod(config.train.batch_size, machine.gpus)
    if rest:
        batch = config.train.batch_size
        raise UserError(
            f"train.batch_size: {batch} images do not divide into {machine.gpus} GPUs; allowed: a divisor of {batch}"
        )
    if smallest(config, machine.gpus).peak / GB > machine.limit_gb:
        return None
    sizes = [size for size in range(1, part + 1) if part % size == 0]
    strategies: tuple[Strategy, ...] = ("ddp", "fsdp") if machine.gpus > 1 else ("ddp",)
    for least in (min(SMALL, part), 1):
        for kept in ("none", "selective", "full"):
            for strategy in strategies:

                def peak(size: int, kept: Kept = kept, strategy: Strategy = strategy) -> float:
                    return footprint(config, size, kept, strategy, machine.gpus).peak / GB

                allowed = [size for size in sizes if size >= least]
                if fit := bisect_right(allowed, machine.limit_gb, key=peak):
                    return Setting(strategy, kept, allowed[fit - 1], peak(allowed[fit - 1]))
    return None


def smallest(config: RunConfig, gpus: int) -> Footprint:
    """What a step takes at least: sharded, recomputed, an image at a time."""
    return footprint(config, 1, "full", "fsdp" if gpus > 1 else "ddp", gpus)


def gpus_needed(config: RunConfig, machine: Machine) -> int | None:
    """The fewest such cards, more than there are, that a run fits on; None: no number that divides its batch."""
    batch = config.train.batch_size
    counts = (gpus for gpus in range(machine.gpus + 1, batch + 1) if batch % gpus == 0)
    return next((gpus for gpus in counts if smallest(config, gpus).peak / GB <= machine.limit_gb), None)


def gpu_hours(config: RunConfig, machine: Machine, setting: Setting, mfu: float) -> float:
    """Training alone, at a share of the cards' rate; recomputed FLOPs count as work, not as progress."""
    flops = cost.train_flops(config.model, config.token_space, config.train.steps * config.train.batch_size)
    return flops * RECOMPUTED[setting.kept] / (machine.flops_per_s(config.train.precision) * mfu) / 3600


def disk_gb(config: RunConfig) -> float:
    """Checkpoints on the way, weights in the end and drawn images; token caches are shared and not counted."""
    weights = 4 * cost.num_params(config.model, config.token_space)
    means = len(config.train.ema)
    checkpoints = config.runtime.keep_checkpoints * (3 + means) * weights
    pixels = config.evaluation.num_images * config.data.image_size**2 * config.data.channels
    return (checkpoints + (1 + means) * weights + pixels) / GB
