"""PSNR, SSIM, use and entropy of the codebook, reconstruction after each scale: against slow loops and closed forms."""

import math

import numpy as np
import pytest
import torch

from mvar.config import TokenizerConfig
from mvar.data.crops import to_float, to_uint8
from mvar.errors import UserError
from mvar.evaluation.tokenizer_quality import after_each_scale, entropy, ssim, tokenizer_quality
from mvar.tokenizer.model import Tokenizer


def draw(count, seed, side=16, channels=2):
    return np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    config = TokenizerConfig(patch_sides=(1, 2, 4), vocab_size=16, code_channels=4, width=8, channel_multipliers=(1, 1))
    return Tokenizer(config, 2).eval()


@pytest.mark.parametrize("side", [13, 8])  # of less than 11 px the largest odd window that fits
def test_ssim_is_what_its_paper_says(side):
    a, b = draw(2, 0, side), (draw(2, 0, side) // 2 + draw(2, 1, side) // 2).astype(np.uint8)
    window = 11 if side >= 11 else 7
    line = [math.exp(-((i - window // 2) ** 2) / (2 * 1.5**2)) for i in range(window)]
    weights = np.outer(line, line) / np.outer(line, line).sum()
    found = []
    for x, y in zip(a.astype(float).reshape(-1, side, side), b.astype(float).reshape(-1, side, side), strict=True):
        for top in range(side - window + 1):
            for left in range(side - window + 1):
                p, q = (z[top : top + window, left : left + window] for z in (x, y))
                mp, mq = (weights * p).sum(), (weights * q).sum()
                vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
                cov = (weights * (p - mp) * (q - mq)).sum()
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                found.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert ssim(a, b) == pytest.approx(np.mean(found), rel=1e-9)
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)


def test_entropy_of_what_is_known():
    assert entropy(np.array([5, 0, 5, 5, 5])) == pytest.approx(2) and entropy(np.array([0, 7])) == 0.0
    assert entropy(np.array([1, 3])) == pytest.approx(2 - 0.75 * math.log2(3))


def test_quality_of_a_tokenizer(tokenizer):
    images, calls = draw(30, 0, 8), []
    found = tokenizer_quality(tokenizer, images, progress=lambda *call: calls.append(call))
    tokens = tokenizer.encode(to_float(torch.from_numpy(images)))
    shown = to_uint8(tokenizer.decode(tokenizer.quantize.latents(tokens)[-1])).numpy()
    assert found.psnr_db == pytest.approx(10 * math.log10(255**2 / ((shown.astype(float) - images) ** 2).mean()))
    assert found.ssim == pytest.approx(ssim(shown, images)) and found.rfid is None and found.num_images == 30
    for scale, (start, stop) in enumerate([(0, 1), (1, 5), (5, 21)]):
        counts = np.bincount(tokens[:, start:stop].flatten(), minlength=16)
        assert found.codes_used_by_scale[scale] == (counts > 0).sum()
        assert found.entropy_bits_by_scale[scale] == pytest.approx(entropy(counts))
    assert found.codes_used == len(tokens.unique()) and found.entropy_bits <= 4 and calls[-1] == (90, 90)


def test_after_the_last_scale_the_reconstruction_stands(tokenizer):
    images = torch.from_numpy(draw(3, 0, 8))
    found = after_each_scale(tokenizer, images)
    assert found.shape == (3, 4, 8, 8, 2) and found.dtype == np.uint8
    assert (found[:, 0] == images.movedim(1, -1).numpy()).all()
    latents = tokenizer.quantize.latents(tokenizer.encode(to_float(images)))
    assert (found[:, 3] == to_uint8(tokenizer.decode(latents[-1])).movedim(1, -1).numpy()).all()
    assert (found[:, 1] != found[:, 3]).any()


def test_images_of_another_size_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"patch_sides: \[1, 2, 4\] ends at side 4, the features are 8x8"):
        tokenizer_quality(tokenizer, draw(3, 0, 16))
