"""Guidance: the best is chosen on images that are not reported, and models are compared three times."""

from types import SimpleNamespace

import pandas as pd
import pytest

from mvar import shipped
from mvar.analysis.style import mixer_look
from mvar.analysis.verdicts import BETTER
from mvar.presets import PRESETS
from mvar.runs.experiment import find_experiment

SCRIPT = shipped.load(shipped.find("analysis", "guidance"))
MANIFEST = SimpleNamespace(name="guidance-x", title="x")


def rows(fid, sets=3, seeds=4):
    """Evaluations of one cell; on sampling seed 0 FID is `fid[0]`, on the others `fid[1]`."""
    flat = [(s, k, fid[min(k, 1)] + 0.001 * s) for s in range(seeds) for k in range(sets)]
    table = pd.DataFrame(flat, columns=["seed", "sample_seed", "eval/fid"])
    return table.assign(run_id=[f"r{s}" for s, _, _ in flat], pattern="global", settings="{}")


FOUND = {
    "VAR": {0.0: rows((2.0, 2.0)), 0.5: rows((1.0, 3.0)), 1.5: rows((1.5, 1.5))},
    "M-VAR": {0.0: rows((1.0, 1.0)), 0.5: rows((0.5, 0.6)), 1.5: rows((1.2, 1.2))},
}


def test_the_best_is_chosen_on_images_that_are_not_reported():
    """VAR's best on sampling seed 0 is 0.5, by chance: on the other seeds it is the worst, and that is what is said."""
    table = SCRIPT.comparison(FOUND, 1.5, MANIFEST)
    none, one, best = table.rows
    assert [row["label"] for row in table.rows] == ["no guidance", "all at cfg 1.5", "each at its best"]
    assert (best["VAR cfg"], best["M-VAR cfg"]) == (0.5, 0.5)
    assert best["VAR fid"].mean == pytest.approx(3.0015) and best["M-VAR fid"].mean == pytest.approx(0.6015)
    assert (none["VAR fid"].mean, one["M-VAR fid"].mean) == pytest.approx((2.0015, 1.2015))
    assert all(row["verdict"].startswith(BETTER) for row in table.rows)
    assert "on sampling seed 0, whose numbers are in no cell here" in table.reading[0]


def test_with_one_sampling_seed_nothing_is_chosen():
    found = {model: {cfg: table[table["sample_seed"] == 0] for cfg, table in v.items()} for model, v in FOUND.items()}
    *_, best = (table := SCRIPT.comparison(found, 1.5, MANIFEST)).rows
    assert set(best) == {"label", "verdict"} and best["verdict"] is None
    assert "--sample-seeds 2" in table.reading[0]


def test_cells_are_two_trainings_at_every_value():
    config = PRESETS["smoke"]
    cells = find_experiment("guidance").cells(config)
    assert len({cell.config.run_id for cell in cells}) == 2 and len(cells) == 12
    assert {cell.config.sample.cfg_scale for cell in cells} == {0.0, 0.25, 0.5, 1.0, 1.5, 2.5}
    against = find_experiment("guidance").against
    assert {against(cell, cells).label for cell in cells} == {"VAR, cfg 0", "M-VAR, cfg 0"}


def test_mixers_of_ones_own_have_a_look_of_their_own():
    looks = {pattern: mixer_look(pattern) for pattern in ("recent:2", "recent:3", "mamba", "2*global 2*mamba")}
    assert looks["recent:2"]["label"] == "recent:2" and looks["2*global 2*mamba"]["label"] == "mixed"
    shown = [(look["color"], look["marker"]) for look in looks.values()]
    assert len(set(shown)) == len(shown) and mixer_look("recent:2") == looks["recent:2"]
