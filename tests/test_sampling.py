"""Sampling against the official code (guidance, filters, smoothing, whole images), and one stream an image."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from official import GOLDEN, facts_of, load_model, load_quantizer
from safetensors.torch import load_file

from mvar import plugins
from mvar.checkpoints.published import load_tokenizer
from mvar.config import MambaConfig, ModelConfig, SampleConfig, TokenizerConfig, TokenSpace, override
from mvar.errors import UserError
from mvar.registries import KINDS, register
from mvar.sampling import (
    balanced_labels,
    draw,
    drawing,
    filter_logits,
    generate,
    guide,
    smallest_kept,
    smooth_probabilities,
)
from mvar.sampling.draws import only_kept
from mvar.sampling.filters.contract import Filter
from mvar.sampling.guidance.contract import Guidance
from mvar.sampling.methods import guidance_weights, is_guided, kept_by
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.transformer import ScaleTransformer

ROOT = Path(__file__).parents[1]
FUNCTIONS = facts_of("sampling_fn")
CASES = ["var_plain", "var_plain_shared", "var_l2", "var_l2_shared", "mvar_plain", "mvar_l2"]
WHOLE_IMAGES = [(case, run["tag"]) for case in CASES for run in facts_of(case)["infer"]]


@pytest.fixture(scope="module")
def functions():
    return load_file(GOLDEN / "sampling_fn" / "inputs.safetensors"), load_file(
        GOLDEN / "sampling_fn" / "outputs.safetensors"
    )


@pytest.mark.parametrize("row", FUNCTIONS["filters"], ids=lambda r: f"{r['on']}-k{r['top_k']}-p{r['top_p']}")
def test_filters(functions, row):
    inputs, outputs = functions
    probabilities = filter_logits(inputs[row["on"]], row["top_k"], row["top_p"]).softmax(-1)
    expected = outputs[row["on"].replace("logits", "probs") + f".{row['index']}"]
    assert torch.equal(probabilities > 0, expected > 0)
    torch.testing.assert_close(probabilities, expected, rtol=1e-5, atol=1e-7)


def test_equal_values_share_their_fate():
    """Top-k keeps ties (official); at the edge of top-p they stay too, whatever a sort makes of them."""
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, 1.0, -3.0]])
    assert (filter_logits(logits, 2) > -torch.inf).tolist() == [[False, True, True, True, True, False]]
    assert (filter_logits(logits, 0, 0.6) > -torch.inf).tolist() == [[False, True, True, True, True, False]]
    assert (filter_logits(logits, 1, 0.6) > -torch.inf).tolist() == [[False, True, False, False, False, False]]


@pytest.mark.parametrize("row", FUNCTIONS["mixes"], ids=lambda r: r["key"])
def test_guidance(functions, row):
    inputs, outputs = functions
    logits = torch.cat((inputs["cond"], inputs["uncond"]))
    sample = SampleConfig(cfg_scale=row["cfg"])
    mixed = guide(logits, guidance_weights(sample, row["num_scales"])[row["scale_index"]])
    torch.testing.assert_close(mixed, outputs[row["key"]], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("row", FUNCTIONS["gumbel"], ids=lambda r: f"ratio{r['ratio']}")
def test_more_smooth(functions, row):
    inputs, outputs = functions
    logits = filter_logits(inputs["logits"], row["top_k"], row["top_p"])
    mixed = smooth_probabilities(logits, inputs[f"gumbel_noise.{row['index']}"], row["ratio"])
    torch.testing.assert_close(mixed, outputs[f"gumbel_soft.{row['index']}"], rtol=1e-4, atol=1e-6)


def load_case(case):
    facts, model, inputs, outputs = load_model(case)
    return facts, model.eval(), load_quantizer(case), inputs["infer.label"], outputs


@pytest.mark.parametrize(("case", "tag"), WHOLE_IMAGES)
def test_whole_images_scale_by_scale(case, tag):
    facts, model, quantizer, labels, expected = load_case(case)
    run = next(r for r in facts["infer"] if r["tag"] == tag)
    logits, latents = [], []
    config = SampleConfig(cfg_scale=run["cfg"], top_k=run["top_k"], top_p=run["top_p"])
    result = generate(
        model,
        quantizer,
        labels,
        range(len(labels)),
        config,
        on_logits=lambda scale, guided: logits.append(guided),
        on_latent=lambda scale, latent: latents.append(latent),
    )
    assert torch.equal(result.tokens, expected[f"{tag}.idx"])
    noise = max(run["logits_fp32_vs_fp64"], run["raw_inference_vs_train_mode_logits"])
    assert (torch.cat(logits, 1) - expected[f"{tag}.logits_cfg"]).abs().max() <= 8 * noise
    assert (result.latent - expected[f"{tag}.f_hat"]).abs().max() <= 8 * run["f_hat_fp32_vs_fp64"]
    for scale, latent in enumerate(latents[:-1]):
        given = quantizer.next_input(latent, scale + 1)
        wanted = expected[f"{tag}.next_input.{scale}"].flatten(2).transpose(1, 2)
        assert (given - wanted).abs().max() <= 8 * run["f_hat_fp32_vs_fp64"]


def test_images_of_the_decoder():
    """Tokens to pixels: the one case with a decoder."""
    _, model, quantizer, labels, expected = load_case("var_l2")
    (tag,) = (key.removesuffix(".img") for key in expected if key.endswith(".img"))
    run = next(r for r in facts_of("var_l2")["infer"] if r["tag"] == tag)
    config = SampleConfig(cfg_scale=run["cfg"], top_k=run["top_k"], top_p=run["top_p"])
    latent = generate(model, quantizer, labels, range(len(labels)), config).latent
    tokenizer = load_tokenizer(GOLDEN / "tok_full_q4" / "vae.safetensors")
    images = tokenizer.decode(latent).add(1).mul(0.5)
    torch.testing.assert_close(images, expected[f"{tag}.img"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["var_l2", "mvar_l2"])
def test_tokens_of_the_official_random_stream(case, monkeypatch):
    """Real sampling, filters and all, equals the official one where the draws come from its single stream a batch."""
    _, model, quantizer, labels, expected = load_case(case)
    (key,) = (key for key in expected if key.startswith("rng."))
    cfg, k, p, seed = re.fullmatch(r"rng\.cfg([\d.]+)_k(\d+)_p([\d.]+)_gseed(\d+)\.idx", key).groups()
    stream = torch.Generator().manual_seed(int(seed))

    def official_draw(logits, uniform, smallest):
        probabilities = logits.where(logits >= smallest, -torch.inf).softmax(-1).flatten(0, 1)
        return torch.multinomial(probabilities, 1, replacement=True, generator=stream).view(logits.shape[:2])

    monkeypatch.setattr(drawing, "draw", official_draw)
    config = SampleConfig(cfg_scale=float(cfg), top_k=int(k), top_p=float(p))
    tokens = generate(model, quantizer, labels, range(len(labels)), config).tokens
    assert torch.equal(tokens, expected[key])


def small(pattern="intra+mamba", classes=3):
    torch.manual_seed(0)
    config = ModelConfig(depth=2, width=16, num_heads=2, pattern=pattern, mamba={"d_state": 8, "headdim": 8})
    model = ScaleTransformer(config, TokenSpace((1, 2, 3), 32, 4, classes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model, ResidualQuantizer(TokenizerConfig(patch_sides=(1, 2, 3), vocab_size=32, code_channels=4))


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_an_image_does_not_depend_on_its_batch(cfg_scale, smooth):
    model, quantizer = small()
    config = SampleConfig(cfg_scale=cfg_scale, top_p=0.95, more_smooth=smooth)
    labels = torch.tensor([0, 1, 2, 3, 1])
    seeds = [(7, i) for i in range(5)]
    whole = generate(model, quantizer, labels, seeds, config)
    for i in range(5):
        alone = generate(model, quantizer, labels[i : i + 1], seeds[i : i + 1], config)
        assert torch.equal(alone.tokens[0], whole.tokens[i])
        torch.testing.assert_close(alone.latent[0], whole.latent[i], rtol=1e-4, atol=1e-5)
    assert not torch.equal(generate(model, quantizer, labels, seeds[::-1], config).tokens, whole.tokens)


def test_draws_follow_the_probabilities():
    logits = torch.tensor([0.1, 0.2, 0.0, 0.7]).log()
    uniform = torch.rand(1, 200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = draw(logits.expand(1, 200_000, 4), uniform)
    frequency = tokens.flatten().bincount(minlength=4) / 200_000
    assert frequency[2] == 0
    torch.testing.assert_close(frequency, torch.tensor([0.1, 0.2, 0.0, 0.7]), rtol=0, atol=0.005)


@given(st.integers(1, 40), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_never_a_masked_token(kept, uniform):
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 40)
    filtered, number = filter_logits(logits, top_k=kept), torch.full((1, 1), uniform, dtype=torch.float64)
    token = draw(filtered, number)
    assert filtered[0, 0, token].isfinite().all()
    assert torch.equal(draw(logits, number, smallest_kept(logits, top_k=kept)), token)


@pytest.mark.parametrize("num_codes", [1, 5, 96, 4096])
def test_draws_invert_the_whole_distribution(num_codes):
    """Groups of codes are only a faster way to the same place."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 500, num_codes, generator=generator)
    uniform = torch.rand(2, 500, generator=generator, dtype=torch.float64)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    expected = torch.searchsorted(cumulative, uniform[..., None] * cumulative[..., -1:], right=True).squeeze(-1)
    assert torch.equal(draw(logits, uniform), expected)


