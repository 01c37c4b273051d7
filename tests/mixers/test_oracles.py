"""Every further mixer against the plainest way to write it: a masked softmax, a quadratic form, torch's convolution."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fla_core import reference

from mvar.config import MambaConfig, ModelConfig, RuntimeConfig
from mvar.errors import UserError
from mvar.kernels.attention import attend
from mvar.mixers import window
from mvar.mixers.base import Chosen
from mvar.mixers.scan_orders import scan_tables
from mvar.scales import PATCH_SIDES, ScaleSchedule

CONFIG = ModelConfig(depth=2, width=16, num_heads=2, mamba=MambaConfig(d_state=8, headdim=8))
SCHEDULES = [ScaleSchedule(sides) for sides in ((1, 2, 3, 4), (2, 3, 5), (1, 1, 6), (3, 7, 8, 8), PATCH_SIDES["256"])]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: ",".join(map(str, s.sides)))


def make(text, config=CONFIG):
    torch.manual_seed(0)
    mixer = Chosen.of(config, text).build(config, RuntimeConfig(device="cpu"))
    mixer.init_weights(0.3)
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return mixer.double().eval()


def tokens(schedule):
    torch.manual_seed(1)
    return torch.randn(2, schedule.num_tokens, CONFIG.width, dtype=torch.float64)


def place(schedule):
    """Scale, and the middle of its place in the unit square, of every token: three arrays `(L,)`."""
    levels = np.array(schedule.levels)
    sides = np.array(schedule.sides)[levels]
    number = np.arange(schedule.num_tokens) - np.array(schedule.offsets)[levels]
    return levels, (number // sides + 0.5) / sides, (number % sides + 0.5) / sides


def same(one, other, tolerance=1e-12):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item())


def masked_softmax(mixer, x, mask):
    """The attention that a dense mask `(L, L)` makes."""
    q, k, v = mixer.project(x)
    scores = (q @ k.mT).masked_fill(~torch.from_numpy(mask), -torch.inf)
    return mixer.merge(scores.softmax(-1) @ v)


@schedules
@pytest.mark.parametrize("w", [1, 2, 3])
@torch.no_grad()
def test_markov_is_a_softmax_over_the_last_scales(schedule, w):
    mixer, x = make(f"markov:{w}"), tokens(schedule)
    levels = np.array(schedule.levels)
    mask = (levels[:, None] - levels >= 0) & (levels[:, None] - levels < w)
    same(mixer(x, schedule.span())[0], masked_softmax(mixer, x, mask))


@schedules
@torch.no_grad()
def test_markov_of_all_scales_is_global_and_of_one_is_intra(schedule):
    for text, other in ((f"markov:{schedule.num_scales}", "global"), ("markov:99", "global"), ("markov:1", "intra")):
        mixer, known = make(text), make(other)
        known.load_state_dict(mixer.state_dict())
        x = tokens(schedule)
        assert torch.equal(mixer(x, schedule.span())[0], known(x, schedule.span())[0])


def test_keys_before_the_first_that_is_seen_play_no_part():
    span = ScaleSchedule((1, 2, 3)).span(1)
    q, k, v = torch.randn(3, 1, 2, 14, 8, dtype=torch.float64)
    for reach in (1, 2):
        seen = span.stop - span.unseen(1, reach)
        wanted = attend(q[:, :, 1:], k[:, :, -seen:], v[:, :, -seen:], span, reach=reach)
        assert torch.equal(attend(q[:, :, 1:], k, v, span, reach=reach), wanted)


def window_mask(schedule, k):
    """Who sees whom: by scale the `min(k, side)` rows and columns about the place, moved inside where they end."""
    levels, row, column = place(schedule)
    mask = np.zeros((len(levels),) * 2, bool)
    for i in range(len(levels)):
        for level in {max(levels[i] - 1, 0), levels[i]}:
            side = schedule.sides[level]
            lines = []
            for at in (row[i], column[i]):
                middle = int(np.floor(at * side + 1e-9))
                near = [middle + step - (k - 1) // 2 for step in range(min(k, side))]
                moved = max(0, -near[0]) - max(0, near[-1] - side + 1)
                lines.append([(line + moved + 0.5) / side for line in near])
            mine = [
                np.isclose(np.subtract.outer(of, line), 0).any(1) for of, line in zip((row, column), lines, strict=True)
            ]
            mask[i] |= (levels == level) & mine[0] & mine[1]
    return mask


@schedules
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@torch.no_grad()
def test_window_is_a_softmax_over_two_squares(schedule, k):
    if schedule.num_tokens > 200 and k > 3:
        return
    mixer, x, mask = make(f"window:{k}"), tokens(schedule), window_mask(schedule, k)
    assert np.array_equal(mixer.visible(mixer.settings, schedule), mask)
    same(mixer(x, schedule.span())[0], masked_softmax(mixer, x, mask))


@torch.no_grad()
def test_window_of_all_places_is_markov_of_two_scales():
    schedule = ScaleSchedule((1, 2, 3, 4))
    mixer, known, x = make("window:4"), make("markov:2"), tokens(schedule)
    known.load_state_dict(mixer.state_dict())
    same(mixer(x, schedule.span())[0], known(x, schedule.span())[0])


def test_who_sees_whom_is_made_once_a_schedule_and_serves_gradients():
    schedule, mixer = ScaleSchedule((1, 2, 3, 6)), make("window:3")
    window.seen.cache_clear()
    with torch.inference_mode():
        mixer(tokens(schedule), schedule.span())
    made = window.seen.cache_info().misses
    mixer(tokens(schedule), schedule.span())[0].sum().backward()
    assert made == schedule.num_scales == window.seen.cache_info().misses


@schedules
@torch.no_grad()
def test_linear_is_a_quadratic_form(schedule):
    mixer, x = make("linear"), tokens(schedule)
    q, k, v = mixer.project(x)
    levels = np.array(schedule.levels)
    weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT) * torch.from_numpy(levels[:, None] >= levels)
    same(mixer(x, schedule.span())[0], mixer.merge(weights / weights.sum(-1, keepdim=True) @ v))


def resized(x, side):
    """Torch's own resizing of a map `(B, D, s, s)`, written out by rows and columns."""
    at = ((torch.arange(side, dtype=torch.float64) + 0.5) * x.shape[-1] / side - 0.5).clamp(0, x.shape[-1] - 1)
    low = at.floor().long()
    line = torch.zeros(side, x.shape[-1], dtype=torch.float64)
    line[range(side), low] = 1 - (at - low)
    line[range(side), (low + 1).clamp(max=x.shape[-1] - 1)] += at - low
    return line @ x @ line.T


