"""The probes `corruption`, `reach` and `state` against what they say, on every mixer."""

import numpy as np
import pytest
import torch
from probed_models import PATTERNS, bench, model_of, quantizer

from mvar.config import SampleConfig, override
from mvar.errors import UserError
from mvar.presets import PRESETS
from mvar.probes.contract import make_probe
from mvar.probes.corruption import replaced
from mvar.probes.cut_text import parse_cut
from mvar.probes.dependence import SCALES, TOKENS, Reach, ReachSettings, chosen_tokens, farther, gradient_norms
from mvar.probes.interventions import sites_of
from mvar.probes.kept_state import bytes_kept, keeping
from mvar.sampling import generate


class OnBench:
    """What a probe sees, of a model without tokenizer."""

    def __init__(self, pattern):
        self.bench = bench(pattern)
        self.model = self.bench.model


# state ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_with_less_kept_drawing_is_what_teacher_forcing_predicts(pattern):
    model, codes, labels = model_of(pattern), quantizer(), torch.tensor([0, 2])
    sample = SampleConfig(cfg_scale=0.0, top_k=0, top_p=0.0)
    for keep, half in ((1, None), (2, None), (3, torch.bfloat16)):
        drawn: list[torch.Tensor] = []
        with keeping(model, keep, half), torch.inference_mode():
            found = generate(model, codes, labels, [0, 1], sample, on_logits=lambda _, x: drawn.append(x.clone()))  # noqa: B023
            logits, _ = model(labels, codes.inputs(found.tokens))
        torch.testing.assert_close(torch.cat(drawn, 1), logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_with_all_kept_nothing_changes_and_with_none_states_are_empty(pattern):
    here = bench(pattern)
    with keeping(here.model, 3):
        assert np.array_equal(here.bits(), here.clean)
    with keeping(here.model, 1):
        alone = here.bits()
    cuts = [cut for cut in ("coarser", "state") if _can(here.model, cut)]
    if cuts:
        sites = [site for cut in cuts for site in sites_of(here.model, parse_cut(cut))]
        np.testing.assert_allclose(alone, here.bits(sites), rtol=1e-9)
        assert not np.allclose(alone, here.clean, rtol=1e-6)
    assert np.array_equal(here.bits(), here.clean)  # it is over with its block


def _can(model, text):
    try:
        return bool(sites_of(model, parse_cut(text)))
    except UserError:
        return False


@pytest.mark.parametrize("keep", [1, 2])
def test_attention_that_keeps_so_many_scales_is_markov(keep):
    here, like = bench("global"), bench(f"markov:{keep}")
    like.model.load_state_dict(here.model.state_dict())
    with keeping(here.model, keep):
        np.testing.assert_allclose(here.bits(), like.clean, rtol=1e-9)
    assert bytes_kept(here.model, keep) == bytes_kept(like.model, 3)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_half_precision_rounds_what_is_carried_and_no_more(pattern):
    here = bench(pattern)
    with keeping(here.model, 3, torch.bfloat16):
        rounded = here.bits()
    np.testing.assert_allclose(rounded[:, 0], here.clean[:, 0], rtol=1e-12)
    if bytes_kept(here.model, 3):
        assert 0 < abs(rounded - here.clean).max() < 0.2
    else:  # carries nothing
        np.testing.assert_allclose(rounded, here.clean, rtol=1e-12)
    assert bytes_kept(here.model, 1) == 0


# reach ----------------------------------------------------------------------------------------------------------------


def reach_rows(pattern, tokens=4, scale=2):
    probe, subject = Reach(ReachSettings(tokens=tokens, scales=(scale,))), OnBench(pattern)
    config = override(PRESETS["digits"], {"tokenizer.patch_sides": [1, 2, 3], "data.image_size": 6})
    return [case | probe.measure(case, subject) for case in probe.cases(config)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_all_gradients_are_of_the_own_scale_or_of_coarser_ones_which_only_a_mixer_that_carries_something_sees(pattern):
    rows = reach_rows(pattern, tokens=2)
    assert rows[0]["share"] + rows[2]["share"] == pytest.approx(100)
    carries = bytes_kept(model_of(pattern), 3) > 0
    assert (rows[0]["share"] > 0) == (rows[0]["change"] != 0) == carries
    assert (rows[2]["share"] > 0) == (rows[2]["change"] != 0)


def test_intra_depends_on_no_coarser_token_and_global_on_all():
    for row in reach_rows("intra"):
        if row["by"] == SCALES:
            assert row["change"] == row["share"] == 0
        else:
            assert row["change"] != 0 and row["share"] > 0
    rows = reach_rows("global")
    assert [(row["by"], row["distance"]) for row in rows] == [(SCALES, 1), (SCALES, 2), (TOKENS, 1), (TOKENS, 2)]
    assert all(row["change"] != 0 and row["share"] > 0 for row in rows)
    assert rows[0]["share"] > rows[1]["share"] and rows[0]["share"] + rows[2]["share"] == pytest.approx(100)


def test_tokens_that_have_none_so_far_away_count_neither_in_the_change_nor_in_the_share():
    rows = reach_rows("global", tokens=9)
    assert [row["num_tokens"] for row in rows] == [9, 9, 9, 8]  # not the middle
    schedule, corners = model_of("global").schedule, [token for token in range(5, 14) if token != 9]
    norms = gradient_norms(bench("global"), 2, corners)
    far = [norms[:, n, farther(schedule, token, TOKENS, 2)].sum(1) for n, token in enumerate(corners)]
    others = [np.delete(norms[:, n], token, 1).sum(1) for n, token in enumerate(corners)]
    assert rows[3]["share"] == pytest.approx(100 * np.mean(np.divide(far, others)))
    middle = reach_rows("global", tokens=1)[-1]
    assert middle["num_tokens"] == 0 and middle["change"] is None and middle["share"] is None


def test_the_state_of_mamba_reaches_where_attention_maps_see_nothing():
    for row in reach_rows("mamba"):
        assert row["share"] > 0 and row["change_half_width"] > 0


def test_gradients_are_those_of_finite_differences_and_causal():
    here = bench("mamba", count=2)
    queries = chosen_tokens(here.model.schedule, 2, 3)
    norms = gradient_norms(here, 2, queries)
    visible = np.tri(14, dtype=bool)[queries]
    assert (norms[:, visible] > 0).all() and not norms[:, ~visible].any()
    token, other = queries[1], 3
    embed, step = here.model.embed, 1e-6
    slopes = []
    for direction in torch.eye(16, dtype=torch.float64):
        both = []
        for sign in (1, -1):
            bump = torch.zeros(14, 16, dtype=torch.float64)
            bump[other] = sign * step * direction
            here.model.embed = lambda *a, bump=bump: embed(*a) + bump
            both.append(_token_nll(here, token))
        slopes.append((both[0] - both[1]) / (2 * step))
    del here.model.embed
    np.testing.assert_allclose(np.linalg.norm(slopes, axis=0), norms[:, 1, other], rtol=1e-5)


def _token_nll(here, token):
    with torch.no_grad():
        logits, _ = here.model(here.labels, here.inputs)
    return -(logits.log_softmax(-1)[:, token].gather(1, here.tokens[:, token, None]) / np.log(2))[:, 0].numpy()


def test_what_is_far_away():
    schedule = model_of("global").schedule
    assert farther(schedule, 9, SCALES, 1).nonzero()[0].tolist() == [0, 1, 2, 3, 4]
    assert farther(schedule, 9, SCALES, 2).nonzero()[0].tolist() == [0]
    assert farther(schedule, 9, TOKENS, 1).sum() == 8 and not farther(schedule, 9, TOKENS, 2).any()  # the middle
    assert farther(schedule, 5, TOKENS, 2).nonzero()[0].tolist() == [7, 10, 11, 12, 13]  # a corner
    assert chosen_tokens(schedule, 2, 3) == [6, 9, 12] and chosen_tokens(schedule, 1, 9) == [1, 2, 3, 4]


# corruption -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["other", "uniform"])
def test_tokens_of_one_scale_are_replaced_at_a_rate(by):
    here = bench("global", count=200)
    low, high, whole = (replaced(here, {"scale": 2, "rate": r, "by": by, "seed": 0}) for r in (0.2, 0.6, 1.0))
    if by == "other":
        assert torch.equal(whole[:, 5:], here.tokens[here.partners][:, 5:])
    assert torch.equal(low[:, :5], here.tokens[:, :5])
    few, many = (found != here.tokens for found in (low, high))
    assert not (few & ~many).any() and torch.equal(low[few], high[few])  # what a lower rate has, and more
    assert few[:, 5:].float().mean() == pytest.approx(0.2 * 10 / 11, abs=0.03)  # one of 11 codes is the old one
    bits = here.bits(inputs=quantizer().inputs(replaced(here, {"scale": 1, "rate": 1.0, "by": by, "seed": 0})))
    assert np.allclose(bits[:, :2], here.clean[:, :2]) and not np.allclose(bits[:, 2], here.clean[:, 2])


# mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("corruption", {"scales": "4"}, "scales: 4; allowed: 0 to 3"),
        ("corruption", {"rates": "0.5,1.5"}, "rates: 1.5; allowed: above 0, at most 1"),
        ("corruption", {"by": "noise"}, "by: 'noise': Input should be 'other' or 'uniform'"),
        ("reach", {"scales": "0"}, "scales: 0; allowed: 1 to 3"),
        ("state", {"keep": "5"}, "keep: 5; allowed: 1 to 4"),
        ("corruption", {"rates": []}, "rates: none; allowed: one or more, above 0, at most 1"),
        ("state", {"precision": ""}, "precision: none; allowed: whole, bf16, fp16"),
        (
            "state",
            {"keep": "1,2", "precision": "bf16"},
            "keep: half precision is tried with all scales alone; allowed",
        ),
        ("state", {"precision": "fp8"}, "precision: 'fp8' is unknown; allowed: whole, bf16, fp16"),
    ],
)
def test_mistakes_are_one_line(name, settings, said):
    with pytest.raises(UserError, match=said):
        make_probe(name, settings).cases(PRESETS["digits"])


def test_a_model_of_one_scale_has_no_reach():
    with pytest.raises(UserError, match="a single scale; allowed: a model of two or more"):
        make_probe("reach", {}).cases(override(PRESETS["digits"], {"tokenizer.patch_sides": [4]}))
