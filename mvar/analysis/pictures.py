"""Images with something to see in them: the attention of one query drawn over the image, and an image as it grows.

Drawings return a matplotlib figure (`mvar.analysis.style.save` writes it; a notebook shows it). Shapes: `V` tokens
that a query sees, `S` scales, `(H, W)` pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar import escaping
from mvar.analysis.maps import names
from mvar.analysis.style import mixer_look, page
from mvar.config import SampleConfig
from mvar.data.crops import to_uint8
from mvar.sampling import generate
from mvar.scales import ScaleSchedule
from mvar.tokenizer.model import Tokenizer
from mvar.transformer import ScaleTransformer

MAX_LABEL = 26  # characters beside a row of images


@torch.no_grad()
def grow(
    model: ScaleTransformer,
    tokenizer: Tokenizer,
    labels: Tensor,
    seeds: Sequence[tuple[int, int]],
    sample: SampleConfig,
) -> np.ndarray:
    """Draw one image a label and decode it after every scale: `(B, S, H, W, channels)` uint8; the last is the image."""
    stages: list[np.ndarray] = []

    def decode(scale: int, latent: Tensor) -> None:
        stages.append(to_uint8(tokenizer.decode(latent).cpu()).permute(0, 2, 3, 1).numpy())

    generate(model, tokenizer.quantize, labels, seeds, sample, on_latent=decode)
    return np.stack(stages, axis=1)


def upsample(weights: Tensor, schedule: ScaleSchedule, pixels: int) -> np.ndarray:
    """A query's row `(V,)` as one picture a key scale, `(scales, pixels, pixels)`, relative to uniform attention.

    Every pixel has the weight of the token that covers it, times V: 1 is what uniform attention would give.
    """
    num_scales = schedule.offsets.index(len(weights))
    pictures = []
    for side, part in zip(schedule.sides, weights.split(schedule.lengths[:num_scales]), strict=False):
        token = np.arange(pixels) * side // pixels
        pictures.append((part.reshape(side, side) * len(weights)).numpy()[np.ix_(token, token)])
    return np.stack(pictures)


def query_figure(weights: Tensor, schedule: ScaleSchedule, query: int, image: np.ndarray, title: str = "") -> Any:
    """The attention of one query over the image that it helps to generate, one panel a key scale.

    Args:
        weights: `(V,)`, `attention_map(..., query=query)`.
        schedule: the scales.
        query: the token.
        image: `(H, W, channels)` uint8, square.
        title: above the panels.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    scale = schedule.levels[query]
    pixels, side = len(image), schedule.sides[scale]
    pictures = upsample(weights, schedule, pixels)
    orange = mixer_look("intra")["color"]
    veil = LinearSegmentedColormap.from_list("veil", [(*orange, 0.0), (*orange, 0.9)])
    columns = min(6, len(pictures) + 1)
    rows = -(-(len(pictures) + 1) // columns)
    masses = [float(part.sum()) for part in weights.split(schedule.lengths[: scale + 1])]
    with page(rows * 1.6 + 0.4, nrows=rows, ncols=columns) as (figure, axes):
        for number, ax in enumerate(axes.flat):
            ax.axis("off")
            if number > len(pictures):
                continue
            ax.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", extent=(0, 1, 1, 0))
            row, column = divmod(query - schedule.offsets[scale], side)
            corner = (column / side, row / side)
            ax.add_patch(Rectangle(corner, 1 / side, 1 / side, fill=False, edgecolor="#56B4E9", linewidth=1.5))
            if number == 0:
                text = f"query of\n{side}×{side}"
            else:
                text = f"keys {names(schedule.sides)[number - 1]}\n{masses[number - 1]:.0%}"
                shown = ax.imshow(
                    pictures[number - 1], cmap=veil, vmin=pictures.min(), vmax=pictures.max(), extent=(0, 1, 1, 0),
                    interpolation="nearest",
                )  # fmt: skip
            ax.set_title(text, fontsize=8, fontweight="normal", loc="center")
        figure.colorbar(shown, ax=axes, label="weight (× uniform)", shrink=0.9, aspect=15)
        figure.suptitle(escaping.figure(title), fontsize="medium")
    return figure


def growth_figure(images: np.ndarray, sides: Sequence[int], labels: Sequence[str] = (), title: str = "") -> Any:
    """Images as they grow, one row each: `(B, S, H, W, channels)` uint8, decoded after every scale."""
    rows, columns = images.shape[:2]
    side = 6.6 / max(columns, 6)
    with page(rows * (side + 0.05) + 0.6, columns * (side + 0.05) + 0.4, nrows=rows, ncols=columns) as (figure, axes):
        for row, column in np.ndindex(rows, columns):
            ax, image = axes[row, column], images[row, column]
            ax.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            if row == 0:
                name = names(sides)[column]
                ax.set_title(name if column == 0 else f"+ {name}", fontsize=8, fontweight="normal", loc="center")
            if column == 0 and labels:
                ax.set_ylabel(escaping.figure(labels[row], MAX_LABEL), rotation=0, ha="right", va="center")
        figure.suptitle(escaping.figure(title), fontsize="medium")
    return figure