def test_one_scale_gets_full_guidance():
    logits = torch.randn(2, 3, 5)
    torch.testing.assert_close(
        guide(logits, guidance_weights(SampleConfig(cfg_scale=2), 1)[0]), 3 * logits[:1] - 2 * logits[1:]
    )


def test_balanced_labels():
    assert balanced_labels(25, 10).bincount().tolist() == [3] * 5 + [2] * 5


def test_progress_counts_the_scales():
    model, quantizer = small("global")
    calls = []
    generate(
        model, quantizer, torch.zeros(1, dtype=torch.long), [0], SampleConfig(), progress=lambda *a: calls.append(a)
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("more_smooth", [False, True])
def test_the_latent_is_told_after_every_scale(more_smooth):
    model, quantizer = small("global")
    config, latents = SampleConfig(more_smooth=more_smooth), []
    generated = generate(model, quantizer, torch.tensor([0, 1]), [0, 1], config, on_latent=lambda *a: latents.append(a))
    assert [scale for scale, _ in latents] == [0, 1, 2]
    assert torch.equal(latents[-1][1], generated.latent)
    if not more_smooth:  # mixtures of codes are not those of the tokens
        for (_, latent), expected in zip(latents, quantizer.latents(generated.tokens), strict=True):
            torch.testing.assert_close(latent, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("fields", [{}, {"cfg_scale": 0}, {"top_k": 5, "top_p": 0.9}, {"more_smooth": True}])
def test_weights_that_are_not_finite_are_named(bad, fields):
    """Spoiled after loading, in generator or codebook; and finite ones whose products overflow."""
    torch.manual_seed(0)
    space = TokenSpace((1, 2, 3), 16, 4, 3)
    config = SampleConfig(**({"cfg_scale": 1.5} | fields))

    def sample(spoil):
        model = ScaleTransformer(ModelConfig(depth=1, width=32, num_heads=2), space).eval()
        quantizer = ResidualQuantizer(TokenizerConfig(patch_sides=(1, 2, 3), vocab_size=16, code_channels=4))
        with torch.no_grad():
            spoil(model, quantizer)
        return generate(model, quantizer, torch.tensor([0, 1]), [(0,), (1,)], config)

    def head(model, quantizer):
        model.head.bias[3] = bad

    def embedding(model, quantizer):
        model.pos_start[0, 0, 2] = bad

    def codes(model, quantizer):
        quantizer.embedding.weight[:, 2] = bad

    def overflow(model, quantizer):
        model.head.weight.fill_(3e38)

    assert sample(lambda *_: None).latent.isfinite().all()
    for spoil, says in {
        head: r"the generator's weights are not finite \(NaN or infinity\) in head.bias",
        embedding: "the generator's weights .* in pos_start",
        codes: "the tokenizer's weights .* in embedding.weight",
        overflow: "not finite, though all weights are",
    }.items():
        with pytest.raises(UserError, match=says):
            sample(spoil)


# Forms of guidance and filters --------------------------------------------------------------------------------------


@pytest.fixture
def own():
    """Registers a class of one's own for the time of a test."""
    names = []

    def add(kind, name, **methods):
        names.append((KINDS[kind], name))
        return register(kind, name)(type(name.title(), ({"guidance": Guidance, "filter": Filter}[kind],), methods))

    yield add
    for registry, name in names:
        registry.own.pop(name)


def sampled(**fields):
    return override(SampleConfig(), fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0, 0.5, 1, 1.5, 2]),
        ({"guidance": "constant"}, [2] * 5),
        ({"guidance": "interval"}, [0, 2, 2, 2, 0]),
        ({"guidance": "interval", "interval.low": 0.5, "interval.high": 1}, [0, 0, 2, 2, 2]),
        ({"guidance": "interval", "interval.low": 0.3, "interval.high": 0.4}, [0] * 5),
        ({"guidance": "constant", "cfg_scale": 0}, [0] * 5),
    ],
)
def test_weights_of_the_forms_of_guidance(fields, expected):
    config = sampled(**{"cfg_scale": 2, **fields})
    assert guidance_weights(config, 5) == expected
    assert is_guided(config, 5) == any(expected)


