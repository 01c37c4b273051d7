"""Single maps equal the official code's, and drawings show what they were given."""

import numpy as np
import pytest
import torch
from official import load_model

from mvar.analysis import maps, pictures, style
from mvar.analysis.maps import attention_map
from mvar.config import ModelConfig, SampleConfig, TokenizerConfig, TokenSpace
from mvar.errors import UserError
from mvar.probes.attention_mass import attention_stats
from mvar.scales import ScaleSchedule
from mvar.tokenizer.model import Tokenizer
from mvar.transformer import ScaleTransformer


@pytest.fixture(scope="module", params=["var_plain", "var_l2"])
def official(request):
    facts, model, inputs, outputs = load_model(request.param)
    return facts, model, inputs["tf.label"], inputs["tf.x"], outputs


def test_whole_maps_are_the_official_ones(official):
    facts, model, labels, inputs, outputs = official
    for layer in range(facts["depth"]):
        expected = outputs[f"attn.probs.{layer}"][1]
        for head in range(facts["heads"]):
            found = attention_map(model, labels[1], inputs[1], layer, head)
            torch.testing.assert_close(found, expected[head], rtol=0, atol=2e-5)
        mean = attention_map(model, labels[1], inputs[1], layer)
        torch.testing.assert_close(mean, expected.mean(0), rtol=0, atol=2e-5)


def test_rows_and_scales_are_parts_of_the_whole_map(official):
    _, model, labels, inputs, _ = official
    schedule = model.schedule
    whole = attention_map(model, labels[0], inputs[0], 1, 1)
    for query in (0, 3, schedule.num_tokens - 1):
        seen = schedule.span().visible(schedule.levels[query])
        row = attention_map(model, labels[0], inputs[0], 1, 1, query=query)
        assert row.shape == (seen,) and row.sum() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(row, whole[query, :seen])
    for scale, step in enumerate(schedule.steps()):
        part = attention_map(model, labels[0], inputs[0], 1, 1, scale=scale)
        torch.testing.assert_close(part, whole[step.start : step.stop, : step.stop])


def test_a_map_is_what_the_statistics_add_up(official):
    _, model, labels, inputs, _ = official
    stats = attention_stats(model, [(labels[:1], inputs[:1])])
    whole = attention_map(model, labels[0], inputs[0], 0, 1).double()
    lengths = model.schedule.lengths
    mass = torch.stack(
        [torch.stack([b.sum(1).mean() for b in rows.split(lengths, 1)]) for rows in whole.split(lengths, 0)]
    )
    torch.testing.assert_close(stats.mean[0, 1], mass, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"layer": 2}, "layer: '2' is unknown.*allowed: 0, 1"),
        ({"head": 3}, "head: 3; allowed: 0 to 2"),
        ({"query": 30}, "query: 30; allowed: 0 to 29"),
        ({"scale": -1}, "scale: -1; allowed: 0 to 3"),
    ],
)
def test_what_is_not_there_is_refused(wanted, message):
    _, model, inputs, _ = load_model("var_l2")
    with pytest.raises(UserError, match=message):
        attention_map(model, 0, inputs["tf.x"][0], **({"layer": 0} | wanted))


def test_weights_lie_where_their_tokens_lie():
    schedule = ScaleSchedule((1, 2, 4))
    weights = torch.zeros(21)
    weights[0], weights[2], weights[20] = 0.5, 0.3, 0.2  # 2x2: upper right; 4x4: lower right corner
    figure = pictures.query_figure(weights, schedule, 20, np.zeros((8, 8, 1), np.uint8))
    heat = [np.asarray(ax.images[0].get_array()) for ax in figure.axes[1:]]  # after the picture itself
    assert [h.shape for h in heat] == [(1, 1), (2, 2), (4, 4)]
    assert heat[1][0, 1] == pytest.approx(0.3) and heat[1].sum() == pytest.approx(0.3)
    assert heat[2][3, 3] == pytest.approx(0.2) and heat[2].sum() == pytest.approx(0.2)
    assert [ax.images[0].get_extent() for ax in figure.axes] == [[0, 1, 1, 0]] * 4
    assert all(ax.images[0].get_alpha() is None for ax in figure.axes)  # no veil: weights in plain colours
    assert len(pictures.query_figure(torch.ones(5) / 5, schedule, 2, np.zeros((8, 8, 3), np.uint8)).axes) == 3


def test_the_outline_of_the_picture_lies_over_the_weights():
    picture = np.zeros((8, 8, 1), np.uint8)
    picture[:, 4:] = 200  # dark left of the middle, bright right of it
    figure = pictures.query_figure(torch.ones(5) / 5, ScaleSchedule((1, 2)), 3, picture)
    for ax in figure.axes[1:]:
        line = np.concatenate([path.vertices for drawn in ax.collections for path in drawn.get_paths()])
        assert len(line) and line[:, 0] == pytest.approx(0.5, abs=0.01)
    plain = pictures.query_figure(torch.ones(5) / 5, ScaleSchedule((1, 2)), 3, np.zeros((8, 8, 1), np.uint8))
    assert not any(ax.collections for ax in plain.axes)  # one colour has no outline


