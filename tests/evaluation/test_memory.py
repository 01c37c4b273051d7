"""Memory of an evaluation: it grows with the features that metrics need, never with the images."""

import ctypes
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mvar.config import EvaluationConfig
from mvar.evaluation import copies, extraction, images, reference
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.metrics.inputs import Inputs, Parts, compute
from mvar.evaluation.reference import read_reference, write_reference
from mvar.evaluation.tokenizer_quality import tokenizer_quality
from mvar.registries import METRICS
from mvar.scales import ScaleSchedule
from mvar.tokenizer import model

STATUS = Path("/proc/self/status")
FEW, SIDE = 32, 128
EVERY = 8  # images between two looks
NAMES = ("fid", "is", "kid", "precision_recall", "sfid", "density_coverage", "fd_infinity", "copies")

pytestmark = [
    pytest.mark.skipif(not STATUS.exists(), reason="the kernel tells no process's own memory"),
    pytest.mark.slow,
]


def own_bytes():
    """Memory that belongs to this process alone: pages of files, which the kernel may drop, are not counted."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is no part of it
    return 1024 * int(re.findall(r"RssAnon:\s+(\d+)", STATUS.read_text())[0])


class Drawn:
    """Images made where they are read, which looks at memory."""

    def __init__(self, count, seed=0):
        self.count, self.peak = count, 0
        self.base = np.random.default_rng(seed).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)

    def __len__(self):
        return self.count

    def image(self, i, rng):
        if i % EVERY == 0:
            self.peak = max(self.peak, own_bytes())
        return self.base + np.uint8(i % 251) + np.arange(SIDE, dtype=np.uint8) * np.uint8(i // 251)


class Stub(nn.Module):
    """A tokenizer that makes grey of everything."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config, self.schedule = SimpleNamespace(vocab_size=4), ScaleSchedule((1, 2))
        self.quantize = SimpleNamespace(latents=lambda tokens: [tokens.new_zeros(len(tokens), 3, SIDE, SIDE).float()])

    def encode(self, images):
        return images.new_zeros(len(images), 5, dtype=torch.long)

    def decode(self, latent):
        return latent + 0.25


def features(network, images):
    rows = images[:, :, ::40, ::40].flatten(1).double()
    return rows[:, :6], rows[:, :3] / 64, rows[:, 6:12]


@pytest.fixture
def extractor():
    return Extractor(nn.Identity(), lambda n, i: features(n, i)[:2], id="toy", channels=3, spatial=features)


def evaluate(count, extractor, tmp_path):
    few = Drawn(30, 2)
    sets = [samples, real, train] = Drawn(count), Drawn(count), Drawn(30, 1)
    parts = Parts(lambda: (samples, None), lambda: real, lambda: few, lambda: train, extractor=lambda: extractor)
    inputs = Inputs(EvaluationConfig(num_images=count, kid_subset_size=20), parts, spatial=True)
    for name in NAMES:
        compute(name, METRICS.find(name)(), inputs)
    return sets


def write(count, extractor, tmp_path):
    images = Drawn(count)
    write_reference(tmp_path / "reference.npz", images, extractor)
    found = read_reference(str(tmp_path / "reference.npz"), 3)
    assert (found.images.image(30, None) == images.image(30, None)).all()
    return [images]


def of_tokenizer(count, extractor, tmp_path):
    images = Drawn(count)
    assert tokenizer_quality(Stub(), images, extractor).rfid > 0
    return [images]


@pytest.mark.parametrize(("work", "many"), [(evaluate, 600), (write, 1500), (of_tokenizer, 600)])
def test_no_set_of_images_is_held_in_memory(monkeypatch, extractor, tmp_path, work, many):
    # What blocks and batches take (numpy writes 16 MiB at once) is no matter of the number of images.
    for module, name in ((copies, "BLOCK"), (copies, "READ"), (images, "HASH_BATCH")):
        monkeypatch.setattr(module, name, 8)
    for module in (extraction, reference):
        monkeypatch.setattr(module, "BATCH_SIZE", 8)
    monkeypatch.setattr(model, "MOST_PIXELS", 2 * SIDE**2)
    work(FEW, extractor, tmp_path)  # what is imported now is not imported again
    before = own_bytes()
    sets = work(many, extractor, tmp_path)
    grown = max(own_bytes(), *(one.peak for one in sets)) - before
    assert min(one.peak for one in sets) and grown < many * 3 * SIDE**2 / 3, f"{grown / 2**20:.0f} MiB"
