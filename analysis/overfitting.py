"""Overfitting: the likelihood of training images against that of held-out ones, over the steps of a training.

python analysis/overfitting.py --results results
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mvar import DONE, Column, UserError, columns
from mvar import analysis as kit

SETS = {"train": ("training", "--"), "heldout": ("held-out", "-")}  # as logged -> in words, line
COLUMNS = (
    columns.name("model"),
    Column("train", "training NLL (bits/token), at the end", columns.MEASURED, 3),
    Column("heldout", "held-out NLL, at the end", columns.MEASURED, 3),
    Column("gap", "held-out minus training", columns.MEASURED, 3),
    Column("verdict", "held-out images are predicted", is_text=True),
    Column("lowest", "lowest held-out NLL", columns.MEASURED, 3),
    Column("at", "at step", "", 0),
    columns.SEEDS,
)
Curves = dict[str, dict[str, pd.DataFrame]]  # training -> set -> steps (index) by seeds (columns)


def draw(page: kit.Writer, manifest: kit.Manifest, table: kit.Table) -> None:
    """A table and a figure for each request of an experiment that names it; nothing of runs that logged none."""
    found = curves(page.records, manifest, page.problems)
    if found:
        page.table(overfitting_table(found, page.records, manifest))
        page.figure("overfitting", overfitting_figure, found, page.records, manifest, page.figures)


def curves(records: kit.Records, manifest: kit.Manifest, problems: list[str]) -> Curves:
    """What finished runs logged of both sets, by training; those without are left out."""
    trained = set(records.table.loc[records.table["state"] == DONE, "run_id"])
    found: Curves = {}
    for label, run_ids in manifest.trainings.items():
        logged = {split: _of_seeds(records, run_ids, trained, split, problems) for split in SETS}
        if all(not table.empty for table in logged.values()):
            found[label] = logged
    return found


def _of_seeds(
    records: kit.Records, run_ids: Sequence[str], trained: set[str], split: str, problems: list[str]
) -> pd.DataFrame:
    key, by_seed = f"{split}/nll_bits_per_token", {}
    for run_id in run_ids:
        if run_id in trained:
            curve = kit.training_curve(records.store.run(run_id), key, problems, records.cache)
            if not curve.empty:
                by_seed[records.configs[run_id].seed] = curve.set_index("step")["value"]
    return pd.DataFrame(by_seed).sort_index()


def overfitting_table(found: Curves, records: kit.Records, manifest: kit.Manifest) -> kit.Table:
    """Both likelihoods at the end of training, what lies between them, and where the held-out one was lowest."""
    rows, run_ids, pairs, of = [], [], {}, manifest.trainings
    for label, sets in found.items():
        train, heldout = (kit.Measured.of(sets[split].iloc[-1]) for split in SETS)
        gap = kit.Measured.of(sets["heldout"].iloc[-1] - sets["train"].iloc[-1])
        means = sets["heldout"].mean(axis=1)
        at: Any = means.idxmin()
        row = {"label": label, "train": train, "heldout": heldout, "gap": gap, "n": sets["heldout"].shape[1]}
        rows.append(row | {"lowest": kit.Measured.of(sets["heldout"].loc[at]), "at": int(at)})
        run_ids.append(sorted(of[label]))
        if train and heldout:
            pairs[label] = heldout, train
    verdicts = kit.judge(pairs)
    for row in rows:
        row["verdict"] = verdicts[row["label"]].told if row["label"] in verdicts else None
    title = f"Overfitting: {manifest.title}"
    name = f"overfitting-{manifest.tag}"
    return kit.Table(name, title, COLUMNS, rows, run_ids, reading=_reading(found, records, manifest))


def _reading(found: Curves, records: kit.Records, manifest: kit.Manifest) -> list[str]:
    counts = {
        records.configs[i].runtime.likelihood_images for c in manifest.cells for i in c.run_ids if i in records.configs
    }
    images = ", ".join(f"{count:,}" for count in sorted(counts))
    risen = [label for label, sets in found.items() if sets["heldout"].mean(axis=1).idxmin() != _last(sets)]
    lines = [
        f"NLL of at most {images} training and as many held-out images, the same ones at every step and in every run, "
        "in evaluation mode: the final held-out NLL of all held-out images stands in the table above. Worse: held-out "
        "images cost more bits than training images, by t-tests paired by seed, p corrected by Holm's method."
    ]
    if risen:
        told = ", ".join(kit.prose(label) for label in risen)
        lines.append(
            f"The mean held-out NLL was lowest before the end of training for {told}, as far as the steps that were "
            "logged show it: learning training images at the cost of unseen ones looks like this. The step is picked "
            "by these same numbers, so that a small rise after it may be chance: no verdict is given on it."
        )
    else:
        lines.append("The mean held-out NLL of every row is lowest at the end of training.")
    return lines


def _last(sets: Mapping[str, pd.DataFrame]) -> int:
    return int(sets["heldout"].index[-1])


def overfitting_figure(found: Curves, records: kit.Records, manifest: kit.Manifest, directory: Path) -> kit.Figure:
    """Both likelihoods over steps, one colour a mixer.

    Raises:
        UserError: no run logged them.
    """
    name = f"overfitting-{manifest.tag}"
    if not found:
        raise UserError(f"figure {name}: no likelihood over steps to draw")
    of = manifest.trainings
    has_bands = any(sets[split].std(axis=1, ddof=1).notna().any() for sets in found.values() for split in SETS)
    with kit.canvas(directory, name, 3.0) as (figure, axes):
        ax = axes[0, 0]
        for label, sets in found.items():
            run_id = next(run_id for run_id in of[label] if run_id in records.configs)
            look = kit.mixer_look(records.configs[run_id].model.pattern)
            for split, (words, line) in SETS.items():
                mean, spread = sets[split].mean(axis=1), sets[split].std(axis=1, ddof=1)
                named = {"label": kit.figure_text(label)} if split == "heldout" else {"label": "_" + words}
                marker = look.get("marker") if split == "heldout" else ""
                ax.plot(
                    mean.index, mean, line, color=look["color"], marker=marker, markersize=4, linewidth=1.2, **named
                )
                if spread.notna().any():
                    ax.fill_between(mean.index, mean - spread, mean + spread, color=look["color"], alpha=0.15, lw=0)
        ax.set(xlabel="training step", ylabel="NLL ↓ (bits per token)")
        ax.xaxis.get_major_locator().set_params(integer=True)
        kit.legend_below(figure, [ax], "held-out (solid), training (dashed)")
        kit.despine(ax)
    caption = (
        "Likelihood of the same held-out images (solid) and training images (dashed) over training"
        + ("; bands: standard deviation over seeds" if has_bands else "")
        + ". Where the solid line turns up while the dashed one falls, the model overfits."
    )
    return kit.Figure(name, f"Overfitting: {manifest.title}", caption)


ANALYSIS = kit.Analysis("overfitting", "Training and held-out likelihood over steps", draw, of="sweep")


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
