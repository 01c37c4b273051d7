"""Cuts in a whole model: where they go, what stands in for what is cut, controls of the same size, what is measured."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from probed_models import IMAGES, PATTERNS, bench, model_of, opened, quantizer

from mvar.config import SampleConfig
from mvar.errors import UserError
from mvar.evaluation import likelihood
from mvar.evaluation.likelihood import heldout_nll
from mvar.probes.cut_text import parse_cut
from mvar.probes.interval import t_factor, welch_half_width, welch_interval
from mvar.probes.interventions import cutting, possible, random_sites, recording, shares_kept, sites_of
from mvar.probes.knockout import Bench, matrix_of, standard_cuts
from mvar.probes.measurable import Opened
from mvar.sampling import generate


def test_without_a_cut_it_is_the_held_out_likelihood():
    here = opened(model_of("global"))
    found = heldout_nll(here.model, quantizer(), here.codes(range(IMAGES)).numpy(), np.arange(IMAGES) % 3)
    clean = Bench(here, 3).clean
    weights = np.array(here.model.schedule.lengths) / 14
    assert (clean @ weights).mean() == pytest.approx(found["eval/nll_bits_per_token"], rel=1e-9)
    assert clean.mean(0)[1] == pytest.approx(found["eval/nll_bits_scale_01"], rel=1e-9)


def test_a_pass_has_no_more_tokens_than_one_of_the_likelihood(monkeypatch):
    wanted, passes = bench("global", 5).clean, []
    monkeypatch.setattr(likelihood, "MOST_TOKENS", 2 * 14 + 13)
    here = bench("global", 5, batch_size=100)
    here.model.head.register_forward_hook(lambda module, given, out: passes.append(len(out)))
    assert np.allclose(here.clean, wanted, rtol=1e-9) and passes == [2, 2, 1]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_standard_cut_changes_something_and_leaves_the_model_as_it_was(pattern):
    here = bench(pattern)
    before = here.clean.copy()
    cuts = standard_cuts(here.model)
    assert bool(cuts) == any(mixer.cuts for block in here.model.each_block() for mixer in block.mixers())
    for cut in cuts:
        bits = here.bits(sites_of(here.model, cut))
        assert np.isfinite(bits).all() and not np.array_equal(bits, before), cut
    assert np.array_equal(here.bits(), before)
    assert np.array_equal(here.bits([]), before)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_cuts_of_a_finer_scale_leave_the_coarser_ones(pattern):
    here = bench(pattern)
    for text in ("scale:2", "scale:1,queries=2", "state:2"):
        cut = parse_cut(text)
        if cut in standard_cuts(here.model):
            bits = here.bits(sites_of(here.model, cut))
            np.testing.assert_allclose(bits[:, :2], here.clean[:, :2], rtol=1e-9)


def whole_cuts(model):
    """One cut of every form that a model has, and one of a single head."""
    forms = (form.replace(":K", ":2") for form in possible(model))
    return [parse_cut(text) for form in forms for text in ((form, "own,head=1") if form == "own" else (form,))]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_stands_in_is_what_the_model_has_itself(pattern):
    """Of images that are all alike the mean, and another one, are the image itself: nothing changes."""
    here = opened(model_of(pattern), 4)
    codes, batch = here.codes(range(1)), here.batch(range(1))
    same = Opened(
        here.model,
        here.tokenizer,
        here.sample,
        4,
        lambda n: tuple(part.repeat(len(n), *[1] * (part.ndim - 1)) for part in batch),
        lambda n: codes.repeat(len(n), 1),
    )
    alike, differing = Bench(same, 2), Bench(here, 2)
    for cut, kind in product(whole_cuts(here.model), ("mean", "resample")):
        sites = sites_of(here.model, cut)
        changes = [
            bench.bits(sites, kind, bench.mean_of(sites) if kind == "mean" else None) - bench.clean
            for bench in (alike, differing)
        ]
        np.testing.assert_allclose(changes[0], 0, atol=1e-8, err_msg=f"{cut.text}, {kind}")
        assert abs(changes[1]).max() > 1e-6, (cut.text, kind)  # of images that differ it does


def test_a_mean_does_not_depend_on_the_batches():
    cut = parse_cut("own,kind=mean")
    effects = [bench("global", batch_size=size).effect(cut, draws=1) for size in (2, IMAGES)]
    assert effects[0].change == pytest.approx(effects[1].change, rel=1e-9)
    effects = [bench("global", batch_size=size).effect(parse_cut("own,kind=resample"), draws=1) for size in (2, IMAGES)]
    assert effects[0].change == pytest.approx(effects[1].change, rel=1e-9)


def test_an_image_is_resampled_from_another_one():
    here = bench("global")
    assert sorted(here.partners) == list(range(IMAGES)) and (here.partners != np.arange(IMAGES)).all()
    sites = sites_of(here.model, parse_cut("all,layer=0"))
    with recording(sites) as found:
        here.model(*opened(here.model).batch([3]))
    again = here.recorded(sites, [3])
    torch.testing.assert_close(found.of(0)["k"], again.of(0)["k"], rtol=0, atol=1e-12)
    assert found.of(0)["v"].shape == (1, 2, 14, 8)


def test_controls_cut_as_many_keys_of_every_query_and_head():
    model = model_of("global intra")
    for text in ("own", "coarser", "scale:1", "own,head=1", "scale:0,queries=2"):
        sites = sites_of(model, parse_cut(f"{text},mixer=global"))
        first, again, other = random_sites(sites, 0), random_sites(sites, 0), random_sites(sites, 1)
        for site, one, same, two in zip(sites, first, again, other, strict=True):
            assert torch.equal(one.pairs.sum(-1), site.pairs.sum(-1)) and not (one.pairs & ~site.visible).any()
            assert torch.equal(one.pairs, same.pairs) and not torch.equal(one.pairs, two.pairs)
        assert shares_kept(first) == shares_kept(sites)
    assert random_sites(sites_of(model, parse_cut("all")), 0) is None  # of each query all
    assert random_sites(sites_of(model, parse_cut("own,mixer=intra")), 0) is None
    assert random_sites(sites_of(model, parse_cut("branch:intra")), 0) is None


def test_effects_add_up():
    here = bench("global")
    effect = here.effect(parse_cut("own"), draws=3)
    weights = np.array(here.model.schedule.lengths) / 14
    assert np.dot(effect.change_by_scale, weights) == pytest.approx(effect.change)
    assert effect.bits - effect.change == pytest.approx((here.clean @ weights).mean())
    assert effect.beyond == pytest.approx(effect.change - np.mean(effect.controls))
    assert len(effect.controls) == 3 and effect.half_width > 0 and effect.control_sd > 0
    of_images = effect.beyond_sd * t_factor(IMAGES)
    assert effect.beyond_half_width > max(of_images, 1.96 * effect.control_sd / 3**0.5)  # draws vary too
    fixed = replace(effect, controls=(effect.control,) * 3)
    assert fixed.beyond_half_width == pytest.approx(of_images)  # no spread over draws: over images alone
    assert np.isnan(replace(effect, controls=(effect.control,)).beyond_half_width)
    assert effect.kept == pytest.approx(1 - (1 + 16 + 81) / (1 + 4 * 5 + 9 * 14))
    alone = here.effect(parse_cut("branch:global"))
    assert alone.controls == () and alone.by_scale == []


def test_controls_by_scale_add_up_to_those_of_all_tokens():
    here = bench("global")
    weights, draws = np.array(here.model.schedule.lengths) / 14, [0, 1]
    effect = here.effect(parse_cut("own"), draws=len(draws))
    found = effect.by_scale
    each = np.array([scale.controls for scale in found])  # (S, draws)
    assert weights @ each == pytest.approx(effect.controls)
    assert weights @ [scale.beyond for scale in found] == pytest.approx(effect.beyond)
    sites = sites_of(here.model, parse_cut("own"))
    controls = [here.bits(random_sites(sites, draw)) for draw in draws]
    assert each[2, 1] == pytest.approx((controls[1] - here.clean)[:, 2].mean())
    beyond = (here.bits(sites) - np.mean(controls, axis=0))[:, 2]
    assert found[2].beyond == pytest.approx(beyond.mean()) and found[2].beyond_sd == pytest.approx(beyond.std(ddof=1))
    assert found[0].beyond == pytest.approx(0) and found[1].control_sd > 0  # of a 1x1 scale its only key is cut
    assert found[2].beyond_half_width > found[2].beyond_sd * t_factor(IMAGES)


def test_an_interval_of_two_parts_is_welchs():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 9), rng.normal(0, 3, 4)
    low, high = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert welch_half_width((a.std(ddof=1), 9), (b.std(ddof=1), 4)) == pytest.approx((high - low) / 2)
    assert welch_interval(list(a), list(b)) == pytest.approx((low, high)) and welch_interval([1.0], list(b)) is None


def test_the_matrix_holds_the_cuts_of_pairs_of_scales():
    here = bench("global")
    effects = [here.effect(cut, draws=1) for cut in standard_cuts(here.model) if cut.queries is not None]
    matrix = matrix_of(effects, here.model.schedule)
    assert np.isnan(matrix[np.triu_indices(3, 1)]).all() and np.isfinite(matrix[np.tril_indices(3)]).all()
    both = {effect.cut: effect.change for effect in effects}
    assert matrix[2, 0] == both["scale:0,queries=2"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sampling_goes_through_the_same_cut(pattern):
    """Logits that are drawn from scale by scale are those of teacher forcing with the same cut."""
    here, codes, labels = bench(pattern), quantizer(), torch.tensor([0, 2])
    model, sample = here.model, SampleConfig(cfg_scale=0.0, top_k=0, top_p=0.0)
    for cut, kind in product(whole_cuts(model), ("cut", "mean")):
        drawn, sites = [], sites_of(model, cut)
        with cutting(sites, here.mean_of(sites) if kind == "mean" else None), torch.inference_mode():
            found = generate(model, codes, labels, [0, 1], sample, on_logits=lambda _, x: drawn.append(x.clone()))  # noqa: B023
            logits, _ = model(labels, codes.inputs(found.tokens))
        torch.testing.assert_close(torch.cat(drawn, 1), logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_drawn_images_are_resampled_from_given_ones(pattern):
    """From itself nothing changes; under guidance each image is what it is when it is drawn alone."""
    model, codes, labels, here = model_of(pattern), quantizer(), torch.tensor([0, 2]), bench(pattern)
    plain, guided = (SampleConfig(cfg_scale=scale, top_k=0, top_p=0.0) for scale in (0.0, 1.5))
    found = generate(model, codes, labels, [0, 1], plain).tokens
    for cut in whole_cuts(model):
        try:
            sites = sites_of(model, cut)
        except UserError:  # `intra` sees no coarser scale
            continue
        with torch.inference_mode(), recording(sites) as itself:
            model(labels, codes.inputs(found))
        with cutting(sites, itself):
            assert torch.equal(generate(model, codes, labels, [0, 1], plain).tokens, found), cut.text
        sites = sites_of(here.model, cut)
        with cutting(sites, here.instead(sites, range(6, 8), "resample", None)):
            both = generate(here.model, codes, labels, [0, 1], guided).tokens
        for n, partner in enumerate(here.partners[[6, 0]]):  # of seven: they begin anew
            with cutting(sites, here.recorded(sites, [partner])):
                alone = generate(here.model, codes, labels[n : n + 1], [n], guided).tokens
            assert torch.equal(alone[0], both[n]), cut.text


@pytest.mark.parametrize(
    ("pattern", "text", "said"),
    [
        (
            "intra",
            "coarser",
            "cut: 'coarser': no query sees such keys in 'intra'; allowed: own, scale:0, scale:1, scale:2, all",
        ),
        (
            "global",
            "scale:2,queries=1",
            "cut: 'scale:2,queries=1': no query of scale 1 sees such keys in 'global'; allowed: own, coarser, scale:0, "
            "scale:1, all",
        ),
        ("intra", "branch:mamba", "'intra' has no such part; allowed: own, scale:K, all, branch:intra"),
        ("mamba", "own", "cut: 'own': 'mamba' has no such part; allowed: state, state:K, branch:mamba"),
        (
            "global",
            "state",
            "cut: 'state': 'global' has no such part; allowed: own, coarser, scale:K, all, ",
        ),
        ("global", "branch:mamba", "has no such part; allowed: own, coarser, scale:K, all, branch:global"),
        ("global", "own,layer=2", "cut 'own,layer=2': layer 2; allowed: 0 to 1"),
        ("global", "own,head=2", "cut 'own,head=2': head 2; allowed: 0 to 1"),
        ("global", "scale:3", "cut 'scale:3': scale 3; allowed: 0 to 2"),
        ("global", "own,queries=9", "cut 'own,queries=9': queries 9; allowed: 0 to 2"),
        ("mamba", "state:0", "cut 'state:0': scale 0; allowed: 1 to 2"),
    ],
)
def test_what_a_model_has_not_is_one_line(pattern, text, said):
    with pytest.raises(UserError) as error:
        sites_of(model_of(pattern), parse_cut(text))
    assert said in str(error.value)


def test_too_few_images_are_one_line():
    with pytest.raises(UserError, match="two or more, to resample from another"):
        bench("global", count=1).effect(parse_cut("own,kind=resample"))
    with pytest.raises(UserError, match="at least one held-out image"):
        bench("global", count=0)
