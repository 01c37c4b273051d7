"""Held-out likelihood and token error of the generator under teacher forcing."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mvar.errors import UserError
from mvar.progress import Progress
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.transformer import ScaleTransformer

MOST_TOKENS = 2**17  # a forward pass: with 4,096 codes 2 GB of logits, and twice that each time they are in fp64


@torch.no_grad()
def heldout_nll(
    model: ScaleTransformer,
    quantizer: ResidualQuantizer,
    heldout_tokens: Any,
    labels: Any,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Likelihood and error of held-out tokens given all coarser scales and the true label.

    Negative log-likelihood is in bits per token; the error is the share of tokens (0 to 1) that are not the most likely
    one: VAR's two measures of a model's size.

    Args:
        model: the generator; evaluated in eval mode and left in the mode that it had.
        quantizer: makes the teacher-forcing inputs from tokens.
        heldout_tokens: `(M, L)` integers below V, of images that were never trained on.
        labels: `(M,)` their classes.
        batch_size: images a forward pass, at most: of `MOST_TOKENS` tokens, or of one image.
        progress: called with images done and in all.

    Returns:
        `eval/nll_bits_per_token` and `eval/error`, means over all tokens, and `eval/nll_bits_scale_00`,
        `eval/error_scale_00`, ... a scale.

    Raises:
        UserError: tokens or labels that do not fit the model, or a model whose logits are not finite.
    """
    schedule = model.space.schedule
    tokens, labels = np.asarray(heldout_tokens), np.asarray(labels)
    _check(tokens, labels, model.space.num_classes, model.space.vocab_size, schedule.num_tokens)
    device = next(model.parameters()).device
    batch_size = images_at_once(batch_size, schedule.num_tokens)
    bits, wrong = torch.zeros(2, schedule.num_tokens, dtype=torch.float64)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(tokens), batch_size):
            batch = torch.from_numpy(tokens[start : start + batch_size].astype(np.int64)).to(device)
            batch_labels = torch.from_numpy(labels[start : start + batch_size].astype(np.int64)).to(device)
            found = token_bits_and_errors(model, quantizer.inputs(batch), batch, batch_labels)
            bits += found[0].sum(0).cpu()
            wrong += found[1].sum(0).cpu()
            if progress:
                progress(min(start + batch_size, len(tokens)), len(tokens))
    finally:
        model.train(was_training)
    if not bits.isfinite().all():
        raise UserError("model: its logits on held-out images are not finite (training diverged); allowed: finite")
    span, result = schedule.span(), {}
    for total, scale, sums in (("nll_bits_per_token", "nll_bits", bits), ("error", "error", wrong)):
        means = sums / len(tokens)
        result[f"eval/{total}"] = means.mean().item()
        result |= {f"eval/{scale}_scale_{k:02d}": means[span.local(k)].mean().item() for k in span.scales}
    return result


def images_at_once(most: int, num_tokens: int) -> int:
    """Images of so many tokens in a forward pass: `most`, of `MOST_TOKENS` tokens in all, or one."""
    return max(1, min(most, MOST_TOKENS // num_tokens))


def token_bits_and_errors(
    model: ScaleTransformer, inputs: Tensor, tokens: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood in bits `(B, L)` fp64, and whether a token is not the likeliest one `(B, L)`.

    Args:
        model: the generator; it is run as it is.
        inputs: `(B, L - n_0, C)`, what the quantizer makes of the tokens.
        tokens: `(B, L)` int64.
        labels: `(B,)` classes.
    """
    logits, _ = model(labels, inputs)
    nll = functional.cross_entropy(logits.double().flatten(0, 1), tokens.flatten(), reduction="none")
    return nll.view_as(tokens) / math.log(2), logits.argmax(-1) != tokens


def _check(tokens: np.ndarray, labels: np.ndarray, num_classes: int, vocab_size: int, num_tokens: int) -> None:
    if tokens.ndim != 2 or tokens.shape[1] != num_tokens or not len(tokens):
        raise UserError(f"heldout_tokens: shape {tokens.shape}; allowed: (images, {num_tokens}), one image or more")
    if labels.shape != (len(tokens),):
        raise UserError(f"heldout_labels: shape {labels.shape}; allowed: ({len(tokens)},), one label an image")
    for what, values, limit in (("heldout_tokens", tokens, vocab_size), ("heldout_labels", labels, num_classes)):
        if values.min() < 0 or values.max() >= limit:
            raise UserError(f"{what}: values {values.min()} to {values.max()}; allowed: 0 to {limit - 1}")
