"""Guidance: VAR and M-VAR, one training each, sampled with several settings.

The strength of classifier-free guidance varies by itself; then, at the request's own strength, top-p, top-k and the
running means of the weights that the training keeps (`train.ema`), one at a time.

At one value for all a comparison says as much about the value as about the models. The report compares them without
guidance, at the request's own settings, and each at its best, which is chosen on images that are not reported. For that
it needs two sampling seeds or more.

    mvar run guidance --sample-seeds 3
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mvar import Cell, Column, Experiment, RunConfig, columns, override

MODELS = {"VAR": "global", "M-VAR": "intra+mamba"}
VALUES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.5)
TOP_P = (0.8, 0.9, 1.0)
TOP_K = (16, 4)  # so many times fewer codes than there are
SETTINGS = ("cfg_scale", "top_p", "top_k", "ema")  # of the sampling, which rows may differ in
COLUMNS = (
    columns.name("model, setting"),
    Column("cfg_scale", "cfg", "", 2),
    Column("top_p", "top-p", "", 2),
    Column("top_k", "top-k", "", 0),
    Column("ema", "EMA half-life (images)", "", 0),
    columns.FID,
    columns.IS,
    columns.COPIES,
    *columns.KID,
    *columns.PRECISION_RECALL,
    columns.SAMPLE_FLOPS,
    columns.SAMPLE_S,
    columns.SEEDS,
)


def settings(config: RunConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a row is called and how it is sampled; the request's own settings are among them."""
    for value in sorted({*VALUES, config.sample.cfg_scale}):
        yield f"cfg {value:g}", {"cfg_scale": value}
    yield from ((f"top-p {value:g}", {"top_p": value}) for value in TOP_P if value != (config.sample.top_p or 1))
    counts = (max(1, config.tokenizer.vocab_size // part) for part in TOP_K)
    yield from ((f"top-k {value}", {"top_k": value}) for value in counts if value != config.sample.top_k)
    yield from ((f"EMA {value}", {"ema": value}) for value in (0, *config.train.ema) if value != config.sample.ema)


def cells(config: RunConfig) -> list[Cell]:
    """Each model with every setting."""
    found = []
    for model, pattern in MODELS.items():
        for name, varied in settings(config):
            sampled = override(config, {"model.pattern": pattern, **{f"sample.{k}": v for k, v in varied.items()}})
            axes = {key: getattr(sampled.sample, key) for key in SETTINGS}
            asked = {"model": model, "pattern": pattern, "asked": config.sample.cfg_scale}
            found.append(Cell(f"{model}, {name}", sampled, {**asked, **axes}))
    return found


def against(cell: Any, cells: Sequence[Any]) -> Any:
    """What a row is compared with: the same model without guidance; one with another top-p, top-k or EMA with the same
    model as asked, from which it differs in that alone."""
    same = [other for other in cells if other.axes["model"] == cell.axes["model"]]
    unguided = next(other for other in same if not other.axes["cfg_scale"])
    usual = [other for other in same if all(other.axes[key] == unguided.axes[key] for key in SETTINGS[1:])]
    if cell in usual:
        return unguided
    return next((other for other in usual if other.axes["cfg_scale"] == cell.axes.get("asked")), unguided)


EXPERIMENT = Experiment(
    "guidance",
    "Guidance",
    "VAR and M-VAR with several strengths of guidance, top-p, top-k, running means of the weights",
    cells,
    against=against,
    compares="nothing",
    varied=[f"sample.{name}" for name in SETTINGS],
    figures=("guidance",),
    columns=COLUMNS,
    chooses=True,
    place=45,
)
