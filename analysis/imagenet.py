"""Tables 2, 3 and 4 (ImageNet) and Figure 2: every row that the paper prints, and ours where runs of that model exist.

A run fills a printed row when it is the published model on 1000 classes at that resolution, trained by the published
recipe (`mvar.presets`); another training of the model, and published weights, get rows of their own below it.
Parameters and relative time of VAR and M-VAR are also counted from the config alone, for which no run is needed.

    python analysis/imagenet.py --results results
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mvar import (
    PRESETS,
    Column,
    ModelConfig,
    RunConfig,
    UserError,
    columns,
    digest,
    imagenet,
    model_size,
    num_params,
    override,
    paper_rows,
    sample_flops,
)
from mvar import analysis as kit

PATTERNS = {"VAR": "global", "M-VAR": "intra+mamba"}
CLASSES = 1000
UNPRINTED = {(256, 32), (256, 36)}  # resolutions and depths whose presets are ours: no recipe is printed
RECIPE, PUBLISHED = "published recipe", "published weights"
PREPARED = ("resize_factor", "pad_px", "hflip")  # of images; where they lie does not matter
SIZE = ("depth", "width", "num_heads", "pattern", "mlp_ratio", "shared_adaln")  # what makes a model the published one


@dataclass(frozen=True)
class Ours:
    """One model as we have it: the paper's name, how its weights came about, what its training hangs on, candidates."""

    model: str
    training: str  # RECIPE, PUBLISHED or so many steps
    identity: str
    candidates: int
    tokens: str  # `train.tokens`

    def label(self, which: "Artefact") -> str:
        """Of a row of its own."""
        best = f", best of {self.candidates}" if which.rejection else ""
        cached = " on cached crops" if self.training == RECIPE and self.tokens == "cache" else ""
        return f"{self.model}, {self.training}{cached}{best}"


@dataclass(frozen=True)
class Artefact:
    """One of the paper's tables; time in it is relative to the row `reference`."""

    name: str
    artefact: str
    csv: str
    title: str
    resolution: int
    reference: str
    rejection: bool = False

    @property
    def paper(self) -> str:
        """The group of the printed columns."""
        return f"paper (ImageNet {self.resolution})"

    @property
    def command(self) -> str:
        """The command that makes a row, the preset's depth to be filled in."""
        sweep = "rejection" if self.rejection else "mixers"
        return f"mvar run {sweep} --preset imagenet{self.resolution}-d{{depth}}-online"


ARTEFACTS = (
    Artefact("table2", "Table 2", "table2_imagenet256", "class-conditional ImageNet 256 × 256", 256, "M-VAR-d32"),
    Artefact(
        "table3",
        "Table 3",
        "table3_rejection_sampling",
        "ImageNet 256 × 256, rejection sampling",
        256,
        "M-VAR-d32",
        True,
    ),
    Artefact("table4", "Table 4", "table4_imagenet512", "class-conditional ImageNet 512 × 512", 512, "M-VAR-d24"),
)


def imagenet_table(records: kit.Records, which: Artefact) -> tuple[kit.Table, str | None]:
    """The table, and why measured values are left out of it where they must not be compared (else None)."""
    printed = paper_rows(which.csv)
    found, refused = _measured(records, which), None
    try:
        if found:
            kit.check_comparable(pd.concat(found.values()), ("sample.candidates",) if which.rejection else ())
    except UserError as error:
        refused, found = str(error), {}
    rows = [_printed_row(row, which) for row in printed]
    run_ids: list[list[str]] = [[] for _ in rows]
    for ours, measured in found.items():
        number = next((i for i, row in enumerate(rows) if row["label"] == ours.model), None)
        if number is None or run_ids[number] or ours.training != RECIPE:
            number = _below(rows, ours.model)
            rows.insert(number, _analytic(ours.label(which), which, ours.model))
            run_ids.insert(number, [])
        rows[number] |= _values(measured)
        run_ids[number] = sorted(set(measured["run_id"]))
    _add_relative_time(rows, run_ids, found, which)
    shown = _columns(which, printed)
    table = kit.Table(
        which.name,
        f"{which.artefact}: {which.title}",
        shown,
        rows,
        run_ids,
        kit.contradictions(which.artefact, rows),
        _reading(found, which, refused) + _reproduced(found, printed, which),
        _missing(rows, run_ids, which),
    )
    return table, refused


