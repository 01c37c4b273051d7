"""Files of reference in ADM's form: against themselves, against direct computation, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mvar.config import EvaluationConfig, override
from mvar.errors import UserError
from mvar.evaluation.extraction import Moments, extract
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.extractors.contract import channels_last
from mvar.evaluation.images import Images
from mvar.evaluation.metrics.inputs import Inputs, Parts, compute
from mvar.evaluation.reference import check_asked, read_reference, reference_of, write_reference
from mvar.presets import PRESETS
from mvar.registries import METRICS

CONFIG = EvaluationConfig(num_images=20, also=("sfid", "fd_infinity"))
NAMES = ("fid", "sfid", "precision_recall", "fd_infinity")


def toy(network, images):
    values = images.flatten(1).double() / 64
    return values[:, ::3], values[:, :5], channels_last(images.double().repeat(1, 8, 1, 1)[..., :2, :3] / 64)


@pytest.fixture
def extractor():
    return Extractor(nn.Identity(), lambda n, i: toy(n, i)[:2], id="toy", channels=1, spatial=toy)


def draw(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)


def measured(samples, reference, extractor):
    parts = Parts(samples=lambda: (samples, None), reference=lambda: reference, extractor=lambda: extractor)
    inputs = Inputs(CONFIG, parts)
    return {key: value for name in NAMES for key, value in compute(name, METRICS.find(name)(), inputs).items()}


def test_against_itself_and_against_direct_computation(extractor, tmp_path):
    real, fake, path = draw(300, 0), draw(100, 1), tmp_path / "VIRTUAL.npz"
    write_reference(path, real, extractor)
    with np.load(path) as file:
        assert set(file) == {"arr_0", "mu", "sigma", "mu_s", "sigma_s"}
        assert file["arr_0"].shape == (300, 4, 4, 3) and file["arr_0"].dtype == np.uint8
        assert file["mu_s"].shape == (2 * 3 * 7,)
    found = read_reference(str(path), 1)
    itself = measured(real, found, extractor)
    assert abs(itself["eval/fid"]) < 1e-9 and abs(itself["eval/sfid"]) < 1e-6
    assert itself["eval/precision"] == itself["eval/recall"] == 1
    assert measured(fake, found, extractor) == pytest.approx(measured(fake, real, extractor), rel=1e-6)


def test_statistics_are_of_all_images_and_precision_is_against_those_of_the_file(extractor, tmp_path):
    real, fake, path = draw(300, 0), draw(100, 1), tmp_path / "reference.npz"
    write_reference(path, real, extractor, keep=50)
    found, few = measured(fake, read_reference(str(path), 1), extractor), measured(fake, real[:50], extractor)
    whole = measured(fake, real, extractor)
    for key, wanted in (("fid", whole), ("sfid", whole), ("fd_infinity", whole), ("precision", few), ("recall", few)):
        assert found[f"eval/{key}"] == pytest.approx(wanted[f"eval/{key}"], rel=1e-6), key
    assert found["eval/fid"] != pytest.approx(few["eval/fid"], rel=1e-3)


def test_spatial_statistics_alone_keep_no_features(extractor):
    """Of a finished run that is asked for sFID nothing else is held; what asks for features later has them too."""
    real, fake = draw(300, 0), draw(100, 1)
    parts = Parts(samples=lambda: (fake, None), reference=lambda: real, extractor=lambda: extractor)
    inputs, wanted = Inputs(CONFIG, parts, spatial=True, features=False), measured(fake, real, extractor)
    assert compute("sfid", METRICS.find("sfid")(), inputs) == {"eval/sfid": wanted["eval/sfid"]}
    assert [len(found.features) + len(found.logits) for found in inputs._extracted] == [0, 0]
    assert compute("fid", METRICS.find("fid")(), inputs) == {"eval/fid": wanted["eval/fid"]}


def test_means_of_float32_as_adm_has_them(extractor, tmp_path):
    real, path = draw(300, 0), tmp_path / "reference.npz"
    write_reference(path, real, extractor)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{name: a.astype(np.float32) if name in ("mu", "mu_s") else a for name, a in arrays.items()})
    found = read_reference(str(path), 1)
    assert found.features["mu"].dtype == np.float64
    assert abs(measured(real, found, extractor)["eval/fid"]) < 1e-6


def test_moments_are_those_of_all_rows_at_once():
    rows = torch.from_numpy(np.random.default_rng(0).normal(1000, 1, (77, 5)))
    moments = Moments()
    for part in rows.split(10):
        moments.add(part)
    found = moments.statistics()
    np.testing.assert_allclose(found["mu"], rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found["sigma"], np.cov(rows.numpy(), rowvar=False), rtol=1e-11, atol=1e-12)
    single = Moments()
    single.add(rows[:1])
    with pytest.raises(UserError, match="images: 1 are too few for a covariance"):
        single.statistics()


def test_an_extractor_without_spatial_features_is_told(tmp_path):
    plain = Extractor(nn.Identity(), lambda n, i: toy(n, i)[:2], id="toy", channels=1)
    with pytest.raises(UserError, match="has no spatial features, which sFID needs; allowed: inception, classifier"):
        extract(plain, Images(draw(5, 0), "images"), spatial=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mu_s": None}, r"has no mu_s; allowed: an .npz file with arr_0"),
        ({"mu": np.zeros(3)}, r"sigma is \[6, 6\], mu \[3\]"),
        ({"sigma": np.triu(np.ones((6, 6)))}, "sigma is not symmetric"),
        ({"mu": np.full(6, np.nan)}, "mu or sigma is not finite"),
        ({"arr_0": np.zeros((3, 4, 4, 1), np.uint8)}, r"arr_0 is uint8 \[3, 4, 4, 1\], wanted is uint8 \[N, N, N, 3\]"),
        ({"arr_0": np.zeros((3, 4, 4, 3))}, "arr_0 is float64"),
    ],
)
def test_what_is_no_file_of_reference_is_refused(extractor, tmp_path, change, reason):
    path = tmp_path / "reference.npz"
    write_reference(path, draw(30, 0), extractor)
    with np.load(path) as file:
        arrays = {name: value for name, value in (dict(file) | change).items() if value is not None}
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=reason) as error:
        read_reference(str(path), 1)
    assert "\n" not in str(error.value)


def test_colour_is_no_grey_and_other_features_do_not_fit(extractor, tmp_path):
    path = tmp_path / "reference.npz"
    write_reference(path, draw(30, 0), extractor)
    wide = Extractor(nn.Identity(), lambda n, i: (i.flatten(1), i.flatten(1)), id="wide", channels=1)
    parts = Parts(lambda: (draw(30, 1), None), lambda: read_reference(str(path), 1), extractor=lambda: wide)
    with pytest.raises(UserError, match="statistics of 6 features, the extractor has 16"):
        compute("fid", METRICS.find("fid")(), Inputs(CONFIG, parts))
    with np.load(path) as file:
        arrays = dict(file)
    arrays["arr_0"][3, 0, 0] = (1, 2, 3)
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"image 3 is coloured, data\.channels is 1"):
        list(Images(read_reference(str(path), 1).images, "x").batches(8))
    with pytest.raises(UserError, match=r"evaluation.reference: no file '.*'; allowed: an .npz file"):
        read_reference(str(tmp_path / "none.npz"), 1)


def test_a_reference_without_the_crop_of_training(tmp_path):
    """A frame of 4 px around each picture is cut off by the factor 1.125, and is there without it."""
    pixels = np.zeros((72, 72, 3), np.uint8)
    pixels[4:-4, 4:-4] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    folder = {"data.name": "imagefolder", "data.root": str(tmp_path), "data.num_classes": 2, "data.image_size": 64}
    config = override(PRESETS["imagefolder64"], {**folder, "data.resize_factor": 1.125})
    assert reference_of(config).images.image(0, None).min() == 255
    whole = override(config, {"evaluation.reference_resize_factor": 1.0})
    found = reference_of(whole)
    assert found.images.image(0, None).min() == 0 and found.told["resize_factor"] == 1.0
    assert whole.evaluation_id != config.evaluation_id and whole.floors_id == config.floors_id


def test_the_reference_of_a_config():
    config = PRESETS["smoke"]
    found = reference_of(config)
    assert found.told == {"split": "heldout", "num_images": len(found.images)} and found.features is None
    for ask in (reference_of, check_asked):
        with pytest.raises(UserError, match=r"images of data\.name=digits are not resized; allowed: none"):
            ask(override(config, {"evaluation.reference_resize_factor": 1.0}))
    with pytest.raises(UserError, match=r"evaluation\.reference: no file"):
        check_asked(override(config, {"evaluation.reference": "none.npz"}))
    with pytest.raises(UserError, match=r"given beside evaluation\.reference"):
        override(config, {"evaluation.reference": "x.npz", "evaluation.reference_resize_factor": 1.0})
    other = override(config, {"evaluation.reference": "x.npz"})
    assert (other.extractor_id, other.floors_id) == (config.extractor_id, config.floors_id)
    assert other.evaluation_id != config.evaluation_id
    assert other.evaluation_id != override(config, {"evaluation.reference": "y.npz"}).evaluation_id