def test_a_form_of_guidance_is_what_images_are_drawn_with():
    """Scale by scale: the guided logits are those of two runs of the model, without guidance, on the same tokens."""
    model, quantizer = small()
    labels, seeds, seen = torch.tensor([0, 1]), [(0, 0), (0, 1)], []
    config = sampled(cfg_scale=3, guidance="interval", **{"interval.low": 0.5, "interval.high": 0.5})
    tokens = generate(model, quantizer, labels, seeds, config, on_logits=lambda _, logits: seen.append(logits)).tokens
    inputs = quantizer.inputs(tokens)
    with torch.no_grad():
        conditional, unconditional = (model(classes, inputs)[0] for classes in (labels, torch.full_like(labels, 3)))
    for scale, (span, logits) in enumerate(zip(model.schedule.steps(), seen, strict=True)):
        part, t = slice(span.start, span.stop), 3 if scale == 1 else 0
        expected = (1 + t) * conditional[:, part] - t * unconditional[:, part]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    # no weight anywhere: as without guidance, to the bit
    nowhere = sampled(cfg_scale=3, guidance="interval", **{"interval.low": 0.1, "interval.high": 0.2})
    plain = generate(model, quantizer, labels, seeds, sampled(cfg_scale=0))
    assert torch.equal(generate(model, quantizer, labels, seeds, nowhere).latent, plain.latent)


