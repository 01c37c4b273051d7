"""Run as a script: train in N gloo processes, with the environment that torchrun gives them.

Arguments: output folder, number of processes, port. The processes are forks of one interpreter. Each stops its
trainings in the middle, goes on, and leaves its weights in the folder.
"""

import os
import sys
import traceback
from functools import partial
from pathlib import Path

import torch
from kill_driver import generator, online, tokenizer
from toy_objective import Toy, split, toy_optim

from mvar.training.loop import fit
from mvar.training.optimizer import build_adamw


def toy(parts):
    return Toy(dropout=0), toy_optim(), split(parts)


class BadPart(Toy):
    """In two steps the loss of the batch's first part alone is not finite, and its gradient knows nothing of it."""

    def loss(self, batch, step):
        error, metrics = super().loss(batch, step)
        has_first = torch.equal(batch[0][0], self.data[self.order.rows(step)[0]])
        return (error + float("nan") if step in (4, 5) and has_first else error), metrics


def shared(strategy, parts=1, precision="fp32", **fields):
    objective, optim, runtime = generator(parts, precision)
    return objective, optim, runtime.model_copy(update={"strategy": strategy, **fields})


HALF = "bf16", "fp16"
CASES = {
    "toy": lambda: toy(1),
    "toy-accumulated": lambda: toy(2),
    "toy-skipping": lambda: (BadPart(dropout=0), toy_optim(), split(1)),
    "generator": generator,
    "generator-accumulated": lambda: generator(2),
    "generator-sharded": lambda: shared("fsdp"),
    "generator-sharded-accumulated": lambda: shared("fsdp", 2, checkpoint_activations="full"),
    **{f"generator-{half}": partial(generator, precision=half) for half in HALF},
    **{f"generator-sharded-{half}": partial(shared, "fsdp", precision=half) for half in HALF},
    "online": lambda: online(workers=1),
    "tokenizer": tokenizer,
}


def train(folder: Path, rank: int) -> None:
    """Train every case in the process group that the environment announces, with one interruption."""
    for name, build in CASES.items():
        calls = []
        objective, optim, runtime = build()
        # only the first process is asked to stop; the others must follow it
        stopped = fit(
            objective,
            optim,
            folder / name,
            runtime,
            seed=3,
            should_stop=lambda calls=calls: rank == 0 and (calls.append(0) or len(calls) == 3),
        )
        assert not stopped.finished
        objective, optim, runtime = build()
        assert fit(objective, optim, folder / name, runtime, seed=3).finished
        torch.save(objective.module.state_dict(), folder / f"{name}-{rank}.pt")


def hand_on(folder: Path) -> None:
    """Begin a training with whole weights and go on with shares of them; one process is to end it."""
    for strategy, start, steps in (("ddp", 0, 2), ("fsdp", 2, 4)):
        objective, optim, runtime = shared(strategy)
        stopped = fit(objective, optim, folder / "handed-on", runtime, seed=3, should_stop=at(steps, start))
        assert (stopped.step, stopped.finished) == (steps, False)


def at(steps: int, start: int):
    """Asks to stop after so many steps of a training that goes on from another; it is asked every second one."""
    asked = iter(range(start, 100, 2))
    return lambda: next(asked) >= steps


def announce(rank: int, world: int, port: str) -> None:
    """The environment that torchrun gives to a process."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, world, port = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    build_adamw(Toy().module, toy_optim())  # its slow imports once, before the forks
    children = []
    for rank in range(world):
        if child := os.fork():
            children.append(child)
            continue
        try:
            if world > 1:
                announce(rank, world, port)
            train(folder, rank)
            if world > 1:
                hand_on(folder)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(statuses))