@schedules
@pytest.mark.parametrize("k", [1, 3, 5])
@torch.no_grad()
def test_conv_is_torchs_over_both_maps(schedule, k):
    mixer, x = make(f"conv:{k}"), tokens(schedule)
    u, gate = (x @ mixer.in_proj.weight.T).split(CONFIG.width, -1)
    summed, before = [], None
    for side, part in zip(schedule.sides, u.split(schedule.lengths, 1), strict=True):
        maps = part.mT.reshape(2, CONFIG.width, side, side)
        windows = F.unfold(maps, k, padding=k // 2).view(2, CONFIG.width, k * k, side * side)
        y = torch.einsum("bckn,ck->bnc", windows, mixer.own.weight.flatten(1)) + mixer.own.bias
        if before is not None:
            windows = F.unfold(resized(before, side), k, padding=k // 2).view(2, CONFIG.width, k * k, side * side)
            y = y + torch.einsum("bckn,ck->bnc", windows, mixer.coarser.weight.flatten(1)) + mixer.coarser.bias
        summed.append(y)
        before = maps
    same(mixer(x, schedule.span())[0], mixer.proj(F.silu(gate) * torch.cat(summed, 1)))


def ways(order, side):
    """The scans of a map, written out: (row, column) after (row, column)."""
    rows = columns = range(side)
    if order == "columns":
        return [[(row, column) for column in columns for row in rows]]
    if order == "snake":
        return [[(row, column if row % 2 == 0 else side - 1 - column) for row in rows for column in columns]]
    raster = [(row, column) for row in rows for column in columns]
    return [raster, raster[::-1]] if order == "both" else [raster]


@schedules
@pytest.mark.parametrize("order", ["raster", "snake", "columns", "both"])
@torch.no_grad()
def test_a_scan_in_another_order_is_raster_over_permuted_tokens(schedule, order):
    """Inside a scale: the scales follow each other as ever. Two scans: the mean of what each gives."""
    mixer, known, x, span = make(f"mamba:scan_order={order}"), make("mamba"), tokens(schedule), schedule.span()
    wanted, seen = [], np.zeros((schedule.num_tokens,) * 2, bool)
    for number in range(len(ways(order, 1))):
        way = [
            start + row * side + column
            for start, side in zip(schedule.offsets, schedule.sides, strict=False)
            for row, column in ways(order, side)[number]
        ]
        wanted.append(torch.empty_like(x))
        wanted[-1][:, way] = known(x[:, way], span)[0]
        for at, token in enumerate(way):
            seen[token, way[: at + 1]] = True
    same(mixer(x, span)[0], sum(wanted) / len(wanted))
    assert np.array_equal(mixer.visible(mixer.settings, schedule), seen)


def test_the_order_of_scans_is_made_once_a_span_and_serves_gradients():
    schedule, mixer = ScaleSchedule((1, 2, 3, 6)), make("mamba:scan_order=both")
    scan_tables.cache_clear()
    with torch.inference_mode():
        mixer(tokens(schedule), schedule.span())
    mixer(tokens(schedule), schedule.span())[0].sum().backward()
    assert scan_tables.cache_info().misses == 1


def heads(x):
    return x.unflatten(-1, (CONFIG.num_heads, -1))


def rms(x):
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


@schedules
@torch.no_grad()
def test_gla_is_the_layer_of_the_paper(schedule):
    """Around fla-core's recurrence, which computes in fp32."""
    mixer, x, half, width = make("gla:4"), tokens(schedule), CONFIG.width // 2, CONFIG.width
    q, k, v, gate, low = (x @ mixer.in_proj.weight.T).split([half, half, width, width, 4], -1)
    decay = torch.log(torch.sigmoid(low @ mixer.decay.weight.T + mixer.decay.bias)) / 16
    y, _ = reference("gla", "naive_recurrent_gla")(*map(heads, (q, k, v, decay)))
    wanted = ((rms(y) * mixer.norm).flatten(2) * F.silu(gate)) @ mixer.proj.weight.T
    same(mixer(x, schedule.span())[0], wanted, 2e-5)


@schedules
@torch.no_grad()
def test_gdn_is_the_layer_of_the_paper(schedule):
    """Around fla-core's recurrence, which computes in fp32."""
    mixer, x, width = make("gdn:2"), tokens(schedule), CONFIG.width
    mixed, gate, step, beta = (x @ mixer.in_proj.weight.T).split([4 * width, 2 * width, 2, 2], -1)
    mixed = F.silu(F.conv1d(F.pad(mixed.mT, (3, 0)), mixer.conv, groups=4 * width).mT)
    q, k, v = map(heads, mixed.split([width, width, 2 * width], -1))
    q, k = (part / part.norm(dim=-1, keepdim=True) for part in (q, k))
    decay = -torch.log(1 + torch.exp(step + mixer.dt_bias)) * torch.exp(mixer.A_log)
    y, _ = reference("gated_delta_rule", "naive_recurrent_gated_delta_rule")(q, k, v, torch.sigmoid(beta), decay)
    wanted = ((rms(y) * mixer.norm).flatten(2) * F.silu(gate)) @ mixer.proj.weight.T
    same(mixer(x, schedule.span())[0], wanted, 2e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gla:0", "model.pattern: 'gla:0': gla.rank: '0': Input should be greater than or equal to 1"),
        ("gdn:expand=0", "model.pattern: 'gdn:expand=0': gdn.expand: '0': Input should be greater than or equal to 1"),
        (
            "mamba:scan_order=spiral",
            "model.pattern: 'mamba:scan_order=spiral': mamba.scan_order: 'spiral': Input should be 'raster', 'snake', "
            "'columns' or 'both'",
        ),
        ("markov:0", "model.pattern: 'markov:0': markov.w: '0': Input should be greater than or equal to 1"),
        ("window:0", "model.pattern: 'window:0': window.k: '0': Input should be greater than or equal to 1"),
        ("conv:4", "model.conv.k: 4 is even; allowed: odd numbers, 1 or more"),
        ("linear:2", "model.pattern: 'linear:2': linear has no settings; allowed: linear"),
    ],
)
def test_settings_out_of_range_are_one_line(text, said):
    with pytest.raises(UserError) as caught:
        ModelConfig(pattern=text)
    assert said in str(caught.value) and "\n" not in str(caught.value)
