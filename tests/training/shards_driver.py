"""Run as a script: two gloo processes go on with what others have begun, and measure what a restore takes.

Arguments: output folder, port. The folders `alone` and `wide` hold trainings that one process has made.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path

import torch
from kill_driver import generator
from process_driver import announce, at
from torch.profiler import ProfilerActivity, profile

from mvar.training import loop
from mvar.training.footprint import step
from mvar.training.kept import newest_first
from mvar.training.loop import fit
from mvar.training.shares import local, whole

LEGS = {"alone": ("fsdp", "ddp"), "ddp": ("ddp", "fsdp"), "fsdp": ("fsdp", "ddp", "fsdp")}
STEPS = 2  # of a leg


def peak_bytes(work) -> int:
    """The most memory that tensors made meanwhile take at one time."""
    gc.collect()  # what is freed meanwhile would make it less
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    live = peak = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def restore_of(directory: Path, strategy: str) -> dict:
    """The most that a process holds from the making of the model until it is restored, and its share of weights and
    moments, in bytes.

    A file is mapped, which counts as memory here although its pages are the disk's.
    """
    newest = newest_first(directory / "checkpoints")[0]
    mapped = newest.stat().st_size if newest.is_file() else 0
    _, optim, runtime = wide(strategy)
    began = []

    def begin_and_restore() -> None:
        began.append(loop._Training(wide(strategy, hollow=True)[0], optim, directory, runtime, seed=3))
        assert began[0].restore() == 1

    made = peak_bytes(begin_and_restore)
    began[0].checkpoints.close()
    weights = sum(local(p).numel() * 4 for p in began[0].parameters)
    return {"held": made - mapped, "share": 3 * weights}


def beginning_of(directory: Path, strategy: str, hollow: bool) -> dict:
    """The most that a process holds until its first step, its share, all weights, and the largest of them, in bytes."""
    _, optim, runtime = wide(strategy)
    began = []

    def begin() -> None:
        objective, _, _ = wide(strategy, hollow)
        began.append(loop._Training(objective, optim, directory, runtime, seed=3))
        assert began[0].restore() == 0

    held = peak_bytes(begin)
    began[0].checkpoints.close()
    reached = [whole(p).detach() for p in began[0].parameters]
    for value, wanted in zip(reached, wide("ddp")[0].module.parameters(), strict=True):
        assert torch.equal(value, wanted)
    share = sum(local(p).numel() * 4 for p in began[0].parameters)
    sizes = [4 * value.numel() for value in reached]
    return {"held": held, "share": share, "whole": sum(sizes), "largest": max(sizes)}


def wide(strategy: str, hollow: bool = False):
    """Large enough for its tensors to count beside what processes tell each other; without values if `hollow`, as
    stages make it for several processes."""
    objective, optim, runtime = generator(width=128, hollow=hollow)
    return objective, optim.model_copy(update={"steps": 1}), runtime.model_copy(update={"strategy": strategy})


def measure(folder: Path, rank: int) -> None:
    """Restores of what one process has left, and of what these have."""
    for strategy in ("fsdp", "ddp"):
        told = {"file": restore_of(folder / "wide", strategy)}
        objective, optim, runtime = wide(strategy)
        assert fit(objective, optim, folder / f"wide-{strategy}", runtime, seed=3).finished
        told["folder"] = restore_of(folder / f"wide-{strategy}", strategy)
        (folder / f"held-{strategy}-{rank}.json").write_text(json.dumps(told))
    begun = {name: beginning_of(folder / name, "fsdp", name == "hollow") for name in ("hollow", "filled")}
    (folder / f"begun-{rank}.json").write_text(json.dumps(begun))
    saved = {kept: saved_of(folder, kept) for kept in ("none", "selective", "full")}
    (folder / f"saved-{rank}.json").write_text(json.dumps(saved))


def saved_of(folder: Path, kept: str) -> dict:
    """Bytes that a step keeps for its backward pass, of whole and of sharded weights.

    What belongs to no layer stays whole between the two passes: of it those weights count that backward needs.
    """
    objective, optim, runtime = wide("fsdp")
    module = objective.module.train()
    module.kept = kept
    _, whole = step(module, 4, kept, "cpu")
    training = loop._Training(objective, optim, folder / f"saved-{kept}", runtime, seed=3)
    assert not any(weight.untyped_storage().nbytes() for weight in module.parameters())  # nothing is held twice
    _, shared = step(objective.module.train(), 4, kept, "cpu")
    training.checkpoints.close()
    needed = (module.head.weight, module.head_nm.ada_lin[1].weight)
    return {"whole": whole, "shared": shared - sum(weight.numel() * 4 for weight in needed)}


def weighed(module):
    """Observes the module that a training was begun with: how large its weights are, and its logits."""
    labels, inputs = torch.tensor([0]), torch.ones(1, 20, 4)

    def observe() -> dict:
        with torch.no_grad():
            logits, _ = module.eval()(labels, inputs)
        module.train()
        weights = sum(float(p.detach().square().sum()) for p in module.parameters())
        return {"train/weights": weights, "train/logits": float(logits.square().sum())}

    return observe


def step_over(directory: Path, rank: int) -> None:
    """A shard that is damaged, which the second process alone looks through, is so for both."""
    objective, optim, runtime = wide("fsdp")
    training = loop._Training(objective, optim, directory, runtime, seed=3)
    found = training.checkpoints.newest()
    assert found and found.step == 1
    if not rank:
        (found.path / "__0_0.distcp").write_bytes(b"cut")
    torch.distributed.barrier()
    assert training.checkpoints.newest() is None
    training.checkpoints.close()


def go_on(folder: Path) -> None:
    for name, strategies in LEGS.items():
        start = STEPS if name == "alone" else 0
        for strategy in strategies:
            objective, optim, runtime = generator(2 if strategy == "ddp" else 1)
            runtime = runtime.model_copy(update={"strategy": strategy})
            start += STEPS
            stop = at(start, start - STEPS)
            look = weighed(objective.module)
            stopped = fit(objective, optim, folder / name, runtime, seed=3, should_stop=stop, observe=look)
            assert (stopped.step, stopped.finished) == (start, False)
            assert newest_first(folder / name / "checkpoints")[0].is_dir()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, port = Path(sys.argv[1]), sys.argv[2]
    child = os.fork()
    rank = 1 if child else 0
    try:
        announce(rank, 2, port)
        go_on(folder)
        measure(folder, rank)
        step_over(folder / "wide-fsdp", rank)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    if not child:
        os._exit(0)
    sys.exit(bool(os.waitpid(child, 0)[1]))
