"""Training loss over steps, every seed faint and the mean bold.

python analysis/loss.py --results results
"""

import sys
from pathlib import Path

import pandas as pd

from mvar import DONE, UserError
from mvar import analysis as kit

SMOOTHING = 30  # of a loss curve: the window is that fraction of the training


def draw(page: kit.Writer, manifest: kit.Manifest, table: kit.Table) -> None:
    """One figure for each request of an experiment that names it."""
    page.figure("loss", loss_figure, page.records, manifest, page.figures, page.problems)


def loss_figure(records: kit.Records, manifest: kit.Manifest, directory: Path, problems: list[str]) -> kit.Figure:
    """Training loss over steps, one line a training, one colour a mixer."""
    name = f"loss-{manifest.tag}"
    trained = set(records.table.loc[records.table["state"] == DONE, "run_id"])
    most = 0  # seeds of a line
    with kit.canvas(directory, name, 2.7, width=kit.COLUMN) as (_, axes):
        ax = axes[0, 0]
        for label, asked in manifest.trainings.items():
            run_ids = [run_id for run_id in asked if run_id in trained]
            curves = [
                kit.training_curve(records.store.run(run_id), "train/loss", problems, records.cache)
                for run_id in run_ids
            ]
            curves = [curve for curve in curves if not curve.empty]
            if not curves:
                continue
            colour = kit.mixer_look(records.configs[run_ids[0]].model.pattern)["color"]
            for curve in curves:
                ax.plot(curve["step"], curve["value"], color=colour, alpha=0.2, linewidth=0.6)
            mean = pd.Series(pd.concat(curves).groupby("step")["value"].mean())
            smooth = pd.Series(mean.rolling(max(1, len(mean) // SMOOTHING), min_periods=1, center=True).mean())
            ax.plot(smooth.index, smooth, color=colour, linewidth=1.5, label=kit.figure_text(label))
            most = max(most, len(curves))
        if not most:
            raise UserError(f"figure {name}: no training loss to draw")
        ax.set(xlabel="training step", ylabel="training loss (nats per token)")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(fontsize="small")
        kit.despine(ax)
    what = "mean over seeds" if most > 1 else "the same, one seed a line"
    caption = f"Faint: every seed as logged; bold: {what}, smoothed over 1/{SMOOTHING} of the training."
    return kit.Figure(name, f"Training loss: {manifest.title}", caption)


ANALYSIS = kit.Analysis("loss", "Training loss over steps", draw, of="sweep")


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