def test_min_p():
    logits = torch.tensor([0.5, 0.3, 0.1, 0.07, 0.03]).log().expand(1, 2, 5).contiguous()

    def kept(**fields):
        config = sampled(filter="min_p", **fields)
        return (only_kept(logits, kept_by(config, 3)(0, logits)) > -torch.inf)[0, 0].tolist()

    assert kept(**{"top_p": 0, "min_p.p": 0.15}) == [True, True, True, False, False]
    assert kept(**{"top_p": 0, "min_p.p": 0.01}) == [True] * 5
    assert kept(**{"top_p": 0, "min_p.p": 1}) == [True, False, False, False, False]
    assert kept(**{"top_p": 0, "top_k": 2, "min_p.p": 0.15}) == [True, True, False, False, False]
    assert kept(**{"top_p": 0.4, "min_p.p": 0.15}) == [True, False, False, False, False]


def test_a_mask_and_a_bound_draw_the_same():
    torch.manual_seed(0)
    logits, uniform = torch.randn(2, 50, 40), torch.rand(2, 50, dtype=torch.float64)
    bound = smallest_kept(logits, top_k=7)
    assert torch.equal(draw(logits, uniform, bound), draw(logits, uniform, logits >= bound))
    assert torch.equal(only_kept(logits, bound), only_kept(logits, logits >= bound))
    assert torch.equal(only_kept(logits, bound), filter_logits(logits, top_k=7))


