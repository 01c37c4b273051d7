"""What probes look at: a run that is not trained, with an extractor, and a published checkpoint with pictures."""

import numpy as np
import pytest
from official import GOLDEN
from PIL import Image
from tiny_runs import CONFIG
from untrained_runs import save_stirred

from mvar.config import override
from mvar.runs.store import Store
from mvar.runs.wiring import Stages

MEANS = """
import mvar
import torch

@mvar.register("extractor", "means")
class Means(mvar.ExtractorKind):
    def network(self, directory):
        return torch.nn.Identity(), None

    def forward(self, network, images):
        features = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)
        return features, features
"""


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """Store and run of a model with `global` and `intra+mamba` in it."""
    changes = {"model.pattern": "global intra+mamba", "data.heldout_fraction": 0.05, "evaluation.num_images": 30}
    config = override(CONFIG, changes)
    store = Store(tmp_path_factory.mktemp("probes") / "results")
    run, _ = save_stirred(store, config)
    stages = Stages(config, store)
    stages.tokens.run()
    stages.extractor.run()
    return store, run


@pytest.fixture
def fresh(untrained):
    """The same, nothing measured yet."""
    for path in untrained[1].path.glob("probes/*.json"):
        path.unlink()
    return untrained


@pytest.fixture
def checkpoint(tmp_path):
    """Words of a command on a published checkpoint, 20 pictures, and a plug-in `means` that can judge them."""
    rng = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "pictures" / f"class{number % 10}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    (tmp_path / "means.py").write_text(MEANS)
    files = ["--checkpoint", str(GOLDEN / "var_l2" / "state.safetensors"), "--results", str(tmp_path / "results")]
    files += ["--tokenizer", str(GOLDEN / "tok_full_q4" / "vae.safetensors")]
    return [*files, "--images-from", str(tmp_path / "pictures"), "--plugin", str(tmp_path / "means.py")]
