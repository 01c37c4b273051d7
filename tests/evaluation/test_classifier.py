import numpy as np
import pytest
import torch

from mvar import layout
from mvar.config import RunConfig, override
from mvar.data.splits import load_images
from mvar.errors import UserError
from mvar.evaluation.extractors.classifier import Classifier, ClassifierObjective, random_shift
from mvar.evaluation.extractors.contract import kind_of
from mvar.evaluation.images import Images

CONFIG = override(
    RunConfig(),
    {"evaluation.classifier_steps": 80, "runtime.device": "cpu", "runtime.checkpoint_every": 30},
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("extractor")
    calls = []
    assert kind_of(CONFIG).train(directory, lambda *call: calls.append(call))
    assert calls[-1] == (80, 80)
    return directory


def test_learns_the_digits(trained):
    extractor = kind_of(CONFIG).load(trained)
    heldout = load_images(CONFIG.data, "heldout")
    features, logits = extractor.extract(Images(heldout, "heldout"))
    assert features.shape == (len(heldout), 64) and features.dtype == torch.float64
    accuracy = (logits.argmax(1).numpy() == heldout.labels).mean()
    assert extractor.heldout_accuracy == accuracy > 0.9  # 250 steps reach 0.99
    assert extractor.id == CONFIG.extractor_id and extractor.knows_labels


def test_features_do_not_depend_on_the_batch(trained):
    extractor = kind_of(CONFIG).load(trained)
    images = Images(load_images(CONFIG.data, "heldout"), "heldout").subset(np.arange(10))
    whole, single = (extractor.extract(images, size)[0] for size in (10, 1))
    torch.testing.assert_close(whole, single, rtol=1e-12, atol=1e-12)


def test_resumes_bit_for_bit(trained, tmp_path):
    steps = 0

    def stop_half_way():
        nonlocal steps
        steps += 1
        return steps > 40

    assert not kind_of(CONFIG).train(tmp_path, should_stop=stop_half_way)
    assert not (tmp_path / layout.CLASSIFIER).exists()
    with pytest.raises(UserError, match=r"extractor: no file .*classifier"):
        kind_of(CONFIG).load(tmp_path)
    assert kind_of(CONFIG).train(tmp_path)
    assert (tmp_path / layout.CLASSIFIER).read_bytes() == (trained / layout.CLASSIFIER).read_bytes()


def test_a_finished_one_is_not_trained_again(trained):
    before = (trained / layout.CLASSIFIER).stat().st_mtime_ns
    assert kind_of(CONFIG).train(trained)
    assert (trained / layout.CLASSIFIER).stat().st_mtime_ns == before


def test_weights_of_another_extractor_are_refused(trained):
    other = override(CONFIG, {"evaluation.classifier_seed": 1})
    with pytest.raises(UserError, match=f"is of extractor {CONFIG.extractor_id}; allowed: {other.extractor_id}"):
        kind_of(other).load(trained)


def test_truncated_weights_are_an_error(trained, tmp_path):
    (tmp_path / layout.CLASSIFIER).write_bytes((trained / layout.CLASSIFIER).read_bytes()[:500])
    with pytest.raises(UserError, match=layout.CLASSIFIER):
        kind_of(CONFIG).load(tmp_path)


def test_inception_is_built_from_the_config(tmp_path):
    config = override(CONFIG, {"evaluation.extractor": "inception"})
    with pytest.raises(UserError, match=r"evaluation\.inception_weights: not set"):
        kind_of(config).load(tmp_path)


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 8), (3, 33), (1, 4)])
def test_any_size_and_channels(channels, side):
    features, logits = Classifier(channels, 7)(torch.zeros(2, channels, side, side))
    assert features.shape == (2, 64) and logits.shape == (2, 7)
    torch.testing.assert_close(features.square().mean(1), torch.ones(2), rtol=1e-2, atol=0)


def test_batches_hang_on_the_step_alone():
    objective, again = (ClassifierObjective(Classifier(1, 10), load_images(CONFIG.data, "train"), 0) for _ in range(2))
    again.batch(0, np.random.default_rng(9))
    for step in (3, 40):  # the second is in another epoch
        images, labels = (o.load(o.batch(step, np.random.default_rng(step))) for o in (objective, again))
        assert torch.equal(images[0], labels[0]) and torch.equal(images[1], labels[1])
        assert images[0].shape == (64, 1, 8, 8) and images[0].dtype == torch.uint8


def test_shifts_are_of_one_pixel_and_all_occur():
    image = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5)
    rng = np.random.default_rng(0)
    shifted = [random_shift(image, rng) for _ in range(200)]
    assert {int(s[0, 2, 2]) for s in shifted} == {image[0, y, x] for y in (1, 2, 3) for x in (1, 2, 3)}
    down = next(s for s in shifted if s[0, 2, 2] == image[0, 1, 2])
    assert np.array_equal(down[0, 1:], image[0, :-1]) and np.array_equal(down[0, 0], image[0, 0])
