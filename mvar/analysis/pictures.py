"""Images with something to see in them: the attention of one query drawn over the image, and an image as it grows.

Drawings return a matplotlib figure (`mvar.analysis.style.save` writes it; a notebook shows it). Shapes: `V` tokens
that a query sees, `S` scales, `(H, W)` pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar import escaping
from mvar.analysis.maps import names
from mvar.analysis.style import page
from mvar.config import SampleConfig
from mvar.data.crops import to_uint8
from mvar.sampling import generate
from mvar.scales import ScaleSchedule
from mvar.tokenizer.model import Tokenizer
from mvar.transformer import ScaleTransformer

MAX_COLUMNS = 6  # panels beside each other
UNIT = (0, 1, 1, 0)  # every panel's sides, whatever it shows: matplotlib's extent
SAID: dict[str, Any] = {"fontsize": 7.5, "fontweight": "normal", "loc": "left"}  # what stands above a panel
OUTLINED = 48  # pixels a side of which an outline is drawn: finer ones are of texture
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
    latents: list[Tensor] = []
    generate(model, tokenizer.quantize, labels, seeds, sample, on_latent=lambda scale, latent: latents.append(latent))
    return decoded(tokenizer, latents)


@torch.no_grad()
def decoded(tokenizer: Tokenizer, latents: Sequence[Tensor]) -> np.ndarray:
    """Images `(B, S, H, W, channels)` uint8 of the latents `(B, C, h, h)` after every scale."""
    stages = [to_uint8(tokenizer.decode(latent).cpu()).permute(0, 2, 3, 1).numpy() for latent in latents]
    return np.stack(stages, axis=1)


@dataclass(frozen=True)
class Look:
    """What one query looks at in one head, to be drawn as a row of panels."""

    weights: Tensor  # (V,), `attention_map(..., query=query)`
    images: np.ndarray  # (H, W, channels) uint8, square; or (S, H, W, channels), one a scale
    title: str = ""
    of: str = "mass"  # what the weights are shares of


def query_figure(weights: Tensor, schedule: ScaleSchedule, query: int, image: np.ndarray, title: str = "") -> Any:
    """The attention of one query over the image that it helps to generate: the image, then one panel a key scale.

    Args:
        weights: `(V,)`, `attention_map(..., query=query)`.
        schedule: the scales.
        query: the token.
        image: `(H, W, channels)` uint8, square; or `(S, H, W, channels)`, as `grow` gives it.
        title: above the panels.
    """
    return looks_figure([Look(weights, image, title)], schedule, query)


def looks_figure(looks: Sequence[Look], schedule: ScaleSchedule, query: int) -> Any:
    """What one query looks at in several heads, a row each: the picture, then its weights, one panel a key scale.

    Every panel has colours of its own, from 0 (light) to the largest weight of its scale, which stands above it; the
    picture's outline lies over them.
    """
    scale = schedule.levels[query]
    count = scale + 2
    rows = -(-count // MAX_COLUMNS)
    columns = -(-count // rows)
    side, (row, column) = schedule.sides[scale], divmod(query - schedule.offsets[scale], schedule.sides[scale])
    height, width = len(looks) * (rows * 1.75 + 0.25) + 0.2, max(3.5, 1.4 * columns)
    with page(height, width, nrows=rows * len(looks), ncols=columns) as (figure, axes):
        for ax in axes.flat:
            ax.axis("off")
        for look, panels in zip(looks, np.split(axes, len(looks)), strict=True):
            _draw_look(panels.ravel(), look, schedule, scale)
            for ax in panels.flat[:count]:
                _frame(ax, (column / side, row / side), 1 / side)
            panels[0, 0].annotate(
                escaping.figure(look.title), (0, 1), (0, 24), xycoords="axes fraction", textcoords="offset points",
                fontsize=8.5, fontweight="bold", annotation_clip=False, in_layout=False,
            )  # fmt: skip
        of = " and ".join(dict.fromkeys(look.of for look in looks))
        asked = (
            f"framed: token {query}, row {row}, column {column} of {side}×{side}, which looks; shares of {of},\n"
            "from 0 (light) to the most of each scale (dark); the line is the picture's outline"
        )
        figure.supxlabel(asked, fontsize=7.5, x=0.01, ha="left")
        figure.suptitle(" ", fontsize=9)  # room for the first look's title, which may be wider than a panel
    return figure


def _draw_look(panels: np.ndarray, look: Look, schedule: ScaleSchedule, scale: int) -> None:
    whole = look.images[-1] if look.images.ndim == 4 else look.images
    panels[0].imshow(whole if whole.shape[-1] == 3 else whole[..., 0], cmap="gray", vmin=0, vmax=255, extent=UNIT)
    panels[0].set_title("the picture\n", **SAID)
    for key, part in enumerate(look.weights.split(schedule.lengths[: scale + 1])):
        ax, shown = panels[key + 1], part.reshape(schedule.sides[key], -1).numpy()
        ax.imshow(shown, cmap="mako_r", vmin=0, vmax=max(shown.max(), 1e-9), extent=UNIT, interpolation="nearest")
        _outline(ax, look.images[key] if look.images.ndim == 4 else look.images)
        own = " (own)" if key == scale else ""
        ax.set_title(f"{names(schedule.sides)[key]}{own}: {part.sum():.0%}\nmost {shown.max():.1%}", **SAID)


def _outline(ax: Any, image: np.ndarray) -> None:
    """Where a picture `(H, W, channels)`, at most `OUTLINED` pixels a side, is as bright as the middle of its range."""
    from PIL import Image

    grey = Image.fromarray(image.mean(-1).astype(np.float32))
    grey.thumbnail((OUTLINED, OUTLINED), Image.Resampling.BOX)
    shown = np.asarray(grey)
    if np.ptp(shown) < 1:  # one colour has no outline
        return
    ys, xs = ((np.arange(size) + 0.5) / size for size in shown.shape)
    for colour, line in (("black", 1.5), ("white", 0.7)):
        ax.contour(xs, ys, shown, levels=[shown.min() + np.ptp(shown) / 2], colors=colour, linewidths=line)


def _frame(ax: Any, corner: tuple[float, float], side: float) -> None:
    from matplotlib.patches import Rectangle

    for colour, line in (("white", 2.6), ("#D55E00", 1.5)):
        ax.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=line))


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