def test_methods_of_ones_own(own):
    """A form that guides the last scale, a filter that keeps a single code of it."""
    own("guidance", "last", weight=lambda self, s, S, cfg, settings: cfg * (s == S - 1))

    def even(self, logits, scale, num_scales, sample, settings):
        if scale < num_scales - 1:
            return None
        return (torch.arange(logits.shape[-1]) % 2 == 0).expand(logits.shape)

    own("filter", "even", kept=even)
    model, quantizer = small()
    labels, seeds = torch.tensor([0, 1]), [0, 1]
    config, plain = sampled(cfg_scale=3, guidance="last", filter="even"), sampled(cfg_scale=0, top_p=0)
    found = generate(model, quantizer, labels, seeds, config).tokens
    assert torch.equal(found[:, :5], generate(model, quantizer, labels, seeds, plain).tokens[:, :5])
    assert (found[:, 5:] % 2 == 0).all() and guidance_weights(config, 3) == [0, 0, 3]
    smooth = generate(model, quantizer, labels, seeds, sampled(filter="even", more_smooth=True))
    assert smooth.latent.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "methods", "message"),
    [
        ("guidance", {"weight": lambda *_: 1 / 0}, "sample.guidance: mine raises ZeroDivisionError: division by zero"),
        ("guidance", {"weight": lambda *_: float("nan")}, "gives scale 0 the weight nan; allowed: finite numbers"),
        ("guidance", {"weight": lambda s, *_: s.none}, "sample.guidance: mine raises AttributeError: "),
        ("filter", {"kept": lambda *_: 1 / 0}, "sample.filter: mine raises ZeroDivisionError"),
        ("filter", {"kept": lambda *_: 3}, "mine gives int; allowed: the smallest logit that is kept (B, 1, 1), "),
        ("filter", {"kept": lambda _, x, *__: x}, "mine gives (2, 1, 32) torch.float32; allowed: "),
        ("filter", {"kept": lambda _, x, *__: x[..., :1] > 0}, "mine gives (2, 1, 1) torch.bool; allowed: "),
        ("filter", {"kept": lambda _, x, *__: x > 1e9}, "mine keeps no code of some token; allowed: one or more"),
        ("filter", {"kept": lambda _, x, *__: x.amax(-1, keepdim=True) + 1}, "mine keeps no code of some token"),
    ],
)
def test_mistakes_in_methods_of_ones_own_are_one_line(own, kind, methods, message):
    own(kind, "mine", **methods)
    model, quantizer = small()
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        generate(model, quantizer, torch.tensor([0, 1]), [0, 1], sampled(cfg_scale=1, **{kind: "mine"}))
    assert "\n" not in str(caught.value)


def test_which_methods_there_are():
    for kind in ("guidance", "filter"):
        with pytest.raises(UserError, match=f"sample.{kind}: 'nope' is unknown; allowed: "):
            sampled(**{kind: "nope"})
    with pytest.raises(UserError, match=r"sample.interval.low: 0.9 is above high; allowed: at most 0.8"):
        sampled(**{"guidance": "interval", "interval.low": 0.9})


