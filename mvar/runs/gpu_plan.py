"""What runs take on given GPUs: memory, the settings that fit, GPU-hours and disk; counted, nothing is run."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mvar import cost
from mvar.config import DataConfig, RunConfig
from mvar.data.sources.contract import find
from mvar.data.tokens import token_dtype
from mvar.errors import UserError
from mvar.evaluation.copies import MAX_SIDE
from mvar.kernels.recompute import Kept
from mvar.runs.gpus import Machine
from mvar.runs.stage_costs import encoding_flops, num_images
from mvar.runs.store import Store
from mvar.training.drawing_footprint import drawing
from mvar.training.footprint import Footprint, Strategy, footprint
from mvar.training.strategies import NO_MEANS, num_parts

# FLOPs of a step over those without recomputing: backward costs two forward passes, and `full` does a third.
RECOMPUTED: dict[Kept, float] = {"none": 1.0, "selective": 1.0, "full": 4 / 3}
MOST_DRAWN = 50  # at once, as the official code does; more are hardly quicker
SMALL = 8  # images a card: below, recomputing layers costs less than the card's idle units
LABEL_BYTES = 8  # of a row of a token cache
GB = 1e9


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


@dataclass(frozen=True)
class Choices:
    """The settings that a step may be made with."""

    strategies: tuple[Strategy, ...]
    kept: tuple[Kept, ...]
    micro_batch: int | None  # None: any that divides

    @classmethod
    def of(cls, config: RunConfig, gpus: int) -> "Choices":
        """What a run leaves open by `auto`; running means of its weights are kept by `ddp` alone.

        Raises:
            UserError: it is to be sharded, and to keep such means.
        """
        runtime = config.runtime
        if config.train.ema and runtime.strategy == "fsdp" and gpus > 1:
            raise UserError(NO_MEANS)
        size = runtime.images_at_once
        if runtime.micro_batch is None:
            size = config.train.batch_size // gpus // runtime.accumulate
        kept, strategy = runtime.checkpoint_activations, runtime.strategy
        free: tuple[Strategy, ...] = ("ddp",) if config.train.ema else ("ddp", "fsdp")
        return cls(
            strategies=free if strategy == "auto" else (strategy,),
            kept=("none", "selective", "full") if kept == "auto" else (kept,),
            micro_batch=size,
        )

    def sizes(self, part: int) -> list[int]:
        """Micro-batches that divide a part."""
        return [n for n in range(1, part + 1) if part % n == 0 and self.micro_batch in (None, n)]

    def shared(self, gpus: int) -> tuple[Strategy, ...]:
        """Strategies on so many GPUs: one has nobody to share with."""
        return self.strategies if gpus > 1 else ("ddp",)


def part_of(config: RunConfig, gpus: int) -> int:
    """Images of a step that each GPU works on.

    Raises:
        UserError: the batch does not divide.
    """
    batch = config.train.batch_size
    if batch % gpus:
        raise UserError(
            f"train.batch_size: {batch} images do not divide into {gpus} GPUs; allowed: a divisor of {batch}"
        )
    return batch // gpus


def settle(config: RunConfig, machine: Machine) -> Setting | None:
    """The quickest setting that fits, of what the run leaves open; None where nothing does.

    All is kept before anything is recomputed, weights are whole before they are shared, and micro-batches are as large
    as fit; but those below `SMALL` images come last.

    Raises:
        UserError: the batch does not divide.
    """
    part, choices = part_of(config, machine.gpus), Choices.of(config, machine.gpus)
    num_parts(config.runtime, config.train, machine.gpus)  # what is set must divide
    sizes = choices.sizes(part)
    if not sizes or smallest(config, machine.gpus).peak / GB > machine.limit_gb:
        return None
    for least in (min(SMALL, part), 1):
        for kept in choices.kept:
            for strategy in choices.shared(machine.gpus):

                def peak(size: int, kept: Kept = kept, strategy: Strategy = strategy) -> float:
                    return footprint(config, size, kept, strategy, machine.gpus).peak / GB

                allowed = [size for size in sizes if size >= least]
                if fit := bisect_right(allowed, machine.limit_gb, key=peak):
                    return Setting(strategy, kept, allowed[fit - 1], peak(allowed[fit - 1]))
    return None


def smallest(config: RunConfig, gpus: int) -> Footprint:
    """What a step takes at least: sharded, recomputed, an image at a time, as far as the run leaves that open."""
    choices = Choices.of(config, gpus)
    size = min(choices.sizes(config.train.batch_size // gpus), default=1)
    return footprint(config, size, choices.kept[-1], choices.shared(gpus)[-1], gpus)


def gpus_needed(config: RunConfig, machine: Machine) -> int | None:
    """The fewest such cards, more than there are, that a run fits on; None: no number that divides its batch."""
    batch = config.train.batch_size
    dividing = (gpus for gpus in range(machine.gpus + 1, batch + 1) if batch % gpus == 0)
    counts = (gpus for gpus in dividing if Choices.of(config, gpus).sizes(batch // gpus))
    return next((gpus for gpus in counts if smallest(config, gpus).peak / GB <= machine.limit_gb), None)


def opened(config: RunConfig) -> RunConfig:
    """The run with all of how its steps are made left open."""
    open_fields = {"strategy": "auto", "micro_batch": "auto", "checkpoint_activations": "auto", "accumulate": 1}
    return config.model_copy(update={"runtime": config.runtime.model_copy(update=open_fields)})


def fewest(config: RunConfig, machine: Machine, counts: Iterable[int]) -> int | None:
    """The fewest of a machine's GPUs that a run fits on with what it leaves open, `SMALL` images a GPU if that can be.

    Args:
        config: the run.
        machine: all GPUs that there are.
        counts: how many a run may be given, ascending.
    """
    batch = config.train.batch_size
    dividing = [gpus for gpus in counts if gpus <= machine.gpus and batch % gpus == 0]
    for least in (SMALL, 1):
        for gpus in dividing:
            part, choices = batch // gpus, Choices.of(config, gpus)
            sizes = [size for size in choices.sizes(part) if size >= min(least, part)]
            if sizes:
                taken = footprint(config, sizes[0], choices.kept[-1], choices.shared(gpus)[-1], gpus)
                if taken.peak / GB <= machine.limit_gb:
                    return gpus
    return None


def most_drawn(config: RunConfig, machine: Machine) -> int:
    """How many images a run draws at once on such a card: `runtime.sample_batch`; `auto`: as many as fit, 0 if not one
    does."""
    size = config.runtime.sample_batch
    if size != "auto":
        return size
    return bisect_right(range(1, MOST_DRAWN + 1), machine.limit_gb, key=lambda images: drawing(config, images) / GB)


def told_nearest(least_gb: float, machine: Machine, needed: int | None) -> str:
    """Where nothing fits: what a step takes at least, and what would do."""
    told = f"{least_gb:.1f} GB a GPU at least, limit {machine.limit_gb:.1f}"
    return f"{told}; {needed} such GPUs would do" if needed else f"{told}; no number of such GPUs would do"


def gpu_hours(config: RunConfig, machine: Machine, setting: Setting, mfu: float) -> float:
    """Training alone, at a share of the cards' rate; recomputed FLOPs count as work, not as progress. Images that are
    encoded as they come are encoded in fp32, at the same share of its rate."""
    tf32, images = config.runtime.tf32, config.train.steps * config.train.batch_size
    flops = cost.train_flops(config.model, config.token_space, images) * RECOMPUTED[setting.kept]
    seconds = flops / machine.flops_per_s(config.train.precision, tf32)
    if config.train.tokens == "online":
        seconds += images * encoding_flops(config) / machine.flops_per_s("fp32", tf32)
    return seconds / mfu / 3600


def disk_gb(evaluations: Sequence[RunConfig]) -> float:
    """What a run takes of the disk, at the moment when that is most.

    While it trains that is its checkpoints and one more, which is written before the oldest goes. Afterwards a
    checkpoint, weights and images stay; those of the evaluation that is being drawn lie there twice.

    Args:
        evaluations: of one run, all that are wanted of it.
    """
    config, means = evaluations[0], len(evaluations[0].train.ema)
    weights = 4 * cost.num_params(config.model, config.token_space)
    checkpoint = (3 + means) * weights
    images = {one.evaluation_id: one.evaluation.num_images * _pixels(one.data) for one in evaluations}.values()
    training = (config.runtime.keep_checkpoints + 1) * checkpoint
    return max(training, checkpoint + (1 + means) * weights + sum(images) + max(images)) / GB


def shared_gb(configs: Iterable[RunConfig], store: Store) -> float | None:
    """Token caches, and training images as near-copies are searched among them: once for all runs that share them.

    None where the data of some were not looked at yet.
    """
    found: dict[str, float] = {}
    for config in configs:
        train, heldout = num_images(config, store)
        if not train:
            return None
        schedule, codes = config.token_space.schedule, token_dtype(config.tokenizer.vocab_size).itemsize
        rows = train * config.cached_crops + heldout
        found[f"tokens {config.tokens_id}"] = rows * (schedule.num_tokens * codes + LABEL_BYTES)
        if not find(config.data.name).in_memory:
            found[f"vectors {config.data_id}"] = train * min(_pixels(config.data), MAX_SIDE**2 * config.data.channels)
    return sum(found.values()) / GB


def _pixels(data: DataConfig) -> int:
    """Bytes of an image."""
    return data.image_size**2 * data.channels
