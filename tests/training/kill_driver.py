"""Run as a script: train, be killed by SIGKILL here and there, resume, compare. Prints one line a case, `ok` or not.

Every training is a forked child, so that one start of the interpreter serves all of them. The parent itself never
trains: a fork after a backward pass cannot run another.
"""

import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import torch
from toy_objective import RUNTIME, Toy, assert_identical, split, toy_optim

from mvar.config import DataConfig, MambaConfig, ModelConfig, OptimConfig, TokenizerConfig, TokenSpace, TrainConfig
from mvar.data.online import FreshCrops
from mvar.data.splits import load_images
from mvar.data.tokens import TokenCache
from mvar.tokenizer.model import Tokenizer
from mvar.training.distributed import open_fabric
from mvar.training.generator import GeneratorObjective, OnlineObjective
from mvar.training.loop import fit
from mvar.training.optimizer import build_adamw
from mvar.training.tokenizer import TokenizerObjective
from mvar.transformer import ScaleTransformer

TOKENIZER = TokenizerConfig(
    patch_sides=(1, 2, 4),
    vocab_size=16,
    code_channels=4,
    width=4,
    channel_multipliers=(1, 1),
    mid_attention=False,
    train=OptimConfig(steps=7, batch_size=8, base_lr=0.1),
)


def toy(parts=1, precision="fp32"):
    return Toy(), toy_optim(steps=7, precision=precision), split(parts)


def generator(parts=1, precision="fp32", pattern="intra+mamba", width=16, hollow=False):
    torch.manual_seed(1)
    tokenizer = Tokenizer(TOKENIZER, 1)
    sizes = {"depth": 2, "width": width, "num_heads": 2, "mamba": MambaConfig(d_state=8, headdim=16)}
    what = ModelConfig(pattern=pattern, drop_path=0.3, **sizes), TokenSpace((1, 2, 4), 16, 4, 3)
    state = torch.get_rng_state()

    def first():
        torch.set_rng_state(state)
        return ScaleTransformer(*what)

    model = ScaleTransformer.empty(*what, released=True) if hollow else first()
    rng = np.random.default_rng(0)
    cache = TokenCache(Path(), rng.integers(16, size=(20, 21), dtype=np.uint8), rng.integers(3, size=20), {})
    optim = TrainConfig(steps=7, batch_size=8, base_lr=0.1, label_dropout=0.3, precision=precision)
    objective = GeneratorObjective(model, tokenizer.quantize, cache, optim, seed=2)
    objective.first = first if hollow else None
    return objective, optim, split(parts)


def online(workers=2):
    """Three epochs of 20 digits, decoded by processes, which a kill leaves behind."""
    torch.manual_seed(1)
    config = TOKENIZER.model_copy(update={"channel_multipliers": (1, 1, 1)})
    images = load_images(DataConfig(image_size=16), "train")
    images.indices, images.labels = images.indices[:20], images.labels[:20]
    sizes = {"depth": 2, "width": 16, "num_heads": 2}
    model = ScaleTransformer(ModelConfig(drop_path=0.3, **sizes), TokenSpace((1, 2, 4), 16, 4, 10))
    optim = TrainConfig(steps=7, batch_size=8, base_lr=0.1, label_dropout=0.3, tokens="online")
    crops = FreshCrops(images, Tokenizer(config, 1).eval(), seed=9)
    return OnlineObjective(model, crops, optim, seed=2), optim, RUNTIME.model_copy(update={"num_workers": workers})


def tokenizer():
    torch.manual_seed(1)
    objective = TokenizerObjective(Tokenizer(TOKENIZER, 1), load_images(DataConfig(), "train"), TOKENIZER)
    objective.RESTART_EVERY = 2
    return objective, TOKENIZER.train, RUNTIME


# case -> objective, optim and runtime, and where the successive runs are killed: (what, how many times it may happen)
CASES = {
    "toy": (toy, [("loss", 1), ("loss", 4), ("rename", 1), ("loss", 2)]),
    "toy-accumulated-bf16": (lambda: toy(4, "bf16"), [("loss", 10), ("loss", 7)]),
    "generator": (generator, [("loss", 2), ("rename", 2), ("loss", 1)]),
    "generator-accumulated-bf16": (lambda: generator(2, "bf16"), [("loss", 11), ("before", 1)]),
    "online": (online, [("loss", 3), ("rename", 1), ("loss", 1)]),
    "tokenizer": (tokenizer, [("loss", 1), ("before", 4), ("rename", 1)]),
}


def die_after(objective, what: str, count: int) -> None:
    """SIGKILL this process when `what` happens for the `count + 1`-th time."""
    owner, name = {"loss": (objective, "loss"), "before": (objective, "before_step"), "rename": (os, "replace")}[what]
    original, left = getattr(owner, name), [count]

    def dying(*args, **kwargs):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return original(*args, **kwargs)

    setattr(owner, name, dying)


def child(build, directory: Path, death: tuple[str, int] | None) -> int:
    """Train in a fork; the number of the signal that ended it, 0 where none did."""
    sys.stdout.flush()
    if process := os.fork():
        return os.WTERMSIG(os.waitpid(process, 0)[1])
    try:
        objective, optim, runtime = build()
        if death:
            die_after(objective, *death)
        assert fit(objective, optim, directory, runtime, seed=3).finished
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def check(build, deaths) -> str:
    """`ok` where the killed training ends like the one that was left alone."""
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        child(build, whole, None)
        for death in deaths:
            if child(build, killed, death) != signal.SIGKILL:
                return f"survived {death}"
        child(build, killed, None)
        try:
            assert_identical(whole, killed)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "ok"


if __name__ == "__main__":
    torch.set_num_threads(1)
    build_adamw(Toy().module, toy_optim())  # slow imports once, before the forks
    open_fabric(RUNTIME)
    for build in (generator, tokenizer):
        build()
    for case, (build, deaths) in CASES.items():
        print(case, check(build, deaths), flush=True)
