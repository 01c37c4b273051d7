"""FID against parameters, training FLOPs and sampling time, over all of the paper's experiments of one preset.

python analysis/cost.py --results results
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mvar import UserError
from mvar import analysis as kit


def draw(page: kit.Writer) -> None:
    """One figure for each preset and mode that something is measured of."""
    groups: dict[str, list[kit.Manifest]] = {}
    for manifest in page.records.manifests:
        if manifest.is_known and manifest.experiment.of_paper and _is_measured(page.records, manifest):
            groups.setdefault(manifest.setting, []).append(manifest)
    if groups:
        page.section("FID against cost")
    for manifests in groups.values():
        manifests.sort(key=lambda manifest: manifest.experiment.place)
        page.figure("cost", cost_figure, page.records, manifests, page.figures)


def _is_measured(records: kit.Records, manifest: kit.Manifest) -> bool:
    try:
        return any(not rows.empty for _, rows in kit.cell_rows(records, manifest))
    except UserError:  # runs that must not be compared: its table says so
        return False


def cost_figure(records: kit.Records, manifests: Sequence[kit.Manifest], directory: Path) -> kit.Figure:
    """FID against parameters and training FLOPs, over all sweeps of one preset and mode.

    Raises:
        UserError: nothing to draw, or evaluations that must not be compared.
    """
    found = {cell.run_ids: (cell, rows) for manifest in manifests for cell, rows in kit.cell_rows(records, manifest)}
    cells = [(cell, rows) for cell, rows in found.values() if kit.aggregate(rows, "eval/fid")]
    first = manifests[0]
    name = f"fid-cost-{first.setting}"
    if not cells:
        raise UserError(f"figure {name}: no finished run to draw")
    kit.check_comparable(pd.concat([rows for _, rows in cells]))
    # At an equal training budget all training FLOPs are the same: what an image costs is the other half.
    flops = ("train_flops", "training FLOPs") if first.mode == "steps" else ("sample_flops", "FLOPs an image")
    panels = (("num_params", "parameters"), flops, ("image_ms", "sampling time, ms an image"))
    with kit.canvas(directory, name, 3.2, ncols=len(panels), sharey=True) as (figure, axes):
        drawn = [_panel(ax, cells, key, label) for ax, (key, label) in zip(axes[0], panels, strict=True)]
        axes[0, 0].set(ylabel="FID ↓")
        kit.legend_below(figure, axes[0, :1], "layers")
        kit.despine(*axes[0])
        figure.draw_without_rendering()  # where names stand free is known of a finished layout
        for ax, (names, places) in zip(axes[0], drawn, strict=True):
            kit.name_points(ax, names, places)
    caption = (
        "Every finished run of the sweeps; W and D are Table 5's narrower and shallower M-VAR, N of M the layers "
        "replaced. Parameters and FLOPs are analytic, sampling time is measured; "
        f"{kit.bars_text(kit.aggregate(rows, 'eval/fid') for _, rows in cells)}."
    )
    return kit.Figure(name, f"FID against cost: {first.title}", caption)


def _panel(
    ax: Any, cells: Sequence[tuple[Any, pd.DataFrame]], key: str, label: str
) -> tuple[dict[tuple[float, float], str], list[tuple[float, float]]]:
    """The points of one panel; returns the names of those that the legend does not name, and the places of all."""
    costs = [
        kit.aggregate(rows.assign(image_ms=1000 * rows["sample_s"] / rows["num_images"]), key) for _, rows in cells
    ]
    size, power = kit.unit(max((cost.mean for cost in costs if cost), default=1.0))
    names, places = {}, []
    for (cell, rows), cost in zip(cells, costs, strict=True):
        fid = kit.aggregate(rows, "eval/fid")
        if not fid or not cost:
            continue
        look = kit.mixer_look(rows["pattern"].iloc[0])
        xerr = None if cost.sd is None or key != "image_ms" else [cost.sd / size]
        kit.points(ax, [cost.mean / size], [fid], linestyle="none", xerr=xerr, **look)
        places.append((cost.mean / size, fid.mean))
        if look["label"] not in kit.MIXER_NAMES or cell.label.startswith("M-VAR-"):
            names[places[-1]] = kit.figure_text(cell.label.removeprefix("M-VAR-"))
    ax.set(xlabel=f"{label} (× {power})" if size != 1 else label)
    ax.margins(x=0.22, y=0.12)
    return names, places


ANALYSIS = kit.Analysis("cost", "FID against parameters, training FLOPs and sampling time", draw, place=60)


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
