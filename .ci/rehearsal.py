#!/usr/bin/env python3
"""The commands of docs/imagenet.md, one after the other, on two processor cores: `.venv/bin/python .ci/rehearsal.py`.

They run as the page has them, with the published architectures, on an 'ImageNet' made of crops of scikit-learn's two
photographs and on files of random weights under the published names. What makes it a rehearsal is added behind each
command: a few steps and images. Two processes make two steps, are killed, and one goes on. Numbers mean nothing.
"""

import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/imagenet.md"
TESTS = ROOT / "tests"  # what writes small sets of random files
PROCESSES, BEFORE, STEPS, IMAGES = 2, 2, 3, 16  # processes, steps before the kill, steps in all, images of each kind
TINY = {
    "train.steps": STEPS,
    "train.batch_size": PROCESSES,
    "evaluation.num_images": IMAGES,
    "sample.precision": "bf16",
    "runtime.micro_batch": 1,
    "runtime.checkpoint_every": BEFORE,
    "runtime.log_every": 1,
    "runtime.likelihood_points": 0,
    "runtime.num_workers": 0,  # a process that loads is forked from one that holds gigabytes
    "runtime.sample_batch": IMAGES,
}
TINY_SET = " " + " ".join(f"{name}={value}" for name, value in TINY.items())
SHARED = " runtime.strategy=fsdp runtime.checkpoint_activations=full"  # on GPUs the page leaves both to the plan
# Beginning of a command -> what is added behind it. The page has no other commands.
ADDED = {
    "mvar inspect": "",
    "mvar data check": "",
    "mvar plan": "",
    "mvar sample": " --per-class 1",
    "torchrun": TINY_SET + SHARED,
    "mvar run": f"{TINY_SET} runtime.threads={PROCESSES} --workers 1",  # as many cores as the processes had
    "mvar report": "",
}
FILES = {
    "IMAGENET_TRAIN": "imagenet/train",
    "IMAGENET_VAL": "imagenet/val",
    "IMAGENET_KIT": "imagenet/ILSVRC2012_devkit_t12",
    "MVAR_TOKENIZER": "weights/vae_ch160v4096z32.pth",
    "MVAR_INCEPTION": "weights/weights-inception-2015-12-05-6726825d.pth",
    "MVAR_REFERENCE": "weights/VIRTUAL_imagenet256_labeled.npz",
    "VAR_D16": "weights/var_d16.pth",
}
LIMIT_BYTES, LIMIT_S = 20e9, 600  # of memory, and of the disk; of the whole rehearsal
LOOK_S = 2.0  # between looks at the memory, which take time themselves


# The page ------------------------------------------------------------------------------------------------------------


def page() -> tuple[list[str], list[str]]:
    """The names that the page exports, and its commands, each on one line."""
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    names = [name for line in lines if line.startswith("export ") for name in re.findall(r"(\w+)=", line)]
    return names, [line for line in lines if line.partition(" ")[0] in ("mvar", "torchrun")]


def rehearsed(command: str) -> str:
    """A command of the page as it is run here.

    Raises:
        ValueError: no rehearsal is known for it.
    """
    bare = re.sub(r"\s+#.*", "", command)
    for beginning, added in ADDED.items():
        if bare.startswith(beginning):
            return re.sub(r"(--nproc-per-node[= ])\d+", rf"\g<1>{PROCESSES}", bare) + added
    raise ValueError(f"{PAGE.name}: no rehearsal of {command!r}; allowed: commands that begin with {', '.join(ADDED)}")


# What there is to work on --------------------------------------------------------------------------------------------


def make(folder: Path) -> None:
    """Everything that the page's variables name."""
    make_imagenet(folder / "imagenet")
    make_weights(folder / "weights", folder / "imagenet/val")


