"""The floors under the metrics of one data set and tokenizer: what the numbers of a generator are to be read against.

`floor/fid_real` (and `is`, `kid`, `precision`, `recall`): the training images themselves against the held-out ones,
what a perfect memoriser without a tokenizer reaches.
`floor/fid_reconstruction`: reconstructed held-out images against the same images (rFID). Both sides are the same
images, so no generator can be held to it; it says what the tokenizer loses.
`floor/fid_reconstruction_train`: reconstructed training images against the held-out ones: what a generator that recites
the training tokens reaches, the floor to read `eval/fid` against.
`floor/fid_resplit` and `_sd`: all real images split anew into sets of the sizes of train and held-out, over fixed
splits; the sd is what the choice of the held-out images is worth.
`floor/fid_halves` and `_sd`: half of the held-out images against the other half. FID is biased upwards for small sets,
so this is larger than a generator with more samples has to show.
`floor/copy_rate_reconstruction` and `_train`: copy rates, through the tokenizer, of a generator whose images are as new
as the held-out ones, and of one that recites.
`floor/label_accuracy_reconstruction`: the classifier on reconstructed held-out images, where it knows their labels.
`floor/psnr`: of reconstructed held-out images, in dB. `floor/codes_used`: different codes in all reconstructed images.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvar.config import EvaluationConfig
from mvar.data.images import to_float, to_uint8
from mvar.evaluation.copies import copy_rate
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.images import Images, check_same_size, spread_indices
from mvar.evaluation.metrics import frechet_distance, image_metrics

NUM_SPLITS = 5
BATCH_SIZE = 100


def floors(
    tokenizer: nn.Module,
    train: Any,
    heldout: Any,
    extractor: Extractor,
    config: EvaluationConfig,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Metrics of real and of reconstructed images against the held-out ones; the module's text says what each is.

    Args:
        tokenizer: encodes and decodes.
        train: training images, uint8 `(N, ch, H, W)` or an image set. At most `config.num_images` of them are
            used, evenly spread, so that the sizes are those of an evaluation; the search for copies uses all.
        heldout: held-out images, the reference of every metric.
        extractor: the features and logits to compare.
        config: as for `image_metrics`.
        progress: called with parts done and in all.

    Raises:
        UserError: too few images, not uint8, or different sizes.
    """
    report = progress or (lambda done, total: None)
    labels = getattr(heldout, "labels", None)
    all_train, heldout = Images(train, "training images"), Images(heldout, "held-out images")
    check_same_size(heldout, all_train)
    train = all_train.subset(spread_indices(len(all_train), config.num_images))
    real = image_metrics(train, heldout, extractor, config)
    result = {f"floor/{name}_real": real[f"eval/{name}"] for name in ("fid", "is", "kid", "precision", "recall")}
    report(1, 4)
    heldout_features = extractor.extract(heldout)[0]
    result |= _real_against_real(extractor.extract(train)[0], heldout_features)
    report(2, 4)
    codes: set[int] = set()
    for suffix, images in (("", heldout), ("_train", train)):
        shown, used = reconstruct(tokenizer, images)
        codes |= used
        features, logits = extractor.extract(Images(shown, "reconstructed images"))
        result[f"floor/fid_reconstruction{suffix}"] = frechet_distance(features, heldout_features)
        rate = copy_rate(shown, all_train, heldout)["eval/copy_rate"]
        result[f"floor/copy_rate_reconstruction{suffix}"] = rate
        if images is heldout:
            result["floor/psnr"] = psnr(shown, heldout)
            if extractor.knows_labels and labels is not None:
                right = logits.argmax(1).numpy() == np.asarray(labels)
                result["floor/label_accuracy_reconstruction"] = float(right.mean())
        report(3 if images is heldout else 4, 4)
    return result | {"floor/codes_used": float(len(codes))}


def _real_against_real(train_features: Tensor, heldout_features: Tensor) -> dict[str, float]:
    pool = torch.cat((train_features, heldout_features))
    resplit, halves = [], []
    for seed in range(NUM_SPLITS):
        rng = np.random.default_rng(seed)
        order = torch.from_numpy(rng.permutation(len(pool)))
        count = len(heldout_features)
        resplit.append(frechet_distance(pool[order[count:]], pool[order[:count]]))
        order = torch.from_numpy(rng.permutation(count))
        halves.append(frechet_distance(heldout_features[order[: count // 2]], heldout_features[order[count // 2 :]]))
    values = {"resplit": resplit, "halves": halves}
    means = {f"floor/fid_{name}": float(np.mean(numbers)) for name, numbers in values.items()}
    return means | {f"floor/fid_{name}_sd": float(np.std(numbers, ddof=1)) for name, numbers in values.items()}


@torch.no_grad()
def reconstruct(tokenizer: nn.Module, images: Images) -> tuple[np.ndarray, set[int]]:
    """Images through their tokens and back, uint8 `(N, ch, H, W)`, and the set of codes that they used."""
    device = next(tokenizer.parameters()).device
    was_training = tokenizer.training
    tokenizer.eval()
    shown, codes = [], set()
    try:
        for batch in images.batches(BATCH_SIZE):
            tokens = tokenizer.encode(to_float(batch).to(device))
            latent = tokenizer.quantize.latents(tokens)[-1]
            shown.append(to_uint8(tokenizer.decode(latent)).cpu())
            codes |= set(tokens.unique().tolist())
    finally:
        tokenizer.train(was_training)
    return torch.cat(shown).numpy(), codes


def psnr(images: Any, reference: Any) -> float:
    """Peak signal-to-noise ratio in dB, of the mean squared error over all pixels, peak 255.

    The error counts at least 1/12, the variance of rounding to grey levels: an error below it cannot be seen in uint8,
    and equal images have a finite value (58.9 dB).
    """
    images, reference = Images(images, "images"), Images(reference, "reference images")
    total = 0.0
    for batch, wanted in zip(images.batches(BATCH_SIZE), reference.batches(BATCH_SIZE), strict=True):
        total += (batch.double() - wanted.double()).square().sum().item()
    error = total / (len(images) * int(np.prod(images.image_shape)))
    return float(10 * np.log10(255**2 / max(error, 1 / 12)))