def _below(rows: Sequence[dict[str, Any]], model: str) -> int:
    """Where a further row of a model goes: under those that are there, else at the end."""
    numbers = [i for i, row in enumerate(rows) if row["label"] == model or str(row["label"]).startswith(f"{model},")]
    return max(numbers, default=len(rows) - 1) + 1


def _columns(which: Artefact, printed: Sequence[dict[str, Any]]) -> tuple[Column, ...]:
    names = {name for row in printed for name in row}
    first = [Column("family", "family", is_text=True)] if "family" in names else []
    first.append(Column("label", "model", is_text=True))
    if which.rejection:
        first.append(Column("acceptance_rate", "acceptance rate (%)", "", 1, 100))
    pairs = (
        ("fid", "FID ↓", Column("fid", "FID ↓", columns.MEASURED)),
        ("is", "IS ↑", Column("is", "IS ↑", columns.MEASURED, 1)),
        ("precision", "precision ↑", Column("precision", "precision ↑", columns.MEASURED)),
        ("recall", "recall ↑", Column("recall", "recall ↑", columns.MEASURED)),
        ("params", "parameters", Column("num_params", "parameters", columns.ANALYTIC, None)),
        ("steps", "steps", None),
        ("relative_time", "relative time", Column("time", "relative time", columns.MEASURED)),
    )
    for name, heading, ours in pairs:
        if name in names:
            first += [Column(f"paper_{name}", heading, which.paper), *([ours] if ours else [])]
    if "relative_time" in names:
        first.append(Column("time_analytic", "relative time", columns.ANALYTIC))
    return (*first, Column("n", "seeds", "", 0))


def _printed_row(row: dict[str, Any], which: Artefact) -> dict[str, Any]:
    numbers = {f"paper_{key}": value for key, value in row.items() if key not in ("family", "model")}
    for key in ("paper_is", "paper_relative_time"):  # as printed, whose decimals vary
        if key in numbers:
            numbers[key] = str(numbers[key])
    return {"family": row.get("family"), **_analytic(row["model"], which, row["model"]), **numbers}


def _analytic(label: str, which: Artefact, name: str) -> dict[str, Any]:
    model = published_model(name, which.resolution)
    if model is None:
        return {"label": label}
    space = imagenet(16, which.resolution).token_space
    reference = published_model(which.reference, which.resolution)
    assert reference is not None
    flops = [sample_flops(m, space, guided=True) for m in (model, reference)]
    return {"label": label, "num_params": num_params(model, space), "time_analytic": flops[0] / flops[1]}


def published_model(name: str, resolution: int) -> ModelConfig | None:
    """VAR-dN or M-VAR-dN as published; None for the other families."""
    match = re.fullmatch(r"(M-VAR|VAR)-d(\d+)", name)
    if not match:
        return None
    pattern, depth = PATTERNS[match[1]], int(match[2])
    preset = PRESETS.get(f"imagenet{resolution}-d{depth}")
    return override(preset, {"model.pattern": pattern}).model if preset else model_size(depth, pattern=pattern)


def _measured(records: kit.Records, which: Artefact) -> dict[Ours, pd.DataFrame]:
    """Finished evaluations of the table's models, seeds together."""
    groups: dict[Ours, list[int]] = {}
    done = records.done
    rates: Any = done.get("acceptance_rate", ())
    for number, run_id, rate in zip(done.index, done["run_id"], rates, strict=False):
        config = records.configs[run_id]
        candidates = round(1 / rate)
        name = _name(config, which.resolution)
        if name and (candidates > 1) == which.rejection:
            identity = digest(config.identity() | {"seed": None})
            ours = Ours(name, _training(config, which), identity, candidates, config.train.tokens)
            groups.setdefault(ours, []).append(number)

    def order(ours: Ours) -> tuple[Any, ...]:
        return ours.model, ours.training != RECIPE, ours.candidates, ours.tokens != "online", ours.identity

    ordered = sorted(groups, key=order)
    return {ours: done.loc[groups[ours]] for ours in ordered}