def make_imagenet(folder: Path) -> None:
    """1,000 classes of one picture each, a flat validation folder, the development kit."""
    sys.path.insert(0, str(TESTS))
    from layouts import write_kit
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    rng = np.random.default_rng(0)

    def picture() -> Image.Image:
        photograph = photographs[rng.integers(2)]
        width, height = rng.integers(200, 420, 2).tolist()
        left, top = int(rng.integers(photograph.width - width)), int(rng.integers(photograph.height - height))
        return photograph.crop((left, top, left + width, top + height))

    synsets = [f"n{1440764 + 1000 * number:08d}" for number in range(1000)]
    for number, synset in enumerate(synsets):
        (folder / "train" / synset).mkdir(parents=True)
        picture().save(folder / "train" / synset / f"{synset}_{number}.JPEG", quality=90)
    (folder / "val").mkdir()
    for number in range(IMAGES):
        picture().save(folder / "val" / f"ILSVRC2012_val_{number + 1:08d}.JPEG", quality=90)
    write_kit(folder / "ILSVRC2012_devkit_t12", synsets, rng.integers(1000, size=IMAGES))


def make_weights(weights: Path, heldout: Path) -> None:
    """A tokenizer, VAR-d16 and Inception of random weights under the published names, and a file of ADM's form."""
    import torch
    from random_inception import write_inception

    from mvar.checkpoints.published import official_state, write_official
    from mvar.config import DataConfig
    from mvar.data.splits import load_images
    from mvar.evaluation.extractor import Extractor
    from mvar.evaluation.extractors.inception import inception_forward, inception_network, inception_spatial
    from mvar.evaluation.reference import write_reference
    from mvar.presets import PRESETS
    from mvar.tokenizer.model import Tokenizer
    from mvar.transformer import ScaleTransformer

    weights.mkdir()
    config = PRESETS["imagenet256-d16"]
    torch.manual_seed(0)
    write_official(weights / "vae_ch160v4096z32.pth", Tokenizer(config.tokenizer, 3).state_dict())
    write_official(weights / "var_d16.pth", official_state(ScaleTransformer(config.model, config.token_space)))
    inception = weights / "weights-inception-2015-12-05-6726825d.pth"
    write_inception(inception)
    network = inception_network(str(inception))
    extractor = Extractor(network, inception_forward, id="random", channels=3, spatial=inception_spatial)
    kit = {"devkit": str(heldout.with_name("ILSVRC2012_devkit_t12"))}
    values = {"name": "ilsvrc", "root": str(heldout.with_name("train")), "heldout_root": str(heldout), "ilsvrc": kit}
    data = DataConfig.model_validate({**values, "image_size": 256, "channels": 3, "num_classes": 1000})
    write_reference(weights / "VIRTUAL_imagenet256_labeled.npz", load_images(data, "heldout"), extractor)


# Running -------------------------------------------------------------------------------------------------------------


@dataclass
class Took:
    """What a command took: seconds by the clock, of a core by process, and the most bytes of memory at once."""

    command: str
    clock_s: float = 0.0
    core_s: dict[int, float] = field(default_factory=dict)
    memory: int = 0

    def look(self, family: list[int]) -> None:
        """At the processes that there are now."""
        self.core_s |= {number: max(processor_s(number), self.core_s.get(number, 0.0)) for number in family}
        self.memory = max(self.memory, sum(map(memory_bytes, family)))

    def __str__(self) -> str:
        return f"{self.clock_s:6.0f} {sum(self.core_s.values()):7.0f} {self.memory / 1e9:6.1f}  {self.command[:100]}"


