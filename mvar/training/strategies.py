"""How the processes of a training share a step: its batch in micro-batches, and who holds which weights."""

from mvar.config import OptimConfig, RuntimeConfig
from mvar.errors import UserError


def num_parts(runtime: RuntimeConfig, optim: OptimConfig, processes: int) -> int:
    """Micro-batches of each process in a step.

    Raises:
        UserError: the batch does not divide; says into what it would.
    """
    batch = optim.batch_size
    if isinstance(runtime.micro_batch, int):
        if batch % (processes * runtime.micro_batch):
            raise UserError(
                f"micro_batch: {runtime.micro_batch} images in {processes} processes do not divide batch_size {batch}; "
                + (f"allowed: divisors of {batch // processes}" if batch % processes == 0 else _allowed(processes))
            )
        return batch // processes // runtime.micro_batch
    parts = processes * runtime.accumulate
    if batch % parts:
        raise UserError(
            f"batch_size: {batch} does not divide into {processes} processes x accumulate {runtime.accumulate}; "
            f"allowed: multiples of {parts}"
        )
    return runtime.accumulate


def _allowed(processes: int) -> str:
    return f"allowed: a batch_size that {processes} processes divide"
