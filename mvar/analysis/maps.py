"""Single attention maps, computed when asked for, and drawings of maps and of attention statistics.

Drawings return a matplotlib figure (`mvar.analysis.style.save` writes it; a notebook shows it). Shapes: `L` tokens,
`S` scales, `N` layers with global attention, `H` heads.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar import escaping
from mvar.analysis.style import WIDTH, despine, mixer_look, page
from mvar.errors import UserError, one_of
from mvar.probes.attention_mass import AttentionStats, global_layers, observing, uniform_entropy, uniform_share
from mvar.probes.single_maps import weights_of
from mvar.scales import ScaleSchedule
from mvar.transformer import ScaleTransformer

MAX_LAYERS = 4  # of the small multiples, evenly spread


@torch.inference_mode()
def attention_map(
    model: ScaleTransformer,
    label: Tensor | int,
    inputs: Tensor,
    layer: int,
    head: int | None = None,
    *,
    query: int | None = None,
    scale: int | None = None,
) -> Tensor:
    """Attention of one image in one layer under teacher forcing, on the CPU.

    Args:
        model: has global attention in that layer.
        label: class of the image.
        inputs: `(L - n_0, C)` or `(1, L - n_0, C)`, as the model's forward takes them.
        layer: number of the layer in the model.
        head: None: the mean over heads.
        query: token 0 to L - 1 whose row is wanted.
        scale: scale whose rows are wanted.

    Returns:
        With `query` the row `(V,)` over the V tokens that it sees; with `scale` `(n, V)` for the n queries of the
        scale; with neither the whole map `(L, L)`, zero where a query does not see. Rows sum to 1.

    Raises:
        UserError: no such layer (or one without global attention), head, query or scale.
    """
    schedule = model.schedule
    _check("layer", layer, [number for number, _ in global_layers(model)])
    if head is not None:
        _check("head", head, range(model.config.num_heads))
    if query is not None:
        _check("query", query, range(schedule.num_tokens))
        scale = schedule.levels[query]
    if scale is not None:
        _check("scale", scale, range(schedule.num_scales))
    found: list[Tensor] = []

    def see(number: int, q: Tensor, k: Tensor) -> None:
        if number != layer:
            return
        heads = slice(None) if head is None else slice(head, head + 1)
        for step in schedule.steps() if scale is None else [schedule.span(scale, scale + 1)]:
            rows = slice(step.start, step.stop) if query is None else slice(query, query + 1)
            found.append(weights_of(q[0, heads, rows], k[0, heads, : step.stop]))

    labels = torch.as_tensor(label, device=model.pos_1LC.device).reshape(1)
    with observing(model, see):
        model(labels, inputs.reshape(1, *inputs.shape[-2:]).to(labels.device))
    if query is not None:
        return found[0][0]
    if scale is not None:
        return found[0]
    return torch.cat([torch.nn.functional.pad(w, (0, schedule.num_tokens - w.shape[1])) for w in found])


def _check(what: str, value: int, allowed: Sequence[int]) -> None:
    if value not in allowed:
        if isinstance(allowed, range):
            raise UserError(f"{what}: {value}; allowed: 0 to {len(allowed) - 1}")
        raise one_of(what, value, allowed)


# Drawings -----------------------------------------------------------------------------------------------------------


def names(sides: Sequence[int]) -> list[str]:
    """What scales are called in figures."""
    return [f"{side}×{side}" for side in sides]


def map_figure(weights: Tensor, schedule: ScaleSchedule, title: str = "") -> Any:
    """Heat map of `attention_map`'s whole map `(L, L)`, or of the queries of one scale `(n, V)`, with the scales'
    boundaries. Logarithmic: a weight of a coarse scale is one of few, of a fine scale one of many."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter, LogLocator

    rows, columns = weights.shape
    values = np.where(weights.numpy() > 0, 100 * weights.numpy(), np.nan)
    top = np.nanmax(values)
    bottom = min(max(top / 1000, np.nanmin(values)), 0.9 * top)  # below the top also where all weights are equal
    is_whole = rows == schedule.num_tokens
    with page(*((4.6, 5.4) if is_whole else (min(4.6, 1.2 + 4.5 * rows / columns), WIDTH))) as (figure, axes):
        ax = axes[0, 0]
        shown = ax.imshow(
            values, cmap="mako_r", norm=LogNorm(bottom, top), interpolation="nearest",
            aspect="equal" if is_whole else "auto",
        )  # fmt: skip
        ends = [0, *[end for end in schedule.offsets[1:] if end <= columns]]
        _scale_axis(ax.xaxis, ends, schedule.sides)
        if is_whole:
            _scale_axis(ax.yaxis, ends, schedule.sides)
        else:
            ax.set_yticks([0, rows - 1])
        line = {"color": "white", "linewidth": 1.5 if columns < 100 else 0.7}
        for end in ends[1:-1]:
            ax.axvline(end - 0.5, **line)
            if is_whole:
                ax.axhline(end - 0.5, **line)
        own = schedule.sides[len(ends) - 2]
        ylabel = "query tokens, by scale" if is_whole else f"query token of scale {own}×{own}"
        ax.set(xlabel="key tokens, by scale", ylabel=ylabel, title=escaping.figure(title))
        ax.grid(False)
        ticks = {"ticks": LogLocator(subs=(1, 2, 3, 5)), "format": FuncFormatter(lambda x, _: f"{x:g}")}
        label = "attention weight (%), logarithmic"
        bar = figure.colorbar(shown, ax=ax, label=label, shrink=0.8, extend="min", **ticks)
        bar.ax.minorticks_off()
    return figure


