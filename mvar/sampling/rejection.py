"""Rejection sampling: of several candidates for an image the best one is kept."""

from collections.abc import Callable, Sequence

import numpy as np


def keep_best(
    draw: Callable[[list[tuple[int, ...]]], np.ndarray],
    score: Callable[[np.ndarray], np.ndarray],
    seeds: Sequence[tuple[int, ...]],
    candidates: int,
) -> np.ndarray:
    """Rejection sampling: of `candidates` images for each seed, the one with the highest score.

    Candidate j of an image has the seed `(*seed, j)`. Candidate 0 is the image that plain sampling draws (numpy pads
    seeds with zeros), so more candidates never lower a score. Of equal scores the first stays.

    Args:
        draw: one image a seed, `(B, ...)`.
        score: `(B,)` of such images, higher is better.
        seeds: B seeds of up to three numbers.
        candidates: how many images are drawn for one that is kept: the acceptance rate is `1 / candidates`.
    """
    best = draw([(*seed, 0) for seed in seeds])
    best_score = np.asarray(score(best))
    for number in range(1, candidates):
        images = draw([(*seed, number) for seed in seeds])
        scores = np.asarray(score(images))
        better = scores > best_score
        best = np.where(better.reshape(-1, *[1] * (images.ndim - 1)), images, best)
        best_score = np.where(better, scores, best_score)
    return best