def _name(config: RunConfig, resolution: int) -> str | None:
    """The paper's name of a run's model, None for any other data or model."""
    data, model = config.data, config.model
    if (data.num_classes, data.image_size, data.channels) != (CLASSES, resolution, 3):
        return None
    names = [name for name, pattern in PATTERNS.items() if pattern == model.pattern]
    name = f"{names[0]}-d{model.depth}" if names else None
    wanted = published_model(name, resolution) if name else None
    return name if wanted and all(getattr(wanted, key) == getattr(model, key) for key in SIZE) else None


def _training(config: RunConfig, which: Artefact) -> str:
    if not config.train.steps:
        return PUBLISHED
    preset = PRESETS.get(f"imagenet{which.resolution}-d{config.model.depth}")
    if (which.resolution, config.model.depth) in UNPRINTED:
        return f"{config.train.steps:,} steps"
    return RECIPE if preset and is_training_of(config, preset) else f"{config.train.steps:,} steps"


def is_training_of(config: RunConfig, preset: RunConfig) -> bool:
    """Whether a run is a preset's training: from whatever source the images come, on fresh or on cached crops."""
    same = {"model.pattern": config.model.pattern, "seed": config.seed, "train.tokens": config.train.tokens}
    recipe = override(preset, same).model_copy(update={"data": config.data})
    is_prepared = all(getattr(config.data, name) == getattr(preset.data, name) for name in PREPARED)
    return is_prepared and recipe.identity() == config.identity()


def _values(measured: pd.DataFrame) -> dict[str, Any]:
    values = {name: kit.aggregate(measured, kit.KEYS[name]) for name in ("fid", "is", "precision", "recall")}
    rate = float(measured["acceptance_rate"].iloc[0])
    return values | {"acceptance_rate": rate, "n": len(set(measured["seed"]))}


def _add_relative_time(
    rows: list[dict[str, Any]], run_ids: list[list[str]], found: dict[Ours, pd.DataFrame], which: Artefact
) -> None:
    reference = next((measured for ours, measured in found.items() if ours.model == which.reference), None)
    if reference is None:
        return
    by_runs = {tuple(sorted(set(measured["run_id"]))): measured for measured in found.values()}
    for row, ids in zip(rows, run_ids, strict=True):
        if ids:
            row["time"] = kit.ratio(by_runs[tuple(ids)], reference, "sample_s")


def _reading(found: dict[Ours, pd.DataFrame], which: Artefact, refused: str | None) -> list[str]:
    lines = [
        "Printed rows are the paper's; ours stand in columns of their own where runs on 1000 classes at "
        f"{which.resolution} px exist. Parameters and relative time marked analytic are counted from the published "
        f"sizes (FLOPs of sampling an image, relative to {which.reference}); no run is needed for them."
    ]
    if which.rejection:
        lines.append("The paper states no acceptance rate; ours is images kept over images drawn.")
    if refused:
        lines.append(f"**Not compared.** {kit.prose(refused)}")
    elif not found:
        lines.append("No run of ours is there: every measured cell is a dash.")
    else:
        told = kit.images_line(pd.concat(found.values()), beside_paper=True)
        lines.append(f"{told} FID of fewer images, or against fewer, is biased upwards.")
    return lines


def _reproduced(found: dict[Ours, pd.DataFrame], printed: Sequence[dict[str, Any]], which: Artefact) -> list[str]:
    """A sentence a measured row whose model is printed: how far off it is, and which setting differs."""
    lines = []
    for ours, rows in found.items():
        row = next((row for row in printed if row["model"] == ours.model), None)
        if row and ours.training in (RECIPE, PUBLISHED):
            line = kit.beside_printed(which.artefact, ours.model, row, _values(rows), kit.shared_settings(rows))
            lines.append(f"{line} Weights: {ours.training}.")
    return lines


def _missing(rows: list[dict[str, Any]], run_ids: list[list[str]], which: Artefact) -> list[str]:
    wanted: dict[int, list[str]] = {}
    for row, ids in zip(rows, run_ids, strict=True):
        match = re.fullmatch(r"(?:M-VAR|VAR)-d(\d+)", str(row["label"]))
        if match and not ids:
            wanted.setdefault(int(match[1]), []).append(row["label"])
    lines = []
    for depth, names in wanted.items():
        if f"imagenet{which.resolution}-d{depth}-online" in PRESETS:
            unsaid = " No recipe is printed for it." if (which.resolution, depth) in UNPRINTED else ""
            lines.append(f"Missing here: {', '.join(names)}.{unsaid} Command: `{which.command.format(depth=depth)}`")
        else:
            lines.append(f"Missing here: {', '.join(names)}. No recipe is published for depth {depth}.")
    if wanted:
        preset = next(name for name in PRESETS if name.startswith(f"imagenet{which.resolution}"))
        best = " --set sample.candidates=4" if which.rejection else ""
        command = f"mvar evaluate --checkpoint MODEL.pth --tokenizer VAE.pth --preset {preset}{best}"
        lines.append(f"Published weights get a row without training: `{command}`")
    return lines


