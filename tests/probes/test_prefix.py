"""The probe `prefix`: with all scales given it is the tokenizer's floor, with none what the model draws by itself."""

import numpy as np
import pytest
import torch

import mvar
from mvar.config import SampleConfig
from mvar.data.crops import to_uint8
from mvar.data.splits import load_images
from mvar.evaluation.fidelity import frechet_distance
from mvar.evaluation.floors import reconstruct
from mvar.evaluation.images import Images, spread_indices
from mvar.runs.wiring import Stages
from mvar.sampling import generate


def rows_of(made, **settings):
    return mvar.load(made[1].name, results=made[0].root).probe("prefix", samples=30, **settings).rows


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_with_all_scales_given_it_is_the_floor(fresh, split):
    stages = Stages.of_run(*fresh)
    extractor, heldout = stages.extractor.load(), Images(load_images(stages.config.data, "heldout"), "")
    images = Images(load_images(stages.config.data, split), "")
    shown, _ = reconstruct(stages.train.load_tokenizer(), images.subset(spread_indices(len(images), 30)))
    floor = frechet_distance(extractor.extract(Images(shown, ""))[0], extractor.extract(heldout)[0])
    for row in rows_of(fresh, of=[split], scales=[4], cfg_scale=[0, 2]):  # nothing is drawn, so nothing is guided
        assert row["fid"] == pytest.approx(floor, rel=1e-9) and row["bits"] is None


def test_with_none_given_it_is_what_the_model_draws(fresh):
    (row,) = rows_of(fresh, of=["train"], scales=[0], cfg_scale=[0])
    stages = Stages.of_run(*fresh)
    extractor, tokenizer = stages.extractor.load(), stages.train.load_tokenizer()
    train = load_images(stages.config.data, "train")
    labels = torch.from_numpy(np.asarray(train.labels)[spread_indices(len(train), 30)])
    sample = SampleConfig(cfg_scale=0, top_k=0, top_p=0)
    drawn = generate(stages.train.generator, tokenizer.quantize, labels, [(0, i) for i in range(30)], sample)
    with torch.no_grad():
        images = to_uint8(tokenizer.decode(drawn.latent)).numpy()
    heldout = Images(load_images(stages.config.data, "heldout"), "")
    fid = frechet_distance(extractor.extract(Images(images, ""))[0], extractor.extract(heldout)[0])
    assert row["fid"] == pytest.approx(fid, rel=1e-9)


def test_the_likelihood_is_that_of_what_is_not_given(fresh):
    trained = mvar.load(fresh[1].name, results=fresh[0].root)
    rows = trained.probe("prefix", of=["heldout"], cfg_scale=[0], samples=10**6).rows
    found, lengths = trained.nll(), [1, 4, 9, 16]
    for given, row in enumerate(rows[:4]):
        expected = np.average(found.bits_by_scale[given:], weights=lengths[given:])
        assert row["bits"] == pytest.approx(expected, rel=1e-6) and row["num_images"] == found.num_images
