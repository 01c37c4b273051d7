"""Attention mass and entropy: equal to materialised softmax, to the official code's numbers, and without L x L maps."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from official import load_model
from scipy import stats as scipy_stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mvar.analysis.maps import attention_map
from mvar.config import ModelConfig, TokenSpace
from mvar.errors import UserError
from mvar.probes.attention_mass import (
    TILE_CELLS,
    AttentionStats,
    attention_rows,
    attention_stats,
    observing,
    scale_attention,
)
from mvar.probes.cut_text import parse_cut
from mvar.probes.interventions import sites_of
from mvar.scales import ScaleSchedule
from mvar.transformer import ScaleTransformer

FIELDS = ("mean", "sd", "entropy", "entropy_sd", "matrix_sd", "intra_sd", "layer_entropy_sd")


def golden(case):
    facts, model, inputs, outputs = load_model(case)
    return facts, model, inputs["tf.label"], inputs["tf.x"], outputs


def materialised(q, k, schedule):
    """The L x L map that the code under test never holds, summed over the keys of each scale, and its entropy."""
    levels = torch.tensor(schedule.levels)
    scores = (q @ k.transpose(-1, -2)).masked_fill(levels[:, None] < levels, -torch.inf)
    return summed(scores.softmax(-1), schedule)


def summed(p, schedule):
    return torch.stack([part.sum(-1) for part in p.split(schedule.lengths, -1)], -1), -torch.xlogy(p, p).sum(-1)


@given(
    sides=st.lists(st.integers(1, 5), min_size=1, max_size=5).map(sorted).map(tuple),
    head_dim=st.sampled_from([3, 16]),  # 3: fewer channels than scales
    temperature=st.sampled_from([0.01, 1, 100]),  # 100: qk-norm's ceiling, where a naive exp overflows
    tile_cells=st.sampled_from([None, 1, 50, 1000]),
)
def test_equals_materialised_softmax_in_fp64(sides, head_dim, temperature, tile_cells):
    schedule = ScaleSchedule(sides)
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, schedule.num_tokens, head_dim, dtype=torch.float64)
    mass, entropy = scale_attention(q * temperature, k, schedule, tile_cells)
    expected_mass, expected_entropy = materialised(q * temperature, k, schedule)
    assert (mass - expected_mass).abs().max() < 1e-9
    assert (entropy - expected_entropy).abs().max() < 1e-9
    assert (mass.sum(-1) - 1).abs().max() < 1e-9 and mass.min() >= 0


def test_mass_is_a_difference_of_log_sum_exps():
    schedule = ScaleSchedule((1, 2, 3))
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, schedule.num_tokens, 8, dtype=torch.float64)
    mass, _ = scale_attention(q, k, schedule)
    scores = q[:, :, -9:] @ k.transpose(-1, -2)
    for scale, part in enumerate(scores.split(schedule.lengths, -1)):
        expected = (part.logsumexp(-1) - scores.logsumexp(-1)).exp()
        assert (mass[:, :, -9:, scale] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("case", ["var_plain", "var_l2"])
def test_official_maps_per_query(case):
    _, model, labels, inputs, outputs = golden(case)
    found = {}
    see = lambda i, q, k: found.update({i: scale_attention(q, k, model.schedule)})  # noqa: E731
    with torch.inference_mode(), observing(model, see):
        model(labels, inputs)
    for i, (mass, entropy) in found.items():
        own = mass.gather(-1, model.levels[None, None, :, None].expand(*mass.shape[:3], 1)).squeeze(-1)
        torch.testing.assert_close(own, outputs[f"attn.intra_per_query.{i}"], rtol=0, atol=2e-5)
        official_mass, official_entropy = summed(outputs[f"attn.probs.{i}"].double(), model.schedule)
        torch.testing.assert_close(mass.double(), official_mass, rtol=0, atol=2e-5)
        torch.testing.assert_close(entropy.double(), official_entropy, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["var_plain", "var_l2"])
def test_official_shares(case):
    config, model, labels, inputs, _ = golden(case)
    stats = attention_stats(model.double(), [(labels, inputs.double())])
    assert stats.layers == tuple(range(config["depth"])) and stats.num_images == len(labels)
    for i, official in enumerate(config["attn_shares"]):
        close = lambda ours, theirs: torch.testing.assert_close(  # noqa: E731
            ours, torch.tensor(theirs, dtype=torch.float64), rtol=0, atol=2e-5
        )
        close(stats.intra[i], official["intra"])
        close(1 - stats.intra[i], official["inter"])
        close(stats.intra_per_head[i], official["intra_per_head"])
        close(stats.intra_per_scale[i], official["intra_per_scale"])
        close(stats.intra_without_first_scale[i], official["intra_without_first_scale"])
        close(stats.intra_per_scale[i].mean(), official["intra_mean_of_scale_means"])
        close(stats.matrix[i], official["scale_to_scale_mass"])
    assert stats.share == pytest.approx(sum(s["intra"] for s in config["attn_shares"]) / config["depth"], abs=2e-5)


def tiny(pattern, images=7):
    torch.manual_seed(1)
    model = ScaleTransformer(
        ModelConfig(depth=3, width=16, num_heads=2, pattern=pattern, init_adaln_gamma=1.0),
        TokenSpace((1, 2, 3), 11, 4, 5),
    ).double()
    return model, torch.randint(0, 5, (images,)), torch.randn(images, 13, 4, dtype=torch.float64)


def test_streaming_does_not_depend_on_the_batches():
    model, labels, inputs = tiny("global")
    calls = []
    whole = attention_stats(model, [(labels, inputs)])
    parts = attention_stats(
        model, zip(labels.split(3), inputs.split(3), strict=True), lambda *a: calls.append(a), total=7
    )
    for name in FIELDS:
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-12)
    assert calls == [(3, 7), (6, 7), (7, 7)]


def test_deviations_and_intervals_are_over_images():
    model, labels, inputs = tiny("global")
    whole = attention_stats(model, [(labels, inputs)])
    singles = [attention_stats(model, [(a[None], b[None])]) for a, b in zip(labels, inputs, strict=True)]
    views = {
        "sd": "mean",
        "entropy_sd": "entropy",
        "matrix_sd": "matrix",
        "intra_sd": "intra",
        "layer_entropy_sd": "layer_entropy",
    }
    for deviation, name in views.items():
        values = torch.stack([getattr(single, name) for single in singles])
        torch.testing.assert_close(getattr(whole, name), values.mean(0), rtol=0, atol=1e-12)
        torch.testing.assert_close(getattr(whole, deviation), values.std(0), rtol=0, atol=1e-12)
    shares = [single.share for single in singles]
    low, high = scipy_stats.ttest_1samp(shares, 0).confidence_interval(0.95)
    half = float(whole.half_width(whole.share_sd))
    assert (whole.share - half, whole.share + half) == pytest.approx((low, high), abs=1e-12)
    assert singles[0].share_sd == 0 and singles[0].half_width(0.0).isnan()


def test_shares_by_key_scale_and_relative_entropy():
    model, labels, inputs = tiny("global")
    stats = attention_stats(model, [(labels, inputs)])
    lengths = torch.tensor([1.0, 4, 9], dtype=torch.float64)
    expected = (stats.matrix * lengths[:, None] / lengths.sum()).sum(1)
    torch.testing.assert_close(stats.key_shares, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(stats.key_shares.sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    uniform = torch.tensor([5.0, 14], dtype=torch.float64).log()
    assert stats.relative_entropy[..., 0].isnan().all()
    torch.testing.assert_close(stats.relative_entropy[..., 1:] * uniform, stats.entropy[..., 1:])
    with torch.no_grad():  # equal scores: uniform attention
        for block in model.blocks:
            block.attn.mat_qkv.weight.zero_()
            block.attn.q_bias.zero_()
    uniform_stats = attention_stats(model, [(labels, inputs)])
    torch.testing.assert_close(uniform_stats.layer_relative_entropy, torch.ones(3, dtype=torch.float64))


def test_under_a_cut_mass_and_entropy_are_those_of_the_maps():
    """Of the very pairs that a cut masks, and of the queries, heads and layers that they are in."""
    model, labels, inputs = tiny("global", images=2)
    stats, levels = attention_stats(model, [(labels, inputs)]), torch.tensor(model.schedule.levels)
    maps = {
        (layer, head): torch.stack([attention_map(model, labels[n], inputs[n], layer, head) for n in range(2)])
        for layer in range(3)
        for head in range(2)
    }
    texts = ("own", "coarser", "scale:1", "all,layer=2", "own,layer=0,head=1", "scale:0,queries=2", "own,queries=1")
    for cut in map(parse_cut, (*texts, "coarser,layer=0+2,queries=1", "own,kind=mean")):
        rows = levels == cut.queries if cut.queries is not None else levels >= 0
        found = []
        for layer, site in zip(cut.layers or range(3), sites_of(model, cut), strict=True):
            for head in cut.heads or range(2):
                p, taken = maps[layer, head][:, rows], site.pairs.expand(2, -1, -1)[head][rows]
                found.append([float((p * taken).sum(-1).mean()), float(-torch.xlogy(p, p).sum(-1).mean())])
        assert stats.under(cut) == pytest.approx(tuple(np.mean(found, axis=0)), abs=1e-6), cut.text
    assert stats.under(parse_cut("own"))[0] == pytest.approx(stats.share)


def test_one_row_an_image():
    model, labels, inputs = tiny("global intra global")
    (rows,) = attention_rows(model, [(labels, inputs)])
    assert rows.shape == (7, 2, 2, 3, 4) and rows.dtype == torch.float64
    stats = attention_stats(model, [(labels, inputs)])
    torch.testing.assert_close(rows[..., :3].mean(0), stats.mean)
    torch.testing.assert_close(rows[..., 3].mean(0), stats.entropy)


def test_only_global_layers_are_measured_and_nothing_is_left_behind():
    model, labels, inputs = tiny("global intra global")
    model.train()
    stats = attention_stats(model, [(labels, inputs)])
    assert stats.layers == (0, 2) and stats.mean.shape == (2, 2, 3, 3)
    assert model.training
    assert not any("project" in vars(m) or m._forward_pre_hooks for m in model.modules())


def test_a_model_without_global_layers_is_refused():
    model, labels, inputs = tiny("intra")
    with pytest.raises(UserError, match=r"model.pattern: 'intra' has no global layer"):
        attention_stats(model, [(labels, inputs)])


def test_no_images_is_refused():
    model, *_ = tiny("global")
    with pytest.raises(UserError, match="no images"):
        attention_stats(model, [])


def test_json_round_trip_and_faults():
    model, labels, inputs = tiny("global")
    stats = attention_stats(model, [(labels, inputs)])
    values = json.loads(json.dumps(stats.to_json()))
    back = AttentionStats.from_json(values)
    assert all(torch.equal(getattr(back, name), getattr(stats, name)) for name in FIELDS)
    assert back.to_json() == stats.to_json()
    with pytest.raises(UserError, match="schema_version 99"):
        AttentionStats.from_json(values | {"schema_version": 99})
    del values["mean"]
    with pytest.raises(UserError, match="incomplete"):
        AttentionStats.from_json(values)


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.cells = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.cells = max([self.cells, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


@pytest.mark.parametrize("sides", [(1, 4, 8, 16), (1, 8, 16, 32), (1, 16, 32, 64)])  # L = 337, 1345, 5377
def test_no_tensor_grows_faster_than_the_sequence(sides):
    schedule, head_dim = ScaleSchedule(sides), 8
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, schedule.num_tokens, head_dim)
    with torch.inference_mode(), LargestTensor() as largest:
        scale_attention(q, k, schedule, tile_cells=8 * schedule.num_tokens)
    assert largest.cells <= head_dim * schedule.num_tokens < schedule.num_tokens**2 / 20
    with torch.inference_mode(), LargestTensor() as largest:
        materialised(q, k, schedule)
    assert largest.cells == schedule.num_tokens**2  # the yardstick sees a map where there is one


def test_a_whole_measurement_holds_no_map():
    space = TokenSpace((1, 16, 24, 32), 11, 4, 5)  # L = 1857
    model = ScaleTransformer(ModelConfig(depth=2, width=16, num_heads=2, pattern="global"), space)
    length = model.schedule.num_tokens
    with LargestTensor() as largest:
        attention_stats(model, [(torch.tensor([1]), torch.randn(1, length - 1, 4))])
    widest = 4 * model.config.width  # of the feed-forward's hidden layer
    assert largest.cells <= max(TILE_CELLS["cpu"], widest * length) < length**2 / 10


PEAK = """
import resource, torch
from mvar.probes.attention_mass import scale_attention
from mvar.scales import ScaleSchedule
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def measure(sides):
    schedule = ScaleSchedule(sides)
    q, k = torch.randn(2, 1, 1, schedule.num_tokens, 16)
    before = peak()
    with torch.inference_mode():
        scale_attention(q, k, schedule)
    return peak() - before
measure((1, 2, 3))
print(measure((1, 32, 64, 96)))  # L = 14337: an fp32 map would hold 784 MiB
"""


def test_peak_memory_of_the_process_stays_far_below_a_map():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 32  # MiB