def test_forms_of_guidance_are_known_without_torch():
    code = (
        "import sys; from mvar.config import SampleConfig; from mvar.sampling.methods import is_guided; "
        "assert is_guided(SampleConfig(guidance='interval'), 5) and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_of_a_form_and_a_filter():
    """examples/guidance.py: a cosine; codes of which the least typical is needed to reach the probability."""
    plugins.load(str(ROOT / "examples/guidance.py"))
    assert guidance_weights(sampled(cfg_scale=4, guidance="cosine"), 5) == pytest.approx(
        [0, 0.586, 2, 3.414, 4], abs=1e-3
    )
    late = guidance_weights(sampled(cfg_scale=4, guidance="cosine", **{"cosine.power": 3}), 5)
    assert late == pytest.approx([0, 0.002, 0.152, 1.514, 4], abs=1e-3)
    torch.manual_seed(0)
    logits = 2 * torch.randn(2, 30, 20)
    kept = kept_by(sampled(filter="typical", **{"typical.p": 0.6}), 3)(0, logits)
    p = logits.softmax(-1)
    surprise = (-p.log() - torch.special.entr(p).sum(-1, keepdim=True)).abs()
    mass = (p * kept).sum(-1)
    worst = surprise.where(kept, -1).argmax(-1, keepdim=True)
    assert (mass >= 0.6).all() and (mass - p.gather(-1, worst)[..., 0] < 0.6).all()
    assert (surprise.where(kept, -1).amax(-1) <= surprise.where(~kept, 1e9).amin(-1)).all()
    assert not kept.gather(-1, logits.argmax(-1, keepdim=True)).all()  # which no bound from below could say
    model, quantizer = small()
    config = sampled(guidance="cosine", filter="typical")
    assert generate(model, quantizer, torch.tensor([0]), [0], config).latent.isfinite().all()


# A beginning that is given ----------------------------------------------------------------------------------------


def begun(pattern):
    space = TokenSpace((1, 2, 3), vocab_size=11, code_channels=4, num_classes=3)
    torch.manual_seed(0)
    mamba = MambaConfig(d_state=8, headdim=8)
    model = ScaleTransformer(ModelConfig(depth=2, width=16, num_heads=2, pattern=pattern, mamba=mamba), space)
    quantizer = ResidualQuantizer(TokenizerConfig(patch_sides=(1, 2, 3), vocab_size=11, code_channels=4))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model.double().eval(), quantizer.double()


@pytest.mark.parametrize("pattern", [*KINDS["mixer"].paths, "intra+mamba"])
@pytest.mark.parametrize("cfg_scale", [0.0, 2.0])
def test_an_image_goes_on_from_its_own_beginning(pattern, cfg_scale):
    """Whatever is given of an image, the rest is what it has itself, logits and all: cached and uncached are one."""
    model, quantizer = begun(pattern)
    labels, config = torch.tensor([0, 2]), SampleConfig(cfg_scale=cfg_scale, top_k=5)
    logits: dict[int, torch.Tensor] = {}
    whole = generate(model, quantizer, labels, [0, 1], config, on_logits=lambda s, x: logits.update({s: x.clone()}))
    for scales, count in enumerate(model.schedule.offsets):
        seen: dict[int, torch.Tensor] = {}
        found = generate(
            *(model, quantizer, labels, [0, 1], config),
            on_logits=lambda s, x: seen.update({s: x.clone()}),  # noqa: B023
            prefix=whole.tokens[:, :count],
        )
        assert torch.equal(found.tokens, whole.tokens)
        torch.testing.assert_close(found.latent, whole.latent, rtol=0, atol=1e-12)
        assert list(seen) == list(range(scales, 3))
        for scale, found_logits in seen.items():
            torch.testing.assert_close(found_logits, logits[scale], rtol=0, atol=1e-9)


def test_the_rest_depends_on_what_is_given():
    model, quantizer = begun("global")
    labels, config = torch.tensor([0, 2]), SampleConfig(cfg_scale=0.0, top_k=0)
    ends = [generate(model, quantizer, labels, [0, 1], config, prefix=torch.full((2, 5), c)).tokens for c in (1, 7)]
    assert (ends[0][:, :5] == 1).all() and (ends[1][:, :5] == 7).all() and not torch.equal(*(e[:, 5:] for e in ends))


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        (
            torch.zeros(2, 15, dtype=torch.long),
            "prefix: (2, 15); allowed: (2, n) with n one of 0, 1, 5, 14, the tokens",
        ),
        (torch.zeros(2, 4, dtype=torch.long), "prefix: (2, 4); allowed: (2, n)"),
        (torch.zeros(3, 5, dtype=torch.long), "prefix: (3, 5); allowed: (2, n)"),
        (torch.full((2, 5), 11), "prefix: codes 11 to 11; allowed: 0 to 10"),
    ],
)
def test_a_beginning_that_is_none_is_one_line(prefix, said):
    model, quantizer = begun("global")
    with pytest.raises(UserError, match=re.escape(said)):
        generate(model, quantizer, torch.tensor([0, 2]), [0, 1], SampleConfig(), prefix=prefix)