MODELS = {"VAR": "global", "M-VAR": "intra+mamba"}  # a row's model -> whose colour it has
UNITS = {"M": 1e6, "B": 1e9}


def figure2(table: kit.Table, directory: Path) -> kit.Figure:
    """Figure 2: FID of Table 2's rows against parameters and against relative time; measured points filled.

    Printed points are hollow, at printed sizes and times; the other families are grey.
    """
    panels = (("paper_params", "num_params", "parameters"), ("paper_relative_time", "time", "relative time"))
    with kit.canvas(directory, "figure2", 3.4, ncols=2, sharey=True) as (figure, axes):
        for ax, (printed, measured, label) in zip(axes[0], panels, strict=True):
            others = [row for row in table.rows if _model(row) is None]
            _scatter(ax, others, printed, {"color": "0.7", "marker": "x", "label": "other families, paper"})
            for model, pattern in MODELS.items():
                rows = [row for row in table.rows if _model(row) == model]
                look = kit.mixer_look(pattern)
                hollow = {
                    "marker": look["marker"],
                    "color": look["color"],
                    "markerfacecolor": "white",
                    "linestyle": ":",
                }
                _scatter(ax, rows, printed, hollow | {"label": f"{model}, paper"})
                ours = [
                    (_as_number(row.get(measured)), row["fid"])
                    for row in rows
                    if isinstance(row.get("fid"), kit.Measured)
                ]
                ours = [(x, fid) for x, fid in ours if x is not None]
                if ours:
                    filled = {**look, "label": f"{model}, measured", "linestyle": "none"}
                    kit.points(ax, [x for x, _ in ours], [fid for _, fid in ours], **filled)
            ax.set(xscale="log", xlabel=label, ylim=(1, 8))
            kit.despine(ax)
        axes[0, 0].set(ylabel="FID ↓ (ImageNet 256 × 256)")
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(5, len(names)), fontsize="small")
    there = any(isinstance(row.get("fid"), kit.Measured) for row in table.rows)
    caption = (
        "Hollow and grey: as printed in Table 2 (FID above 8 is outside). Time is relative to M-VAR-d32. "
        f"{'Filled: measured here.' if there else 'No run of ours on ImageNet is there.'}"
    )
    return kit.Figure("figure2", "Figure 2: FID against parameters and time", caption)


def _model(row: Mapping[str, Any]) -> str | None:
    match = re.match(r"(M-VAR|VAR)-d\d+", str(row["label"]))
    return match[1] if match else None


def _scatter(ax: Any, rows: Sequence[Mapping[str, Any]], key: str, look: dict[str, Any]) -> None:
    found = [(_as_number(row.get(key)), row.get("paper_fid")) for row in rows]
    found = [(x, y) for x, y in found if x is not None and isinstance(y, int | float)]
    if found:
        ax.plot(*zip(*found, strict=True), **({"linestyle": "none", "markersize": 5, "linewidth": 1} | look))


def _as_number(value: Any) -> float | None:
    """A printed size or time as a number; None for what is a bound (">32") or not there."""
    if isinstance(value, kit.Measured):
        return value.mean
    match = re.fullmatch(r"([\d.]+)([MB]?)", str(value))
    return float(match[1]) * UNITS.get(match[2], 1) if match else None


def draw(page: kit.Writer) -> None:
    """The three tables, and Figure 2 under the first."""
    for which in ARTEFACTS:
        page.section(f"{which.artefact}: {which.title}")
        table, refused = imagenet_table(page.records, which)
        if refused:
            page.problems.append(f"{which.artefact}: {refused}")
        page.table(table)
        if which.name == "table2":
            page.figure("figure2", figure2, table, page.figures)


ANALYSIS = kit.Analysis("imagenet", "Tables 2, 3 and 4 (ImageNet)", draw, place=70)


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