def test_two_looks_are_drawn_one_below_the_other():
    schedule, image = ScaleSchedule((1, 2)), np.zeros((2, 8, 8, 1), np.uint8)
    looks = [pictures.Look(torch.full((5,), 0.2), image, title) for title in ("above", "below")]
    figure = pictures.looks_figure(looks, schedule, 3)
    assert len(figure.axes) == 6 and all(text in words(figure) for text in ("above", "below", "framed: token 3"))


def small(channels=3):
    torch.manual_seed(0)
    config = TokenizerConfig(
        patch_sides=(1, 2, 3), vocab_size=16, code_channels=4, width=8, channel_multipliers=(1, 2), mid_attention=False
    )
    tokenizer = Tokenizer(config, channels).eval()
    model = ScaleTransformer(
        ModelConfig(depth=3, width=16, num_heads=2, pattern="global"), TokenSpace((1, 2, 3), 16, 4, 5)
    ).eval()
    return model, tokenizer


def test_an_image_grows_into_what_is_drawn():
    from mvar.data.crops import to_uint8
    from mvar.sampling import generate

    model, tokenizer = small()
    labels, seeds, sample = torch.tensor([0, 3]), [(0, 0), (0, 1)], SampleConfig(cfg_scale=2)
    images = pictures.grow(model, tokenizer, labels, seeds, sample)
    assert images.shape == (2, 3, 6, 6, 3) and images.dtype == np.uint8
    drawn = generate(model, tokenizer.quantize, labels, seeds, sample)
    for scale, latent in enumerate(tokenizer.quantize.latents(drawn.tokens)):
        expected = to_uint8(tokenizer.decode(latent)).permute(0, 2, 3, 1).numpy().astype(int)
        assert np.abs(images[:, scale].astype(int) - expected).max() <= 1


def words(figure):
    """Everything that is written on a figure."""
    from matplotlib.text import Text

    return " | ".join(text.get_text() for text in figure.findobj(Text) if text.get_text())


@pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_drawings_say_what_they_show(tmp_path, channels):
    model, tokenizer = small(channels)
    labels, inputs = torch.tensor([0, 3, 1]), torch.randn(3, 13, 4)
    stats = attention_stats(model, [(labels, inputs)])
    grown = pictures.grow(model, tokenizer, labels, [(0, i) for i in range(3)], SampleConfig())
    row = attention_map(model, labels[0], inputs[0], 1, query=7)
    figures = {
        "map": (maps.map_figure(attention_map(model, 0, inputs[0], 1, 0), model.schedule, "layer 1"), "layer 1"),
        "scale": (
            maps.map_figure(attention_map(model, 0, inputs[0], 1, 0, scale=2), model.schedule),
            "query token of scale 3×3",
        ),
        "one token": (
            maps.map_figure(attention_map(model, 0, inputs[0], 1, 0, scale=0), model.schedule),
            "query token of scale 1×1",
        ),
        "flow": (maps.flow_figure(stats), "mean over 3 layers"),
        "flow1": (maps.flow_figure(stats, 1), "layer 1"),
        "heads": (
            maps.heads_figure(stats),
            f"head 1: {float(stats.intra_per_head[0, 1]):.0%}\n{float(stats.head_entropy[0, 1]):.2f} nats",
        ),
        "layers": (maps.layers_figure(stats), "mass inside the own scale (%)"),
        "query": (
            pictures.query_figure(row, model.schedule, 7, grown[0, -1]),
            f"2×2: {float(row[1:5].sum()):.0%}\nmost {float(row[1:5].max()):.1%}",
        ),
        "growth": (pictures.growth_figure(grown, (1, 2, 3), ["a", "b", "c"]), "+ 3×3"),
    }
    for name, (figure, text) in figures.items():
        assert text in words(figure), name
        style.save(figure, tmp_path, name)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000 and (tmp_path / f"{name}.pdf").stat().st_size > 1000


def entropies_of_maps(model, inputs, layer):
    """Entropy by query scale, of the maps themselves: mean over heads, queries and the images of classes 0 and 3."""
    maps_of = [attention_map(model, c, x, layer, h) for c, x in zip((0, 3), inputs, strict=True) for h in range(2)]
    entropy = torch.stack([-torch.xlogy(p, p).sum(-1) for p in maps_of]).mean(0)
    return [float(part.mean()) for part in entropy.split(model.schedule.lengths)]


def test_the_flow_matrix_is_drawn_in_percent_beside_its_entropy():
    model, _ = small()
    inputs = torch.randn(2, 13, 4)
    stats = attention_stats(model, [(torch.tensor([0, 3]), inputs)])
    figure = maps.flow_figure(stats, 2)
    mesh = figure.axes[0].collections[0]
    drawn = np.ma.filled(mesh.get_array().reshape(3, 3), 0)
    np.testing.assert_allclose(drawn, 100 * stats.matrix[2].numpy(), atol=1e-6)
    beside = [axis for axis in figure.axes[0].child_axes if axis.get_ylabel() == "entropy (nats)"]
    written = [float(text.get_text()) for text in beside[0].get_yticklabels()]
    assert written == pytest.approx(entropies_of_maps(model, inputs, 2), abs=0.0051)
    with pytest.raises(UserError, match="layer: '7' is unknown"):
        maps.flow_figure(stats, 7)