def _scale_axis(axis: Any, ends: Sequence[int], sides: Sequence[int]) -> None:
    """Scale names in the middle of each scale that is wide enough for its name."""
    middles = [(a + b - 1) / 2 for a, b in pairwise(ends)]
    labels = names(sides[: len(middles)])
    keep = [i for i, (a, b) in enumerate(pairwise(ends)) if (b - a) / ends[-1] > (0.025 if ends[-1] < 100 else 0.06)]
    axis.set_ticks([middles[i] for i in keep], [labels[i] for i in keep])
    axis.set_tick_params(length=0, labelsize=7)


def draw_flow(ax: Any, matrix: np.ndarray, sides: Sequence[int], entropy: np.ndarray | None = None) -> None:
    """The S x S matrix: mass that the queries of a scale (row) put on the keys of a scale (column), in percent.

    Beside each row the entropy `(S,)` of its queries' attention, in nats; with None the matrix alone, without numbers.
    """
    seen, alone = np.where(np.tri(len(sides), dtype=bool), matrix, np.nan), entropy is None
    draw_mass(ax, seen, names(sides), names(sides), colour_bar=not alone, text=not alone)
    if entropy is not None:
        beside = ax.secondary_yaxis("right")
        beside.set_yticks(np.arange(len(sides)) + 0.5, [f"{nats:.2f}" for nats in entropy])
        beside.set_ylabel("entropy (nats)")
        beside.tick_params(length=0, labelsize=8 if len(sides) <= 6 else 6)
        beside.spines["right"].set_visible(False)


