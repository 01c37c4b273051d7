import json
from pathlib import Path

import pytest
import torch
from official import tokenizer_config
from safetensors.torch import load_file

from mvar.config import TokenizerConfig
from mvar.errors import UserError
from mvar.scales import PATCH_SIDES, ScaleSchedule
from mvar.tokenizer import model
from mvar.tokenizer.autoencoder import group_norm
from mvar.tokenizer.model import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
CLOSE = {"rtol": 0, "atol": 5e-5}  # the official code's own fp32 noise is 1e-5


@pytest.fixture(scope="module")
def full():
    folder = GOLDEN / "tok_full_q4"
    facts = json.loads((folder / "config.json").read_text())
    config = tokenizer_config(
        facts,
        width=facts["ch"],
        channel_multipliers=facts["ch_mult"],
        num_res_blocks=facts["num_res_blocks"],
        attention=facts["using_sa"],
        mid_attention=facts["using_mid_sa"],
    )
    tokenizer = Tokenizer(config, facts["in_channels"]).eval()
    tokenizer.load_state_dict(load_file(folder / "vae.safetensors"), strict=True)
    return facts, tokenizer, load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")


def test_golden_encoder(full):
    facts, tokenizer, inputs, outputs = full
    with torch.no_grad():
        torch.testing.assert_close(tokenizer.encoder(inputs["img"]), outputs["enc_feature"], **CLOSE)
        torch.testing.assert_close(tokenizer.features(inputs["img"]), outputs["f"], **CLOSE)
    assert torch.equal(tokenizer.encode(inputs["img"]), outputs["idx"])
    alternative = ScaleSchedule(tuple(facts["alt_patch_nums"]))
    with torch.no_grad():
        assert torch.equal(
            tokenizer.quantize.encode(tokenizer.features(inputs["img"]), alternative), outputs["alt_idx"]
        )


def test_golden_decoder_and_training_forward(full):
    _, tokenizer, inputs, outputs = full
    image = tokenizer.decode(tokenizer.quantize.latents(outputs["idx"])[-1])
    torch.testing.assert_close(image, outputs["img_rec_last"], **CLOSE)
    with torch.no_grad():
        reconstruction, loss, usage = tokenizer(inputs["img"])
    torch.testing.assert_close(reconstruction.clamp(-1, 1), outputs["img_rec_last"], **CLOSE)
    torch.testing.assert_close(loss, outputs["vae_forward.vq_loss"].squeeze(), **CLOSE)
    assert set(usage) == {"codes_used", *(f"codes_used_scale_{k:02d}" for k in range(4))}


def test_large_images_are_encoded_and_decoded_a_few_at_a_time(full, monkeypatch):
    """Of the pixels of three images at most, or one at least; and it is no matter for what is made of them."""
    _, tokenizer, inputs, _ = full
    images = inputs["img"].repeat(4, 1, 1, 1)[:7]
    tokens = tokenizer.encode(images)
    latent = tokenizer.quantize.latents(tokens)[-1]
    pixels, sizes = tokenizer.decode(latent), []
    side = images.shape[-1]
    hooks = [
        part.register_forward_hook(lambda module, given, out: sizes.append(len(out)))
        for part in (tokenizer.encoder, tokenizer.decoder)
    ]
    try:
        for most, few in ((3 * side**2 + 1, [3, 3, 1]), (side**2 // 2, [1] * 7)):
            monkeypatch.setattr(model, "MOST_PIXELS", most)
            assert torch.equal(tokenizer.encode(images), tokens)
            torch.testing.assert_close(tokenizer.decode(latent), pixels, **CLOSE)
            assert sizes == 2 * few
            sizes.clear()
    finally:
        for hook in hooks:
            hook.remove()


def test_released_size_has_the_official_keys_shapes_and_count():
    config = TokenizerConfig(
        patch_sides=PATCH_SIDES["256"],
        vocab_size=4096,
        code_channels=32,
        width=160,
        channel_multipliers=(1, 1, 2, 2, 4),
        num_res_blocks=2,
        attention=True,
        mid_attention=True,
    )
    with torch.device("meta"):
        tokenizer = Tokenizer(config, in_channels=3)
    counts = json.loads((GOLDEN / "param_counts" / "counts.json").read_text())["vqvae_ch160_v4096_z32"]
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in tokenizer.named_children()}
    assert sizes == {name: counts[name] for name in sizes}
    assert sum(p.numel() for p in tokenizer.parameters()) == counts["total"] == 108_948_355
    assert sum(b.numel() for b in tokenizer.buffers()) == counts["buffer_elements"]
    official = json.loads((GOLDEN / "param_counts" / "official_keys.json").read_text())["vqvae_ch160_v4096_z32"]
    own = {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in tokenizer.state_dict().items()}
    assert own == official


@pytest.mark.parametrize("channels, groups", [(160, 32), (48, 24), (16, 16), (7, 7), (37, 1), (33, 11)])
def test_group_norm_takes_the_largest_divisor(channels, groups):
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": True},
        {"mid_attention": False},
        {"channel_multipliers": (2,)},
        {"width": 5, "num_res_blocks": 2},
    ],
)
def test_shapes_and_gradients_of_every_parameter(changes):
    config = TokenizerConfig(**{"width": 8, "code_channels": 4, "vocab_size": 12, **changes})
    tokenizer = Tokenizer(config, in_channels=1)
    images = torch.rand(2, 1, 4 * config.downsample, 4 * config.downsample) * 2 - 1
    reconstruction, loss, _ = tokenizer(images)
    assert reconstruction.shape == images.shape and loss.shape == ()
    (loss + (reconstruction - images).square().mean()).backward()
    # A phi's gradient is zero only if no scale uses it; four scales use all four.
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in tokenizer.parameters())
    tokens = tokenizer.encode(images)
    assert tokens.shape == (2, 30) and tokens.dtype == torch.int64
    decoded = tokenizer.decode(tokenizer.quantize.latents(tokens)[-1])
    assert decoded.shape == images.shape and decoded.abs().max() <= 1


def test_images_of_another_size_are_refused():
    tokenizer = Tokenizer(TokenizerConfig(width=8), in_channels=1)
    with pytest.raises(UserError, match="patch_sides"):
        tokenizer.encode(torch.zeros(1, 1, 16, 16))
