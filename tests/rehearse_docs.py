"""Runs the documented commands of pages, one after the other, in a folder of their own; `tests/test_docs.py` starts it.

They run as they stand there. What makes it a rehearsal is around them: the presets `digits` and `smoke` are short, runs
are made in the process that asks, no speed is measured, and the files that pages speak of (`my.toml`, `var_d16.pth`,
`DIR`) are small ones. Each command is a process of its own, forked from one that has loaded everything.

    python rehearse_docs.py FOLDER PAGE ...        # prints JSON: a list of [page, line, exit code, output, seconds]
"""

import io
import json
import os
import re
import shlex
import shutil
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
from documented import DRY, PARSED, ROOT, Documented, commands
from PIL import Image

from mvar.analysis import style
from mvar.cluster import scheduler
from mvar.config import override
from mvar.presets import PRESETS
from mvar.runs import clock, runner
from mvar.runs.executors.contract import Summary
from mvar.runs.pipeline import execute

SHORT = {
    "tokenizer.train.steps": 6,
    "train.steps": 4,
    "train.batch_size": 8,
    "evaluation.num_images": 24,
    "evaluation.classifier_steps": 6,
    "evaluation.kid_subset_size": 10,
    "runtime.log_every": 2,
    "runtime.device": "cpu",
    "train.ema": (5000, 50000),
}
GLOBAL = "digits-d8-w64-global-s0"
# What stands in the pages for something of the reader's, or of a size that a rehearsal has not.
STAND_INS = {
    r"\bRUN\b": GLOBAL,
    r"results/runs/ID\b": "{run}",  # its directory
    r"\bID\b": GLOBAL,
    r"\bDIR\b|~/pictures|/data/imagenet/val": "pictures",
    r"digits-d8-w64-global(?=\s|$)": GLOBAL,
    r"digits-d8-w64-(mamba|intra\+mamba)(?=\s|$)": r"digits-d8-w64-\1-s0",
    r"\b207,388\b": "3,7",
    r"--layers 0,5,10,15 --heads 0-3": "--layers 0,5 --heads 0-1",
    r"num_classes=N\b": "num_classes=10",
    r"--seeds 3\b": "--seeds 1",
    r"--sample-seeds [23]\b": "--sample-seeds 1",
    r"0,0\.25,0\.5,1,1\.5,2\.5": "0,1.5",
    r"-s([12])\b": "-s0",
    r"evaluate mixers --preset smoke": "evaluate mixers",
    r"forget mixers-smoke-steps": "forget mine",
    r"train\.steps=60\b": "train.steps=4",
}
LATE = ("matplotlib.pyplot", "seaborn", "sklearn.datasets", "torch._dynamo", "torch.utils.flop_counter")  # imports
MORE = {"knockout": ["--images", "8"], "attention": ["--images", "16"]}  # words of a rehearsal, by the command


def run_all(configs, store, num_workers=None, display=None, directory=None) -> Summary:
    """As the runner's, here, one after the other; a failure is one."""
    for config in configs:
        execute(config, store, directory=directory)
    return Summary(num_runs=len(configs), num_done=len(configs))


def prepare(folder: Path) -> None:
    """The files that a reader is said to have."""
    for name in ("examples", "slurm", "analysis", "experiments"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "examples/mixer.py", folder / "my_mixer.py")
    (folder / "my.toml").write_text('base = "cpu"\npartition = "main"\n')
    given = re.search(r"cat run\.yaml\n(.*?)\$ ", (ROOT / "docs/configuration.md").read_text(), re.DOTALL)
    assert given
    (folder / "run.yaml").write_text(given[1].replace("steps: 40", "steps: 4"))
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / "pictures" / f"c{label}").mkdir(parents=True)
        for i in range(3):
            noise = Image.fromarray(rng.integers(0, 256, (9, 8), dtype=np.uint8))
            noise.save(folder / "pictures" / f"c{label}" / f"{i}.png")
    noise.save(folder / "mine.png")


def stand_in(line: str) -> list[str]:
    for pattern, text in STAND_INS.items():
        line = re.sub(pattern, text, line)
    if "{run}" in line:
        line = line.format(run=next(Path("results/runs").glob(f"{GLOBAL}-*")))
    return shlex.split(line)[1:]


def in_child(words: list[str], script: str = "") -> tuple[int, str, float]:
    """Exit code, output and seconds of a command, in a process forked from this one."""
    began = time.monotonic()
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.close(reading)
        said, code = io.StringIO(), 70
        with redirect_stdout(said), redirect_stderr(said):
            try:
                code = script_of(script, words) if script else main_of(words)
            except BaseException:
                traceback.print_exc(file=said)
        with os.fdopen(writing, "w") as file:
            file.write(said.getvalue())
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said, time.monotonic() - began


def main_of(words: list[str]) -> int:
    from mvar.cli import main

    return main(words)


def script_of(script: str, words: list[str]) -> int:
    import runpy

    sys.argv = [script, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def rehearse(found: list[Documented]) -> list[tuple[str, str, int, str, float]]:
    """Each command once, however many pages have it."""
    known, results = {}, []
    for command in found:
        if command.how == PARSED:
            continue
        words = stand_in(command.line)
        words += MORE.get(words[0] if words else "", [])
        if command.how == DRY and "--dry-run" not in words:
            words.append("--dry-run")
        script = words.pop(0) if command.line.startswith("python ") else ""
        key = (script, *words)
        if key not in known:
            known[key] = in_child(words, script)
        results.append((command.page, command.line, *known[key]))
        print(f"{results[-1][4]:6.1f} s  {results[-1][2]}  mvar {' '.join(words)}", file=sys.stderr)
    return results


def load_everything() -> None:
    """What a forked process then has; nothing is computed, so no thread is begun."""
    import pkgutil
    from importlib import import_module

    import mvar

    for module in pkgutil.walk_packages(mvar.__path__, "mvar."):
        import_module(module.name)
    for name in LATE:
        import_module(name)


def begin() -> None:
    """A run of four mixers, and checkpoints under the names that were published."""
    for preset, more in (("digits", {}), ("smoke", {}), ("imagefolder-small", {"model.depth": 2})):
        PRESETS[preset] = override(PRESETS[preset], SHORT | more)
    runner.run_all, scheduler.is_here = run_all, lambda: False
    for rate in ("step_rate", "network_rate", "gemm_rate"):  # a plan times nothing
        setattr(clock, rate, lambda *_: 1e9)
    for name in ("DPI", "SCREEN_DPI"):  # coarse pictures: drawing them takes most of a report's time
        setattr(style, name, getattr(style, name) // 4)
    load_everything()
    export = ["export", GLOBAL, "--out"]
    for words in (
        ["run", "mixers"],
        [*export, "var_d16.pth"],
        [*export, "vae_ch160v4096z32.pth", "--what", "tokenizer"],
    ):
        code, said, _ = in_child(words)
        assert code == 0, said


if __name__ == "__main__":
    os.environ.pop("MVAR_RESULTS", None)
    here = Path(sys.argv[1])
    prepare(here)
    os.chdir(here)
    begin()
    listed = [command for page in sys.argv[2:] for command in commands(ROOT / page)]
    json.dump(rehearse(listed), sys.stdout)
