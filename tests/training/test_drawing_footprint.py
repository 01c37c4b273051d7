"""Memory of drawing and of encoding on a GPU, counted without values."""

import pytest
import torch

from mvar.config import RuntimeConfig, override
from mvar.kernels.fake_gpu import fake_gpu
from mvar.presets import IMAGENET, PRESETS
from mvar.runs.gpu_plan import GB, MOST_DRAWN, most_drawn
from mvar.runs.gpus import Machine
from mvar.tokenizer.model import Tokenizer
from mvar.training import drawing_footprint as counting
from mvar.training.drawing_footprint import drawing, encoding, held_by_drawing
from mvar.transformer import ScaleTransformer

TORCH = RuntimeConfig(scan_backend="torch", attention_backend="torch")
CARD = Machine.parse("1xh100-80gb")
MIXED = override(
    PRESETS["smoke"],
    {"model.pattern": "2*intra+mamba 2*global markov:1", "model.depth": 5, "tokenizer.patch_sides": [1, 2, 4]},
)


@pytest.mark.slow
@pytest.mark.parametrize("graphs", [False, True])
def test_a_few_layers_and_images_stand_for_all_of_them(graphs):
    """What drawing holds grows linearly with both: to the byte, in a model of mixed layers."""
    with torch.device("meta"):
        model, tokenizer = ScaleTransformer(MIXED.model, MIXED.token_space, TORCH), Tokenizer(MIXED.tokenizer, 1)
    counted = counting._drawn(MIXED.model, MIXED.token_space, MIXED.tokenizer, MIXED.sample, graphs)
    assert counted.weights == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    with fake_gpu():
        model.to_empty(device="cuda").eval(), tokenizer.to_empty(device="cuda").eval()
        held = held_by_drawing(model, tokenizer.quantize, MIXED.sample, 9, graphs)
    assert counted.held.at(9) == held
    config = override(MIXED, {"runtime.cuda_graphs": graphs})
    assert drawing(config, 9) >= counted.weights + held


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet512-d36", "imagenet1024-d24"])
def test_every_model_of_the_papers_draws_on_one_card(name):
    """The largest two; others have fewer tokens, or fewer layers. Of these 50 images at once would not fit."""
    config = PRESETS[name]
    images = most_drawn(config, CARD)
    assert images >= 8 and drawing(config, images) / GB <= CARD.limit_gb
    assert images < MOST_DRAWN and drawing(config, images + 1) / GB > CARD.limit_gb


@pytest.mark.slow
def test_the_tokens_of_every_preset_are_written_on_one_card():
    for name, config in IMAGENET.items():
        assert encoding(config) / GB < 8, name
