"""Between scales: which models are asked for, of which size, and what the report says of each at its own guidance."""

import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest
from tiny_runs import arguments

from mvar import inter_scale_mixers, num_params, override, shipped
from mvar.analysis.contract import find_analysis
from mvar.analysis.family import baseline_of
from mvar.analysis.report import main as report
from mvar.analysis.verdicts import BETTER
from mvar.cli import main
from mvar.presets import PRESETS
from mvar.runs.experiment import find_experiment

SCRIPT = shipped.load(shipped.find("analysis", "inter_scale"))
EXPERIMENT = find_experiment("inter_scale")
CELLS = EXPERIMENT.cells(PRESETS["digits"])
MANIFEST = SimpleNamespace(name="inter_scale-x", title="x", tag="x", cells=CELLS, experiment=EXPERIMENT)
PATTERNS = ["global", "intra", *(f"intra+{name}" for name in inter_scale_mixers())]


def test_every_mixer_that_carries_scales_is_asked_for_at_two_sizes():
    assert {"global", "mamba", "markov", "gla", "gdn", "conv"} <= set(inter_scale_mixers())
    assert "intra" not in inter_scale_mixers()
    by_size = {size: [c for c in CELLS if c.axes["size"] == size] for size in {c.axes["size"] for c in CELLS}}
    assert [c.axes["pattern"] for c in by_size["the preset's width"]] == PATTERNS
    others = [pattern for pattern in PATTERNS if pattern != "intra+mamba"]
    assert [c.axes["pattern"] for c in by_size["M-VAR's parameters"]] == others
    assert [c.axes["pattern"] for c in by_size["VAR's parameters"]] == ["intra+mamba"]


def test_sizes_are_as_near_as_two_channels_a_head_let_them_be():
    sizes = {cell.label: num_params(cell.config.model, cell.config.token_space) for cell in CELLS}
    module = shipped.load(shipped.find("experiments", "inter_scale"))
    for cell in CELLS:
        if cell.axes["size"] == "the preset's width":
            continue
        target = sizes[("intra+mamba" if cell.axes["size"].startswith("M-VAR") else "global") + ", the preset's width"]
        step = 2 * cell.config.model.num_heads
        assert cell.config.model.num_heads == PRESETS["digits"].model.num_heads
        for width in (cell.config.model.width - step, cell.config.model.width + step):
            other = num_params(module.of_width(cell.config, width).model, cell.config.token_space)
            assert abs(sizes[cell.label] - target) <= abs(other - target), cell.label


def rows(fids, seeds=3):
    """Evaluations at one guidance: FID on sampling seed 0 and on seed 1, and as much likelihood."""
    flat = [(s, k, fids[k] + 0.001 * s) for s in range(seeds) for k in (0, 1)]
    table = pd.DataFrame(flat, columns=["seed", "sample_seed", "eval/fid"])
    table["eval/nll_bits_per_token"] = table["eval/fid"]
    return table.assign(run_id=[f"r{s}" for s, _, _ in flat], num_params=1)


def models(*more, **fids):
    """Of the first five rows, and more; each compared with the row that the report compares it with."""
    made = []
    for cell in (*CELLS[:5], *more):
        by_cfg = {cfg: rows(pair) for cfg, pair in fids[cell.axes["pattern"].rpartition("+")[2]].items()}
        base = baseline_of(MANIFEST, cell)
        made.append(SCRIPT.Model(cell.label, base and base.label, cell.axes, cell.config, by_cfg, 1.5))
    return made


FIDS = {
    "intra": {0.0: (3, 3), 1.5: (2, 2)},
    "global": {0.0: (2, 2), 1.5: (1, 3)},
    "mamba": {0.0: (1, 1), 1.5: (2, 2)},
    "markov": {0.0: (4, 4), 1.5: (0.5, 0.5)},
}


def test_each_is_compared_at_its_own_guidance_on_other_images():
    table = SCRIPT.comparison(models(**FIDS), MANIFEST, at_one_width=True)
    found = {row["label"].split(",")[0]: row for row in table.rows}
    assert {p: row["own_cfg"] for p, row in found.items()} == {
        "global": 1.5, "intra": 1.5, "intra+global": 1.5, "intra+mamba": 0.0, "intra+markov": 1.5,
    }  # fmt: skip
    assert found["global"]["own_fid"].mean == pytest.approx(3.001)  # on the images that did not choose it
    assert EXPERIMENT.chooses  # nor are they in the table of settings (tests/analysis/test_guidance.py)
    assert found["intra+markov"]["own_fid_verdict"].startswith(BETTER)
    assert "own_fid_verdict" not in found["intra+mamba"] and found["intra+mamba"]["fid"].mean == pytest.approx(2.001)
    shown = {column.key for column in table.columns}
    for name in ("nll", "fid", "own_fid"):  # each with its verdict and the seeds that it needs
        assert {name, f"{name}_verdict", f"{name}_needed"} <= shown and found["intra"][f"{name}_verdict"]
    assert "on sampling seed 0, of the 2 values that all with several have (0, 1.5)" in table.reading[1]