class Rehearsal:
    """The commands in a folder of their own, and what each took.

    Args:
        folder: where everything is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, folder / "results"
        self.environment = os.environ | {name: str(folder / path) for name, path in FILES.items()}
        self.environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1"}
        # threads that spin hold the core that the others wait for: beside other work drawing took five times the core s
        self.environment |= {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
        self.took: list[Took] = []
        self.most_bytes = 0

    def run(self, command: str, kill_when: Callable[[], bool] | None = None) -> str:
        """Run a command, and kill all its processes once `kill_when`; returns what it printed.

        Raises:
            SystemExit: it failed, or ended before it was to be killed.
        """
        began, log = time.monotonic(), self.folder / "log.txt"
        print(f"$ {command}", flush=True)
        environment = self.environment | ({"OMP_NUM_THREADS": "1"} if command.startswith("torchrun") else {})
        with open(log, "w") as file:
            process = subprocess.Popen(
                ["bash", "-c", command], cwd=self.folder, env=environment, stdout=file, stderr=file
            )
            took, killed, looked = Took(command), False, 0.0
            while process.poll() is None:
                if kill_when and kill_when():
                    for number in [*reversed(descendants(process.pid)), process.pid]:
                        kill(number)
                    killed = True
                elif time.monotonic() - looked > LOOK_S:
                    took.look([process.pid, *descendants(process.pid)])
                    looked = time.monotonic()
                time.sleep(0.1)
        took.clock_s = time.monotonic() - began
        self.took.append(took)
        self.most_bytes = max(self.most_bytes, sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file()))
        said = log.read_text()
        print(said[-1500:] + f"({took.clock_s:.0f} s)\n", flush=True)
        if killed != bool(kill_when) or (not killed and process.returncode):
            sys.exit(f"{command}: ended with {process.returncode}" + ", before it was to be killed" * bool(kill_when))
        return said

    @property
    def the_run(self) -> Path:
        """The one run that there is."""
        (run,) = (path.parent for path in self.results.glob("runs/*/config.json"))
        return run

    def document(self, name: str) -> dict:
        """A document of the run."""
        return json.loads((self.the_run / name).read_text())

    def has_checkpoint(self) -> bool:
        """Whether the checkpoint after the first steps is complete."""
        return bool(list(self.results.glob(f"runs/*/checkpoints/step_{BEFORE:08d}*")))

    def rows(self) -> list[dict]:
        """Of the run's metrics."""
        return [json.loads(line) for line in (self.the_run / "metrics.jsonl").read_text().splitlines()]


def descendants(parent: int) -> list[int]:
    """Processes below one, from the top down."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [parent]
    for number in found:
        found += children.get(number, [])
    return found[1:]


def memory_bytes(number: int) -> int:
    """A process's memory, what it shares with others by parts."""
    try:
        text = Path(f"/proc/{number}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+)", text, re.M)
    return int(found[1]) * 1024 if found else 0


