"""All that needs torch-fidelity, which takes seconds to import: metrics, floors, Inception and the whole evaluation."""

import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from random_inception import write_inception
from torch import nn

from mvar.config import EvaluationConfig, ModelConfig, TokenizerConfig, TokenSpace
from mvar.errors import UserError
from mvar.evaluation.copies import copy_rate
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.extractors.inception import INCEPTION_FILE, inception_forward, inception_network, inception_spatial
from mvar.evaluation.images import Images
from mvar.evaluation.measure import image_metrics
from mvar.evaluation.metrics.contract import every_metric
from mvar.evaluation.metrics.inputs import Inputs, Parts, compute, shares
from mvar.evaluation.rejection import class_outputs, label_score
from mvar.evaluation.tokenizer_quality import VERSION, TokenizerQuality

DOCS = Path(__file__).parents[2] / "docs"
CONFIG = EvaluationConfig(kid_subset_size=40)


def inception(path, channels):
    return Extractor(inception_network(path), inception_forward, id="x", channels=channels)


class Toy(nn.Module):
    """Random linear features of pixels: smooth enough that close images have close features."""

    def __init__(self, channels=1, side=6, num_features=12, num_classes=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        pixels = channels * side * side
        self.features = nn.Parameter(torch.randn(pixels, num_features, generator=generator) / pixels**0.5)
        self.head = nn.Parameter(torch.randn(num_features, num_classes, generator=generator))


def toy_forward(network, images):
    features = (images.flatten(1).double() / 64) @ network.features.double()
    return features, features @ network.head.double()


@pytest.fixture(scope="module")
def extractor():
    return Extractor(Toy(), toy_forward, id="toy", channels=1, heldout_accuracy=0.5, knows_labels=True)


def draw(count, seed, low=0, high=256):
    """Images with a few factors of variation, as uint8 `(count, 1, 6, 6)`."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(99).normal(size=(5, 36))
    values = rng.normal(size=(count, 5)) @ basis * 25 + rng.normal(size=(count, 36)) * 8 + 128
    return np.clip(values, low, high - 1).astype(np.uint8).reshape(count, 1, 6, 6)


class LabelledSet:
    """An image set with the classes 0, 0, ..., 1, 1, ..., and class-dependent brightness."""

    def __init__(self, count, seed):
        self.labels = np.arange(count) * 4 // count
        self.array = np.clip(draw(count, seed) + self.labels[:, None, None, None] * 40, 0, 255).astype(np.uint8)

    def __len__(self):
        return len(self.array)

    def image(self, i, rng):
        assert rng is None
        return self.array[i]


def features_of(images, extractor):
    return extractor.extract(Images(images, "images"))[0].numpy()


def closed_form(a, b):
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)


def test_fid_equals_the_closed_form(extractor):
    samples, reference = draw(90, 0, high=180), draw(70, 1)
    found = image_metrics(samples, reference, extractor, CONFIG)
    expected = closed_form(features_of(samples, extractor), features_of(reference, extractor))
    assert expected > 0.01
    assert found["eval/fid"] == pytest.approx(expected, rel=1e-5)
    assert set(found) == {
        *("eval/fid", "eval/is", "eval/is_sd", "eval/kid", "eval/kid_sd", "eval/kid_subset_size"),
        *("eval/precision", "eval/recall"),
    }


def test_kid_equals_the_unbiased_estimate_where_a_subset_is_the_whole_set(extractor):
    samples, reference = draw(50, 0, high=180), draw(50, 1)
    found = image_metrics(samples, reference, extractor, CONFIG.model_copy(update={"kid_subset_size": 5000}))
    assert found["eval/kid_subset_size"] == 50
    a, b = features_of(samples, extractor), features_of(reference, extractor)
    aa, ab, bb = (((x @ y.T) / 12 + 1) ** 3 for x, y in ((a, a), (a, b), (b, b)))
    within = (aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)) / (50 * 49)
    assert found["eval/kid"] == pytest.approx(within - 2 * ab.mean(), rel=1e-9)
    assert found["eval/kid_sd"] < 1e-9


def test_is_of_sorted_classes_does_not_collapse():
    def forward(network, images):
        classes = images[:, 0, 0, 0].long() % 4
        return images.flatten(1).double(), 1e3 * nn.functional.one_hot(classes, 4).double()

    images = draw(200, 0)
    images[:, 0, 0, 0] = np.arange(200) // 50  # sorted by class: the order that ruins an unshuffled IS
    one_hot = Extractor(Toy(), forward, id="one-hot", channels=1)
    found = image_metrics(images, draw(60, 1), one_hot, CONFIG)
    assert 3.5 < found["eval/is"] <= 4
    assert found["eval/is_sd"] > 0


def test_a_set_against_itself(extractor):
    images = draw(80, 0)
    found = image_metrics(images, images, extractor, CONFIG)
    scale = np.trace(np.cov(features_of(images, extractor), rowvar=False))
    assert abs(found["eval/fid"]) < 1e-9 * scale
    assert found["eval/precision"] == found["eval/recall"] == 1


def test_precision_and_recall_are_not_swapped(extractor):
    reference = draw(150, 0)
    rng = np.random.default_rng(1)
    narrow = reference[rng.integers(0, 10, 150)].astype(int) + rng.integers(-2, 3, reference.shape)
    narrow = np.clip(narrow, 0, 255).astype(np.uint8)  # near a few real images: precise, not diverse
    found = image_metrics(narrow, reference, extractor, CONFIG)
    assert found["eval/precision"] > 0.9 and found["eval/recall"] < 0.3


def test_results_repeat_and_do_not_depend_on_the_order_of_samples(extractor):
    samples, reference = draw(90, 0, high=180), draw(70, 1)
    found = image_metrics(samples, reference, extractor, CONFIG)
    by_brightness = samples[np.argsort(samples.mean((1, 2, 3)))]
    np.random.seed(5)  # a global seed must not matter either
    torch.manual_seed(5)
    assert image_metrics(by_brightness, reference, extractor, CONFIG) == found


def test_two_extractors_do_not_share_features(extractor):
    samples, reference = draw(60, 0, high=180), draw(60, 1)
    other = Toy()
    other.features.data *= 2
    doubled = Extractor(other, toy_forward, id="toy", channels=1)
    first = image_metrics(samples, reference, extractor, CONFIG)["eval/fid"]
    assert image_metrics(samples, reference, doubled, CONFIG)["eval/fid"] == pytest.approx(4 * first, rel=1e-9)


@pytest.mark.parametrize(
    ("samples", "reference", "message"),
    [
        (draw(9, 0), draw(60, 1), "samples: 9 images are too few; allowed: 10 or more"),
        (draw(60, 0), draw(3, 1), "reference images: 3 images are too few; allowed: 4 or more"),
        (draw(60, 0)[:, :, :5], draw(60, 1), r"samples: .*\(1, 5, 6\); allowed: \(1, 6, 6\)"),
        (draw(60, 0).repeat(3, 1), draw(60, 1).repeat(3, 1), r"shape \(\d+, 3, 6, 6\); allowed: \(images, 1"),
        (draw(60, 0) / 255, draw(60, 1), "samples: pixels of type float64"),
        (draw(60, 0) * np.nan, draw(60, 1), "samples: images with NaN pixels"),
    ],
)
def test_bad_sets_are_named(extractor, samples, reference, message):
    with pytest.raises(UserError, match=message):
        image_metrics(samples, reference, extractor, CONFIG)


@pytest.fixture(scope="module")
def tokenizer():
    from mvar.tokenizer.model import Tokenizer

    torch.manual_seed(0)
    config = TokenizerConfig(
        patch_sides=(1, 3), vocab_size=16, code_channels=4, width=8, channel_multipliers=(1, 2), mid_attention=False
    )
    return Tokenizer(config, in_channels=1)


def test_floors(extractor, tokenizer):
    from mvar.evaluation.floors import floors, psnr, reconstruct

    train, heldout = LabelledSet(160, 0), LabelledSet(60, 1)
    calls = []
    found = floors(tokenizer, train, heldout, extractor, CONFIG, lambda done, total: calls.append((done, total)))
    assert len(calls) > 8 and calls == sorted(set(calls))
    assert {of for _, of in calls} == {calls[-1][0]}  # counts images, up to all of all passes
    a, b = features_of(train, extractor), features_of(heldout, extractor)
    assert found["floor/fid_real"] == pytest.approx(closed_form(a, b), rel=1e-6)
    assert found["floor/fid_real"] == image_metrics(train, heldout, extractor, CONFIG)["eval/fid"]
    assert found["floor/fid_resplit"] == pytest.approx(found["floor/fid_real"], rel=0.5)  # one source, same sizes
    assert found["floor/fid_halves"] > found["floor/fid_resplit"] > 0  # smaller sets, larger bias
    assert found["floor/fid_resplit_sd"] > 0 and found["floor/fid_halves_sd"] > 0
    shown, usage = reconstruct(tokenizer, Images(heldout, "x"))
    assert isinstance(shown, np.memmap)  # of a file: reconstructions of a large set are not held in memory
    c = features_of(shown, extractor)
    assert found["floor/fid_reconstruction"] == found["floor/fid_reconstruction_heldout"]
    assert found["floor/fid_reconstruction_heldout"] == pytest.approx(closed_form(c, b), rel=1e-5)
    shown_train, _ = reconstruct(tokenizer, Images(train, "x"))
    d = features_of(shown_train, extractor)
    assert found["floor/fid_reconstruction_train"] == pytest.approx(closed_form(d, b), rel=1e-5)
    error = ((shown.astype(float) - heldout.array) ** 2).mean()
    assert found["floor/psnr"] == pytest.approx(10 * np.log10(255**2 / error))
    assert (usage.sum(0) > 0).sum() <= found["floor/codes_used"] <= 16
    logits = extractor.extract(Images(shown, "x"))[1]
    assert found["floor/label_accuracy_reconstruction"] == (logits.argmax(1).numpy() == heldout.labels).mean()
    for name, images in (("heldout", shown), ("train", shown_train)):
        rate = copy_rate(images, train, heldout)["eval/copy_rate"]
        assert found[f"floor/copy_rate_reconstruction_{name}"] == rate
    assert psnr(heldout, heldout) == pytest.approx(58.92, abs=0.01)
    assert floors(tokenizer, train, heldout, extractor, CONFIG) == found
    page = (DOCS / "metrics.md").read_text()
    assert [key for key in found if f"`{key}`" not in page] == []
    with pytest.raises(UserError, match="ndarray has no labels"):
        floors(tokenizer, train.array, heldout, extractor, CONFIG)


def test_floors_use_as_many_training_images_as_an_evaluation_has_samples(extractor, tokenizer):
    from mvar.evaluation.floors import floors

    train, heldout = LabelledSet(80, 0), LabelledSet(60, 1)
    found = floors(tokenizer, train, heldout, extractor, CONFIG.model_copy(update={"num_images": 40}))
    assert found["floor/fid_real"] == image_metrics(train.array[::2], heldout, extractor, CONFIG)["eval/fid"]


@pytest.mark.parametrize("share", [0.5, 1 / 3, 0.07])
def test_splits_keep_the_share_of_every_class(monkeypatch, share):
    from mvar.evaluation import floors

    seen = []

    def record(rest, chosen):
        seen.append((rest, chosen))
        return float(len(seen))

    monkeypatch.setattr(floors, "frechet_distance", record)
    labels = np.random.default_rng(0).permutation(np.arange(90) % 3)
    found = floors._over_splits("x", torch.arange(90.0)[:, None], labels, share)
    assert found == {"x": 3.0, "x_sd": pytest.approx(2.5**0.5)}
    assert len({tuple(chosen.flatten().tolist()) for _, chosen in seen}) == floors.NUM_SPLITS
    for rest, chosen in seen:
        assert sorted(torch.cat((rest, chosen)).flatten().tolist()) == list(range(90))
        counts = np.bincount(labels[chosen.flatten().long().numpy()], minlength=3)
        assert np.abs(counts - 30 * share).max() <= 1


def measured(extractor, progress=None, **parts):
    """Every metric of ours, as a run's evaluation has them."""
    given = Parts(extractor=lambda: extractor, **{name: lambda part=part: part for name, part in parts.items()})
    inputs, found = Inputs(CONFIG, given), {}
    lacks = {"label_accuracy": not extractor.knows_labels, "sfid": not extractor.has_spatial}
    metrics = {n: kind for n, kind in every_metric().items() if not lacks.get(n)}
    for (name, kind), report in zip(metrics.items(), shares(progress, len(metrics)), strict=True):
        found |= compute(name, kind(), inputs, report)
    return found


def test_the_whole_evaluation(extractor, tokenizer):
    from mvar.transformer import ScaleTransformer

    space = TokenSpace((1, 3), vocab_size=16, code_channels=4, num_classes=4)
    model = ScaleTransformer(ModelConfig(depth=1, width=16, num_heads=2), space)
    samples, train, heldout = draw(50, 0), draw(80, 1), draw(60, 2)
    labels = extractor.extract(Images(samples, "x"))[1].argmax(1).numpy()
    labels[:5] = (labels[:5] + 1) % 4
    parts = {
        "weights": (model, tokenizer.quantize),
        "tokens": (np.random.default_rng(0).integers(0, 16, (60, 10)), np.arange(60) % 4),
        "train": train,
        "reference": heldout,
    }
    calls = []
    found = measured(extractor, lambda *call: calls.append(call), samples=(samples, labels), **parts)
    assert found["eval/label_accuracy"] == 0.9  # the labels follow their images into the order of the content
    assert {"eval/fid", "eval/nll_bits_per_token", "eval/nll_bits_scale_01", "eval/copy_rate"} < set(found)
    assert found | image_metrics(samples, heldout, extractor, CONFIG) == found
    assert found | copy_rate(samples, train, heldout) == found
    assert {of for _, of in calls} == {1000 * (len(every_metric()) - 1)} and calls == sorted(calls) and len(calls) > 4
    order = np.random.default_rng(3).permutation(50)
    assert measured(extractor, samples=(samples[order], labels[order]), **parts) == found
    unlabelled = Extractor(Toy(), toy_forward, id="toy", channels=1)
    lacks = set(found) - set(measured(unlabelled, samples=(samples, labels), **parts))
    assert lacks == {"eval/label_accuracy"}
    with pytest.raises(UserError, match=r"labels: shape \(49,\); allowed: \(50,\)"):
        measured(extractor, samples=(samples, labels[1:]), **parts)


def test_each_metric_is_what_torch_fidelity_computes_in_one_call(extractor):
    from torch_fidelity import FeatureExtractorBase, calculate_metrics, register_feature_extractor

    class Adapter(FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list():
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, images):
            parts = dict(zip(("features", "logits"), extractor(images), strict=True))
            return tuple(parts[name] for name in self.features_list)

    register_feature_extractor("whole", Adapter)
    samples, reference = draw(150, 0, high=180), draw(130, 1)
    ordered = Images(samples, "samples")
    whole = calculate_metrics(
        input1=ordered.subset(ordered.content_order()),
        input2=Images(reference, "reference"),
        feature_extractor="whole",
        **dict.fromkeys(("isc", "fid", "kid", "prc", "save_cpu_ram"), True),
        **dict.fromkeys(("cuda", "cache", "verbose"), False),
        isc_splits=10,
        kid_subset_size=CONFIG.kid_subset_size,
        rng_seed=2020,
        batch_size=64,
    )
    found = image_metrics(samples, reference, extractor, CONFIG)
    assert found.pop("eval/kid_subset_size") == CONFIG.kid_subset_size
    theirs = ("frechet_inception_distance", "inception_score_mean", "inception_score_std")
    theirs += ("kernel_inception_distance_mean", "kernel_inception_distance_std", "precision", "recall")
    assert list(found.values()) == [whole[name] for name in theirs]


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A file with the keys and shapes of torch-fidelity's Inception and random weights."""
    path = tmp_path_factory.mktemp("inception") / INCEPTION_FILE
    write_inception(path)
    return path


def test_inception_from_a_file(inception_file, monkeypatch):
    monkeypatch.setenv("TEST_WEIGHTS", str(inception_file.parent))
    extractor = inception(f"$TEST_WEIGHTS{os.sep}{INCEPTION_FILE}", channels=1)
    grey = torch.from_numpy(draw(2, 0))
    features, logits = extractor(grey)
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    assert features.dtype == logits.dtype == torch.float64
    assert not extractor.knows_labels and extractor.heldout_accuracy is None
    colour = inception(str(inception_file), channels=3)
    assert torch.equal(colour(grey.repeat(1, 3, 1, 1))[0], features)


def test_inceptions_spatial_features_are_seven_channels_of_a_rectified_map(inception_file):
    """ADM's sFID: the first 7 channels of `mixed_6/conv`, 17 x 17 places, channels last."""
    extractor = Extractor(
        inception_network(str(inception_file)), inception_forward, id="x", channels=3, spatial=inception_spatial
    )
    images = torch.from_numpy(draw(2, 0)).repeat(1, 3, 1, 1)
    features, logits, spatial = extractor.with_spatial(images)
    assert spatial.shape == (2, 2023) and spatial.dtype == torch.float64 and spatial.min() == 0 < spatial.max()
    seen = {}
    layer = extractor.network.Mixed_6d.branch1x1
    layer.bn.register_forward_hook(lambda m, given, found: seen.update(normed=found.clone()))
    assert torch.equal(extractor(images)[0], features) and torch.equal(extractor(images)[1], logits)
    by_place = spatial.reshape(2, 17, 17, 7)
    assert torch.equal(by_place[1, 3, 4], seen["normed"][1, :7, 3, 4].relu().double())


def test_rejection_is_judged_by_inceptions_logits(inception_file):
    class Training:
        labels = np.arange(4) % 2
        pixels = draw(4, 0)

        def image(self, i, rng):
            return self.pixels[i]

    extractor = inception(str(inception_file), channels=1)
    outputs = class_outputs(extractor, Training(), 2, per_class=2)
    images = np.moveaxis(draw(3, 1), 1, -1)
    scores = label_score(extractor, outputs, images, torch.tensor([0, 1, 1]))
    _, logits = extractor(torch.from_numpy(draw(3, 1)))
    assert all(0 <= number < 1008 for number in outputs)
    expected = logits.log_softmax(-1)[torch.arange(3), torch.tensor(outputs)[[0, 1, 1]]]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_inception_weights_are_read_once_and_never_run(inception_file, tmp_path, monkeypatch, capsys):
    """The file that is swapped after it was read, and files with objects, NaN or more than they hold."""
    import builtins
    from pathlib import Path

    state = torch.load(inception_file, weights_only=True)
    path = tmp_path / "given.pth"
    real, opened = Path.open, []

    def swap(self, *args, **kwargs):
        file = real(self, *args, **kwargs)
        if self == path:
            opened.append(args)
            path.unlink()
            torch.save(Evil(), path)
        return file

    torch.save(state, path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", swap)
        extractor = inception(str(path), channels=3)
    assert len(opened) == 1
    weight = "Conv2d_1a_3x3.conv.weight"
    assert torch.equal(extractor.network.state_dict()[weight], state[weight])
    spoiled = state[weight].clone()
    spoiled[0, 0, 0, 0] = float("nan")
    bad = {
        "builtins.print": Evil(),
        "could run code": state | {"extra": Evil()},
        "more values than the file holds": state | {weight: torch.zeros(1).expand(10**6, 10**6)},
        "is not finite": state | {weight: spoiled},
        "no state dict": [1, 2],
        "cannot use": {**state, "extra": 1},
    }
    for says, content in bad.items():
        torch.save(content, path)
        with pytest.raises(UserError, match=says) as error:
            inception(str(path), channels=3)
        assert "evaluation.inception_weights" in str(error.value) and "\n" not in str(error.value)
    assert capsys.readouterr().out == "" and builtins.print is print


@pytest.mark.parametrize("kind", ["none", "missing", "not a file of weights", "other weights", "truncated"])
def test_inception_without_its_file_says_which_one(inception_file, tmp_path, kind):
    path = tmp_path / "given.pth"
    if kind == "not a file of weights":
        path.write_bytes(b"<html>404</html>")
    elif kind == "other weights":
        torch.save({"weight": torch.zeros(2)}, path)
    elif kind == "truncated":
        path.write_bytes(inception_file.read_bytes()[:1000])
    with pytest.raises(UserError, match=INCEPTION_FILE) as error:
        inception(None if kind == "none" else str(path), channels=3)
    assert "evaluation.inception_weights" in str(error.value) and "\n" not in str(error.value)


def test_the_page_has_every_metric_and_key():
    """Each with version, direction, definition and source, and a pitfall that names it."""
    page = (DOCS / "metrics.md").read_text()
    table, pitfalls = page.split("\nPitfalls:\n", 1)
    pitfalls = pitfalls.split("\n## ", 1)[0]
    rows = {line.split("|")[1].strip(): line.split("|") for line in table.splitlines() if line.startswith("| `")}
    assert set(rows) == {f"`{name}`" for name in every_metric()}
    for name, kind in every_metric().items():
        _, _, keys, version, better, definition, source, _ = (cell.strip() for cell in rows[f"`{name}`"])
        for key in (*kind.keys, *kind.also):
            assert f"`{key.removeprefix('eval/').replace('*', '00')}`" in keys, key
        assert version == str(kind.version)
        assert better.split()[:1] == (["lower"] if kind.lower else ["higher"] if kind.higher else [])
        assert len(definition) > 40 and source, name
        assert f"`{name}`" in pitfalls or f"`{kind.keys[0].removeprefix('eval/')}`" in pitfalls, name


def test_the_page_has_a_version_of_what_is_no_metric_of_an_evaluation():
    """Of tokenizers all that is measured, of the log the likelihoods, which are `nll`."""
    page = (DOCS / "metrics.md").read_text()
    (table,) = [part for part in page.split("\n\n") if part.startswith("| what | version |")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    measured = {field.name for field in fields(TokenizerQuality)} - {"num_images", "vocab_size", "sides"}
    shown = {name.split("_")[0] for name in measured}  # rfid, psnr_db, ...
    assert {row[0].lower().split()[0] for row in rows} == shown
    assert all(row[1] == str(VERSION) and len(row[3]) > 25 and row[4] for row in rows)
    for key in ("train/nll_bits_per_token", "heldout/nll_bits_per_token"):
        assert f"| `{key}` | {every_metric()['nll'].version} | lower | " in page