def test_at_one_size_the_shrunk_mvar_is_compared_with_var():
    sized = [cell for cell in CELLS if not cell.axes["of_preset"] and cell.axes["pattern"] in ("intra", "intra+mamba")]
    table = SCRIPT.comparison(models(*sized, **FIDS), MANIFEST, at_one_width=False)
    found = {row["label"]: row for row in table.rows}
    var, mvar = "global, the preset's width", "intra+mamba, the preset's width"
    wide, shrunk = (cell.label for cell in sized)
    assert {label: row["against"] for label, row in found.items()} == {var: None, mvar: None, wide: mvar, shrunk: var}
    assert found[shrunk]["own_fid_verdict"].startswith(BETTER) and "own_fid_verdict" not in found[var]


def test_an_interval_of_all_rows_stands_beside():
    made = models(**FIDS)
    lines = SCRIPT.comparison(made, MANIFEST, at_one_width=True).reading
    told = [line for line in lines if "If all rows scattered equally" in line]
    assert all(f"a difference of {name} would" in line for name, line in zip(SCRIPT.SCORES.values(), told, strict=True))
    assert all("(pooled over all rows, " in line and "3 seeds)" in line for line in told)
    assert not any("pooled" in line for line in SCRIPT.comparison(made[3:4], MANIFEST, at_one_width=True).reading)


def test_a_value_that_not_all_have_is_chosen_by_none():
    more = {**FIDS, "mamba": {**FIDS["mamba"], 0.5: (0.1, 0.1)}, "markov": {1.5: (1, 1)}}
    table = SCRIPT.comparison(models(**more), MANIFEST, at_one_width=True)
    found = {row["label"].split(",")[0]: row["own_cfg"] for row in table.rows}
    assert found["intra+mamba"] == 0.0 and found["intra+markov"] is None and found["intra"] == 1.5


def test_one_model_with_several_values_alone_chooses_none():
    alone = {name: FIDS[name] if name == "mamba" else {1.5: FIDS[name][1.5]} for name in FIDS}
    table = SCRIPT.comparison(models(**alone), MANIFEST, at_one_width=True)
    assert all(row["own_cfg"] is None for row in table.rows)


def test_likelihood_hangs_on_no_sampling_seed():
    (made, *_) = models(**FIDS)
    first = {cfg: found[found["sample_seed"] == 0] for cfg, found in made.by_cfg.items()}
    one = dataclasses.replace(made, by_cfg=first)
    assert one.measured(SCRIPT.FID, 1.5, [1]) is None and one.measured(SCRIPT.NLL, 1.5, [1]).n == 3


def test_without_a_second_guidance_nothing_is_chosen():
    table = SCRIPT.comparison(models(**{name: {1.5: cfgs[1.5]} for name, cfgs in FIDS.items()}), MANIFEST, True)
    assert all(row["own_cfg"] is None and row["own_fid"] is None for row in table.rows)
    assert "two values or more" in table.reading[1]


@pytest.mark.slow
def test_it_runs_at_the_smallest_size_and_is_reported(tmp_path):
    """Three rows of it trained, sampled at two values of guidance, and the table and figure of the report."""
    rows = [f"{pattern}, the preset's width" for pattern in ("intra+mamba", "intra+gla", "intra+global")]
    asked = arguments(tmp_path / "results", "--sample-seeds", "2", *(w for row in rows for w in ("--only", row)))
    asked[asked.index("mixers")] = "inter_scale"
    for settings in ([], ["sample.cfg_scale=0"]):
        assert main([*asked, *settings]) == 0
    script = find_analysis("inter_scale")
    assert report(script, ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "out")]) == 0
    found = {path.name for path in (tmp_path / "out").rglob("*inter_scale*")}
    tag = next(name.removesuffix("-own.csv") for name in found if name.endswith("-own.csv")).partition("-")[2]
    assert {f"inter_scale-{tag}.png", f"inter_scale-{tag}-own.csv"} <= found
    own = pd.read_csv(next((tmp_path / "out").rglob("*-own.csv")))
    assert sorted(own["label"]) == sorted(rows) and own["own_fid"].notna().all()


def test_layers_are_replaced_from_either_end_or_evenly():
    cells = find_experiment("placement").cells(PRESETS["digits"])
    found = {cell.label: [i for i, layer in enumerate(cell.config.model.layers) if layer != "global"] for cell in cells}
    assert found["none"] == [] and found["all"] == list(range(8))
    assert found["first:2 of 8"] == [0, 1] and found["last:2 of 8"] == [6, 7] and found["every:4 of 8"] == [3, 7]
    assert all(len(found[cell.label]) == cell.axes["layers_replaced"] for cell in cells)
    base = override(PRESETS["digits"], {"model.pattern": "markov:3"})
    assert find_experiment("placement").cells(base)[0].config.model.pattern == "markov:3"