def processor_s(number: int) -> float:
    """Seconds that processors have worked for a process."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill(number: int) -> None:
    """End a process at once, as the kernel does where memory is short."""
    with suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)


# What must have come of it -------------------------------------------------------------------------------------------


def expect(told: bool, what: str) -> None:
    """End with a line where something is not as it should be."""
    if not told:
        sys.exit(f"rehearsal: {what}")


def check_said(command: str, said: str) -> None:
    """What commands that only look must say."""
    wanted = {
        'mvar inspect "$VAR_D16"': "VAR: 16 layers (global), width 1024, 16 heads",
        'mvar inspect "$MVAR_TOKENIZER"': "4096 codes of 32 channels",
        "mvar data check": "1,000 classes",
        "mvar plan": "464,157,184",  # parameters of M-VAR-d16
    }
    expect(not command.startswith("mvar report") or "warning" not in said, "the report has problems")
    for beginning, text in wanted.items():
        if command.startswith(beginning):
            expect(text in said, f"{command}: does not say {text!r}")


def check_killed(rehearsal: Rehearsal) -> None:
    """Two steps by two processes, sharded and recomputed, on fresh crops: no cache of training images."""
    expect([row["step"] for row in rehearsal.rows()][:BEFORE] == list(range(1, BEFORE + 1)), "steps are missing")
    (way,) = rehearsal.document("execution.json")["train"]
    expect(way["processes"] == PROCESSES, f"{way['processes']} processes trained")
    made = way.get("strategy"), way.get("checkpoint_activations")  # a default is not noted
    expect(made == ("fsdp", "full"), f"trained with {made}, not sharded and recomputed")
    expect(not list(rehearsal.results.glob("stages/tokens-*/train")), "training images have a token cache")


def check_done(rehearsal: Rehearsal) -> None:
    """All steps, the last by one process; images; metrics against the file of reference."""
    rows = rehearsal.rows()
    expect([row["step"] for row in rows] == list(range(1, STEPS + 1)), "steps are missing, or came twice")
    expect(all(np.isfinite(row["train/loss"]) for row in rows), "a loss is not finite")
    ways = [way["processes"] for way in rehearsal.document("execution.json")["train"]]
    expect(ways == [PROCESSES, 1], f"trained by {ways} processes")
    expect(rehearsal.document("status.json")["state"] == "done", "the run is not done")
    (samples,) = rehearsal.the_run.glob("samples/*/samples.npz")
    with np.load(samples) as found:
        expect(found["arr_0"].shape == (IMAGES, 256, 256, 3), f"samples are {found['arr_0'].shape}")
    (record,) = rehearsal.document("eval.json")["evaluations"].values()
    expect(record["reference"]["file"] == Path(FILES["MVAR_REFERENCE"]).name, "measured against something else")
    expect(np.isfinite(record["metrics"]["eval/fid"]), "no FID")


def check_report(rehearsal: Rehearsal) -> None:
    """Table 2 has the measured row below the printed one."""
    with open(rehearsal.results / "report/tables/table2.csv", newline="") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    expect(rows["M-VAR-d16"]["paper_fid"] == "3.07", "Table 2 has no printed row of M-VAR-d16")
    ours = rows.get(f"M-VAR-d16, {STEPS} steps", {})  # of so few steps, not of the recipe: a row of its own below it
    expect(ours.get("run_ids") == rehearsal.the_run.name and bool(ours.get("fid")), "Table 2 has no measured row")


def rehearse(folder: Path) -> Rehearsal:
    """Everything in turn; the first thing that is wrong ends it."""
    names, commands = page()
    expect(sorted(names) == sorted(FILES), f"{PAGE.name} exports {names}, here are {list(FILES)}")
    rehearsal, began = Rehearsal(folder), time.monotonic()
    making = multiprocessing.get_context("spawn").Process(target=make, args=(folder,))  # its memory goes with it
    making.start()
    making.join()
    expect(making.exitcode == 0, "pictures and weights could not be made")
    rehearsal.took.append(Took("(pictures and weights)", time.monotonic() - began))
    for command in map(rehearsed, commands):
        if command.startswith("torchrun"):
            rehearsal.run(command, kill_when=rehearsal.has_checkpoint)
            check_killed(rehearsal)
            continue
        said = rehearsal.run(command)
        check_said(command, said)
        if command.startswith("mvar run"):
            check_done(rehearsal)
        elif command.startswith("mvar report"):
            check_report(rehearsal)
    return rehearsal


def main() -> None:
    """In a folder that is removed, or in one that is named and kept."""
    kept = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
    (ROOT / "build").mkdir(exist_ok=True)
    folder = kept or Path(tempfile.mkdtemp(dir=ROOT / "build", prefix="rehearsal-"))
    folder.mkdir(exist_ok=True)
    try:
        rehearsal = rehearse(folder)
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    print("     s  core s     GB", *rehearsal.took, sep="\n")
    total, disk = sum(took.clock_s for took in rehearsal.took), rehearsal.most_bytes
    memory = max(took.memory for took in rehearsal.took)
    print(f"{total:6.0f} s; at most {memory / 1e9:.1f} GB of memory, {disk / 1e9:.1f} GB of disk")
    for held, where in ((memory, "of memory"), (disk, "on the disk")):
        expect(held < LIMIT_BYTES, f"{held:,} bytes {where}; allowed: {LIMIT_BYTES:,.0f}")
    expect(total < LIMIT_S, f"{total:.0f} s; allowed: {LIMIT_S}")


if __name__ == "__main__":
    main()
