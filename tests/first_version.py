"""The results directory that the first version left, to work on in copies. See `golden/first_version/README.md`."""

import json
import tarfile
from pathlib import Path

from mvar.runs.store import Store

GOLDEN = Path(__file__).parent / "golden/first_version"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
SETTINGS = ["tokenizer.width=8", "runtime.sample_batch=20", "runtime.keep_checkpoints=1"]
FINISHED = "digits-d4-w32-global-s0-5778b99c"
SPLIT = "digits-d4-w32-global-s0-f52eaab0"  # the same with train.accumulate=2
IN_TRAINING, IN_SAMPLING = "digits-d4-w32-intra-s0-e696cfbe", "digits-d4-w32-mamba-s0-795cff5e"
MANIFEST = "mixers-smoke-steps-638c754e"  # named after the spelling of its settings, as the first version did
NOT_BEGUN = "digits-d4-w32-intra+mamba-s0-37cf6d60"


def unpack(root: Path) -> Store:
    """A copy of it."""
    with tarfile.open(GOLDEN / "results.tar.xz") as archive:
        archive.extractall(root, filter="data")
    return Store(root)


def command(root: Path, *more: str) -> list[str]:
    """The words of the command that made it."""
    return ["run", "mixers", "--preset", "smoke", "--results", str(root), "--workers", "1", *more, "--set", *SETTINGS]