def draw_entropies(ax: Any, entropies: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """A matrix of entropies of attention, in nats; white is what there is none of (NaN)."""
    largest = float(np.nanmax(entropies, initial=0)) or 1.0
    look = {"cmap": "rocket_r", "vmin": 0, "vmax": largest}
    _draw_matrix(ax, entropies, rows, columns, "entropy (nats)", True, 2, **look)


def draw_mass(
    ax: Any,
    mass: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    colour_bar: bool = True,
    text: bool = True,
) -> None:
    """A matrix of shares of attention mass, in percent; white is what there is none of (NaN)."""
    look = {"cmap": "mako_r", "vmin": 0, "vmax": 100, "cbar": colour_bar}
    _draw_matrix(ax, 100 * mass, rows, columns, "attention mass (%)", text, **look)


def draw_changes(ax: Any, changes: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """What cuts cost: a matrix of changes in bits a token, in millibits; white is what was not cut (NaN)."""
    largest = 1000 * float(np.nanmax(np.abs(changes), initial=0)) or 1.0
    look = {"cmap": "vlag", "vmin": -largest, "vmax": largest}
    _draw_matrix(ax, 1000 * changes, rows, columns, "change (millibits a token)", True, **look)


def _draw_matrix(
    ax: Any,
    matrix: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    text: bool,
    decimals: int | None = None,
    **look: Any,
) -> None:
    import seaborn

    size = 8 if max(matrix.shape) <= 6 else 6
    decimals = int(float(np.nanmax(np.abs(matrix), initial=0)) < 10) if decimals is None else decimals
    written = np.round(matrix, decimals) + 0.0  # no -0
    seaborn.heatmap(
        matrix,
        mask=np.isnan(matrix),
        ax=ax,
        square=True,
        annot=written if text and max(matrix.shape) <= 10 else None,
        fmt=f".{decimals}f",
        annot_kws={"fontsize": size},
        linewidths=0.5 if text else 0,
        linecolor="white",
        xticklabels=columns if text else False,
        yticklabels=rows if text else False,
        cbar_kws={"label": label, "shrink": 0.8},
        **look,
    )
    ax.grid(False)
    ax.tick_params(length=0, labelsize=size)


def flow_figure(stats: AttentionStats, layer: int | None = None) -> Any:
    """From scale to scale: the mean over the global layers, or one of them."""
    if layer is not None:
        _check("layer", layer, stats.layers)
    chosen = slice(None) if layer is None else [stats.layers.index(layer)]
    matrix, entropy = (values[chosen].mean(0).numpy() for values in (stats.matrix, stats.scale_entropy))
    with page(4.2, 5.6) as (figure, axes):
        draw_flow(axes[0, 0], matrix, stats.sides, entropy)
        where = f"mean over {len(stats.layers)} layers" if layer is None else f"layer {layer}"
        axes[0, 0].set(xlabel="keys of scale", ylabel="queries of scale", title=f"Attention between scales, {where}")
    return figure


def heads_figure(stats: AttentionStats, layers: Sequence[int] | None = None) -> Any:
    """The S x S matrix of every head (columns) in several layers (rows), intra-scale share and entropy above each."""
    chosen = list(layers) if layers is not None else _spread(stats.layers, MAX_LAYERS)
    for layer in chosen:
        _check("layer", layer, stats.layers)
    num_heads = stats.mean.shape[1]
    columns = min(num_heads, 8)
    rows_a_layer = -(-num_heads // columns)
    side = min(1.3, 6.2 / columns)
    height = len(chosen) * rows_a_layer * (side + 0.37) + 0.9
    grid = {"nrows": len(chosen) * rows_a_layer, "ncols": columns}
    with page(height, max(3.6, columns * (side + 0.1) + 1.1), **grid) as (figure, axes):
        for number, layer in enumerate(chosen):
            index = stats.layers.index(layer)
            panels = axes[number * rows_a_layer : (number + 1) * rows_a_layer].flat
            for head, ax in enumerate(panels):
                if head >= num_heads:
                    ax.axis("off")
                    continue
                draw_flow(ax, stats.mean[index, head].numpy(), stats.sides)
                share, nats = (float(values[index, head]) for values in (stats.intra_per_head, stats.head_entropy))
                told = f"head {head}: {share:.0%}\n{nats:.2f} nats"
                ax.set_title(told, fontsize=7, fontweight="normal", loc="center")
            axes[number * rows_a_layer, 0].set_ylabel(f"layer {layer}")
        shown = axes[0, 0].collections[0]
        figure.colorbar(shown, ax=axes, label="attention mass (%)", shrink=min(1, 3 / height), aspect=15)
        first, last = (names(stats.sides)[i] for i in (0, -1))
        figure.supxlabel(f"keys of scale, {first} (left) to {last}", fontsize="small")
        figure.supylabel(f"queries of scale, {first} (top) to {last}", fontsize="small")
        figure.suptitle("Every head: between scales,\nits share inside the own scale, its entropy", fontsize="medium")
    return figure


def _spread(items: Sequence[int], limit: int) -> list[int]:
    chosen = np.unique(np.linspace(0, len(items) - 1, min(limit, len(items))).round().astype(int))
    return [items[i] for i in chosen]


def layers_figure(stats: AttentionStats) -> Any:
    """Layer by layer: mass inside the own scale, and entropy; with 95 % intervals of the mean over images."""
    schedule = ScaleSchedule(stats.sides)
    shares = (stats.intra, stats.intra_per_head, stats.intra_sd, uniform_share(schedule))
    entropies = (stats.layer_entropy, stats.head_entropy, stats.layer_entropy_sd, uniform_entropy(schedule))
    panels = (("mass inside the own scale (%)", *shares), ("entropy (nats)", *entropies))
    colour = mixer_look("global")["color"]
    with page(3.0, ncols=2) as (figure, axes):
        for ax, (label, means, heads, sd, uniform) in zip(axes[0], panels, strict=True):
            factor = 100 if "%" in label else 1
            for head in heads.T:
                ax.plot(stats.layers, factor * head, "o", color=colour, alpha=0.35, markersize=3)
            half = factor * stats.half_width(sd).nan_to_num(0)
            ax.errorbar(
                stats.layers, factor * means, yerr=half, color=colour, marker="o", capsize=2,
                label="mean over heads (dots), 95 % interval",
            )  # fmt: skip
            ax.axhline(factor * uniform, color="0.4", linestyle="--", linewidth=1, label="uniform attention")
            ax.set(xlabel="layer (0: at the input)", ylabel=label)
            ax.set_ylim(0, 100 if factor == 100 else 1.1 * uniform)
            ax.set_xticks(stats.layers[:: max(1, len(stats.layers) // 8)])
            ax.legend(fontsize="small", loc="lower left")
            despine(ax)
        figure.suptitle(f"Attention by layer, {stats.num_images:,} images", fontsize="medium")
    return figure
