"""The floors under the metrics of one data set and tokenizer: what the numbers of a generator are to be read against.

`floor/fid_real` (and `is`, `kid`, `precision`, `recall`): the training images themselves against the held-out ones,
what a perfect memoriser without a tokenizer reaches.
`floor/fid_reconstruction_heldout`, in short `floor/fid_reconstruction`: reconstructed held-out images against the same
images (rFID). Both sides are the same images, so no generator can be held to it; it says what the tokenizer loses.
`floor/fid_reconstruction_train`: reconstructed training images against the held-out ones: what a model that only
repeats training images reaches, the floor to read `eval/fid` against.
`floor/fid_resplit` and `_sd`: all real images split anew into sets of the sizes of train and held-out, over fixed
splits, class by class as the data are; the sd is what the choice of the held-out images is worth.
`floor/fid_halves` and `_sd`: half of the held-out images against the other half. FID is biased upwards for small sets,
so this is larger than a generator with more samples has to show.
`floor/copy_rate_reconstruction_heldout` and `_train`: copy rates, through the tokenizer, of a generator whose images
are as new as the held-out ones, and of one that repeats training images.
`floor/label_accuracy_reconstruction`: the classifier on reconstructed held-out images, where it knows their labels.
`floor/psnr`: of reconstructed held-out images, in dB. `floor/codes_used`: different codes in all reconstructed images.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar.config import EvaluationConfig
from mvar.data.crops import to_float, to_uint8
from mvar.data.rounds import ALONE, Heed, Sharing, alone, in_rounds, nothing
from mvar.errors import UserError
from mvar.evaluation.copies import Vectors, copy_rate
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.fidelity import frechet_distance
from mvar.evaluation.images import Images, Spooled, check_same_size, in_turn, spread_indices
from mvar.evaluation.measure import image_metrics
from mvar.progress import Progress
from mvar.tokenizer.model import Tokenizer, at_once

NUM_SPLITS = 5
BATCH_SIZE = 100
Together = Callable[[str], AbstractContextManager[tuple[Sharing, Heed]]]  # of the split whose images are reconstructed


def floors(
    tokenizer: Tokenizer,
    train: Any,
    heldout: Any,
    extractor: Extractor,
    config: EvaluationConfig,
    progress: Progress | None = None,
    vectors: Vectors | None = None,
    together: Together = lambda split: alone(),
) -> dict[str, float]:
    """Metrics of real and of reconstructed images against the held-out ones; the module's text says what each is.

    Args:
        tokenizer: encodes and decodes.
        train: training images, an image set. At most `config.num_images` of them are used, evenly spread, so that
            the sizes are those of an evaluation; the search for copies uses all.
        heldout: held-out images, an image set: the reference of every metric.
        extractor: the features and logits to compare.
        config: as for `image_metrics`.
        progress: called batch by batch with images done and in all, over all passes; what it raises ends the work.
        vectors: of all training images; the search for copies reads them in place of the images.
        together: opened while `reconstructed` images are made: the processes that share that, and what they heed.

    Raises:
        UserError: too few images, no labels, not uint8, or different sizes.
    """
    labels, train_labels = (_labels(images) for images in (heldout, train))
    all_train, heldout = Images(train, "training images"), reconstructed(heldout, "heldout", config)
    check_same_size(heldout, all_train)
    train, chosen = reconstructed(train, "train", config), spread_indices(len(all_train), config.num_images)
    few, known, copying = len(train), len(heldout), len(heldout) + len(all_train)
    sizes = [2 * few + known, known, few, 4 * known + copying, 3 * few + copying]
    metrics, first, second, *passes = in_turn(progress, sizes)
    real = image_metrics(train, heldout, extractor, config, metrics)
    result = {f"floor/{name}_real": real[f"eval/{name}"] for name in ("fid", "is", "kid", "precision", "recall")}
    heldout_features = extractor.extract(heldout, progress=first)[0]
    pool = torch.cat((heldout_features, extractor.extract(train, progress=second)[0]))
    pool_labels = np.concatenate((labels, train_labels[chosen]))
    result |= _over_splits("floor/fid_resplit", pool, pool_labels, len(heldout) / len(pool))
    result |= _over_splits("floor/fid_halves", heldout_features, labels, 0.5)
    codes = np.zeros(tokenizer.config.vocab_size, np.int64)
    for name, images, report in (("heldout", heldout, passes[0]), ("train", train, passes[1])):
        count, compared = len(images), len(images) if images is heldout else 0
        coding, extracting, searching, comparing = in_turn(report, [count, count, count + copying, compared])
        with together(name) as (group, heed):
            shown, used = reconstruct(tokenizer, images, coding, group, heed)
        codes += used.sum(0)
        features, logits = extractor.extract(Images(shown, "reconstructed images"), progress=extracting)
        result[f"floor/fid_reconstruction_{name}"] = frechet_distance(features, heldout_features)
        found = copy_rate(shown, vectors or all_train, heldout, searching, extractor.device)
        result[f"floor/copy_rate_reconstruction_{name}"] = found["eval/copy_rate"]
        if images is heldout:
            result["floor/psnr"] = psnr(shown, heldout, comparing)
            if extractor.knows_labels:
                accuracy = float((logits.argmax(1).numpy() == labels).mean())
                result["floor/label_accuracy_reconstruction"] = accuracy
    result["floor/fid_reconstruction"] = result["floor/fid_reconstruction_heldout"]
    return result | {"floor/codes_used": float(np.count_nonzero(codes))}


def reconstructed(images: Any, split: str, config: EvaluationConfig) -> Images:
    """Those images of a split, `train` or `heldout`, whose reconstructions the floors are of."""
    if split == "heldout":
        return Images(images, "held-out images")
    return Images(images, "training images").subset(spread_indices(len(images), config.num_images))


def _labels(images: Any) -> np.ndarray:
    if not hasattr(images, "labels"):
        raise UserError(f"images: {type(images).__name__} has no labels; allowed: an image set, as load_images gives")
    return np.asarray(images.labels)


def _over_splits(name: str, features: Tensor, labels: np.ndarray, share: float) -> dict[str, float]:
    """Mean and sd of FID between a random `share` of every class and the rest, over fixed splits."""
    values = []
    for seed in range(NUM_SPLITS):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        # Evenly spread over images sorted by class, from a random start: every class gives its share to within one.
        starts = np.floor(np.arange(len(order) + 1) * share + rng.random())
        chosen = torch.from_numpy(np.diff(starts) > 0)
        shuffled = features[torch.from_numpy(order)]
        values.append(frechet_distance(shuffled[~chosen], shuffled[chosen]))
    return {name: float(np.mean(values)), f"{name}_sd": float(np.std(values, ddof=1))}


@torch.no_grad()
def reconstruct(
    tokenizer: Tokenizer,
    images: Images,
    progress: Progress | None = None,
    group: Sharing = ALONE,
    heed: Heed = nothing,
) -> tuple[np.ndarray, np.ndarray]:
    """Images through their tokens and back, uint8 `(N, ch, H, W)`; how often each scale used each code, int64 `(S, V)`.

    The images are a map of a temporary file (`Spooled`): however many there are, memory holds one batch.

    Args:
        tokenizer, images: the same in all processes.
        progress: called with images done and in all.
        group: the processes that share the work; in all but the first the result is empty.
        heed: see `Heed`.
    """
    device = next(tokenizer.parameters()).device
    was_training = tokenizer.training
    tokenizer.eval()
    usage = np.zeros((tokenizer.schedule.num_scales, tokenizer.config.vocab_size), np.int64)
    shown, count, size = Spooled(), 0, at_once(images.image_shape, BATCH_SIZE)

    def work(batch: Tensor) -> tuple[Tensor, Tensor]:
        tokens = tokenizer.encode(to_float(batch).to(device))
        return to_uint8(tokenizer.decode(tokenizer.quantize.latents(tokens)[-1])), tokens

    try:
        for pixels, tokens in in_rounds(images.__getitem__, len(images), size, work, group, progress, heed):
            shown.add(pixels)
            count += len(pixels)
            for scale, part in enumerate(tokens.split(list(tokenizer.schedule.lengths), dim=1)):
                usage[scale] += part.flatten().bincount(minlength=usage.shape[1]).numpy()
    finally:
        tokenizer.train(was_training)
    return shown.mapped(count, *images.image_shape), usage


def psnr(images: Any, reference: Any, progress: Progress | None = None) -> float:
    """Peak signal-to-noise ratio in dB, of the mean squared error over all pixels, peak 255.

    The error counts at least 1/12, the variance of rounding to grey levels: an error below it cannot be seen in uint8,
    and equal images have a finite value (58.9 dB).
    """
    images, reference = Images(images, "images"), Images(reference, "reference images")
    total, size = 0.0, at_once(images.image_shape, BATCH_SIZE)
    for batch, wanted in zip(images.batches(size, progress), reference.batches(size), strict=True):
        total += (batch.double() - wanted.double()).square().sum().item()
    error = total / (len(images) * int(np.prod(images.image_shape)))
    return float(10 * np.log10(255**2 / max(error, 1 / 12)))
