"""How a run's steps are made on the GPUs at hand, where `runtime` leaves that open: as `mvar plan --on` says."""

from collections.abc import Iterable, Sequence

import torch

from mvar.config import RunConfig, RuntimeConfig, override
from mvar.errors import UserError, counted, note_once
from mvar.runs.gpu_plan import (
    GB,
    MOST_DRAWN,
    SMALL,
    fewest,
    gpus_needed,
    most_drawn,
    settle,
    smallest,
    told_nearest,
)
from mvar.runs.gpus import Machine
from mvar.training.distributed import current_team, resolve_device
from mvar.training.drawing_footprint import drawing
from mvar.training.strategies import num_parts


def machine_here(gpus: int) -> Machine:
    """So many GPUs like the first one that this process sees."""
    return Machine(gpus, torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GB)


def settled(config: RunConfig) -> RuntimeConfig:
    """A run's `runtime` for this process and those that make the run with it; what it decides is said in one line.

    On CPUs all weights are whole, nothing is recomputed, and a batch is split as `runtime.accumulate` says.

    Raises:
        UserError: no setting fits, or the batch does not divide.
    """
    runtime = config.runtime
    if not runtime.is_open or resolve_device(runtime) == "cpu":
        return runtime.closed()
    team = current_team()
    machine = machine_here(team.world if team else 1)
    num_parts(runtime, config.train, machine.gpus)  # what is set must divide
    found = settle(config, machine)
    if not found:
        raise no_room(config, machine)
    told = counted(machine.gpus, "GPU")
    note_once(f"runtime: auto is {found.fields}: {found.peak_gb:.1f} of {machine.memory_gb:.1f} GB of {told} by count")
    values = {"strategy": found.strategy, "checkpoint_activations": found.kept}
    return runtime.model_copy(update={**values, "micro_batch": found.micro_batch, "accumulate": 1})


def drawn_at_once(config: RunConfig) -> int:
    """How many images this process draws at once: `runtime.sample_batch`; `auto`: as many as fit on its GPU, which is
    said in one line. What is drawn does not depend on it.

    Raises:
        UserError: not one fits.
    """
    size = config.runtime.sample_batch
    if size != "auto":
        return size
    if resolve_device(config.runtime) == "cpu":
        return MOST_DRAWN
    machine = machine_here(1)
    size = most_drawn(config, machine)
    if not size:
        raise no_room_to_draw(config, machine)
    taken = drawing(config, size) / GB
    note_once(f"runtime.sample_batch: auto is {size}: {taken:.1f} of {machine.memory_gb:.1f} GB of a GPU by count")
    return size


def no_room_to_draw(config: RunConfig, machine: Machine) -> UserError:
    """The error for a run whose images do not fit on a card."""
    size = 1 if config.runtime.sample_batch == "auto" else config.runtime.sample_batch
    fit = most_drawn(override(config, {"runtime.sample_batch": "auto"}), machine)
    told = f"{counted(size, 'image')} at once: {drawing(config, size) / GB:.1f} GB, limit {machine.limit_gb:.1f}"
    return UserError(f"runtime.sample_batch: {told}; allowed: {f'{fit} or fewer, or auto' if fit else 'larger GPUs'}")


def gpus_for(config: RunConfig, machine: Machine, counts: Iterable[int] | None = None) -> int:
    """How many GPUs a run is given: one, or where it leaves open how steps are made, or shares its weights among
    processes, as few as it fits on.

    Args:
        config: the run.
        machine: all that there are for it.
        counts: how many it may be given, ascending; None: any number.

    Raises:
        UserError: it does not fit; says what would do.
    """
    if not config.is_planned:
        return 1
    found = fewest(config, machine, counts or range(1, machine.gpus + 1))
    if found is None:
        raise no_room(config, machine)
    return found


def shared_out(configs: Sequence[RunConfig], machine: Machine) -> list[int]:
    """How many GPUs each of some runs is given that train at once: as few as it fits on, or its share of them all where
    none has to wait for that; of those that divide its batch, with `SMALL` images a GPU or more.

    Args:
        configs: the runs; one that is not planned (`RunConfig.is_planned`) has one GPU.
        machine: all that there are for them.

    Raises:
        UserError: a run does not fit; says what would do.
    """
    few = [gpus_for(config, machine) for config in configs]
    share = machine.gpus // max(1, len(configs))
    more = [_raised(config, machine, least, share) for config, least in zip(configs, few, strict=True)]
    return more if sum(more) <= machine.gpus else few


def _raised(config: RunConfig, machine: Machine, least: int, share: int) -> int:
    if not config.is_planned:
        return least
    most = min(share, config.train.batch_size // SMALL)
    return next((n for n in range(most, least, -1) if fewest(config, machine, (n,))), least)


def no_room(config: RunConfig, machine: Machine) -> UserError:
    """The error for a run that does not fit on a machine."""
    gpus = max(n for n in range(1, machine.gpus + 1) if config.train.batch_size % n == 0)
    least = smallest(config, gpus).peak / GB
    needed = gpus_needed(config, machine)
    where = f"{counted(machine.gpus, 'GPU')} of {machine.memory_gb:.0f} GB"
    return UserError(f"runtime: {config.model.pattern} does not fit {where}: {told_nearest(least, machine, needed)}")
