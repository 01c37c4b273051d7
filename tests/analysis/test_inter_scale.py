"""Between scales: which models are asked for, of which size, and what the report says of each at its own guidance."""

import dataclasses
import json
from types import SimpleNamespace

import pandas as pd
import pytest
from tiny_runs import arguments

from mvar import UserError, inter_scale_mixers, num_params, override, shipped
from mvar.analysis.contract import find_analysis
from mvar.analysis.report import main as report
from mvar.analysis.verdicts import BETTER
from mvar.cli import main
from mvar.cost import state_bytes
from mvar.presets import PRESETS
from mvar.runs.experiment import find_experiment

SCRIPT = shipped.load(shipped.find("analysis", "inter_scale"))
CELLS = find_experiment("inter_scale").cells(PRESETS["digits"])
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


def models(**fids):
    made = []
    for cell in CELLS[:5]:
        by_cfg = {cfg: rows(pair) for cfg, pair in fids[cell.axes["pattern"].rpartition("+")[2]].items()}
        made.append(SCRIPT.Model(cell.label, cell.axes, cell.config, by_cfg, 1.5))
    return made


FIDS = {
    "intra": {0.0: (3, 3), 1.5: (2, 2)},
    "global": {0.0: (2, 2), 1.5: (1, 3)},
    "mamba": {0.0: (1, 1), 1.5: (2, 2)},
    "markov": {0.0: (4, 4), 1.5: (0.5, 0.5)},
}
MANIFEST = SimpleNamespace(name="inter_scale-x", title="x", tag="x", experiment=find_experiment("inter_scale"))


def test_each_is_compared_at_its_own_guidance_on_other_images():
    table = SCRIPT.comparison(models(**FIDS), MANIFEST)
    found = {row["label"].split(",")[0]: row for row in table.rows}
    assert {p: row["own_cfg"] for p, row in found.items()} == {
        "global": 1.5, "intra": 1.5, "intra+global": 1.5, "intra+mamba": 0.0, "intra+markov": 1.5,
    }  # fmt: skip
    assert found["global"]["own_fid"].mean == pytest.approx(3.001)  # on the images that did not choose it
    assert found["intra+markov"]["own_fid_verdict"].startswith(BETTER)
    assert "own_fid_verdict" not in found["intra+mamba"] and found["intra+mamba"]["fid"].mean == pytest.approx(2.001)
    shown = {column.key for column in table.columns}
    for name in ("nll", "fid", "own_fid"):  # each with its verdict and the seeds that it needs
        assert {name, f"{name}_verdict", f"{name}_needed"} <= shown and found["intra"][f"{name}_verdict"]
    assert "on sampling seed 0, of the 2 values that all with several have (0, 1.5)" in table.reading[1]


def test_a_value_that_not_all_have_is_chosen_by_none():
    more = {**FIDS, "mamba": {**FIDS["mamba"], 0.5: (0.1, 0.1)}, "markov": {1.5: (1, 1)}}
    table = SCRIPT.comparison(models(**more), MANIFEST)
    found = {row["label"].split(",")[0]: row["own_cfg"] for row in table.rows}
    assert found["intra+mamba"] == 0.0 and found["intra+markov"] is None and found["intra"] == 1.5


def test_likelihood_hangs_on_no_sampling_seed():
    (made, *_) = models(**FIDS)
    first = {cfg: found[found["sample_seed"] == 0] for cfg, found in made.by_cfg.items()}
    one = dataclasses.replace(made, by_cfg=first)
    assert one.measured(SCRIPT.FID, 1.5, [1]) is None and one.measured(SCRIPT.NLL, 1.5, [1]).n == 3


def test_without_a_second_guidance_nothing_is_chosen():
    table = SCRIPT.comparison(models(**{name: {1.5: cfgs[1.5]} for name, cfgs in FIDS.items()}), MANIFEST)
    assert all(row["own_cfg"] is None and row["own_fid"] is None for row in table.rows)
    assert "two values or more" in table.reading[1]


def test_crossings_are_where_a_state_of_fixed_size_is_the_smaller_one():
    made = models(**FIDS)
    table = SCRIPT.lengths(made, MANIFEST)
    found = {row["label"]: row for row in table.rows}
    dense, mamba = (next(m for m in made if m.axes["pattern"] == p) for p in ("intra+global", "intra+mamba"))
    assert found["intra+mamba"]["state 30"] == state_bytes(mamba.config.model, mamba.config.token_space)
    assert found["intra+mamba"]["state 30"] == found["intra+mamba"]["state 2240"]
    at = int(found["intra+mamba"]["state crossing"].replace(",", ""))
    for sides in SCRIPT.LENGTHS:
        less = mamba.costs(sides)["state"] < dense.costs(sides)["state"]
        assert less == (sum(side**2 for side in sides) >= at)
    assert found["intra+global"]["state crossing"] is None


def benchmark(**ms):
    rows = [{"mixer": name, "ms": dict(zip(("30", "66", "2240"), taken, strict=True))} for name, taken in ms.items()]
    machine = {"cpu": "a processor", "threads": 1, "torch": "2"}
    return {"machine": machine, "settings": {"mixer_width": 256, "processor_time": True}, "lengths": rows}


def test_latency_is_the_benchmarks_with_its_machine_and_its_crossings(tmp_path):
    path = tmp_path / "mixers.json"
    assert SCRIPT.read_latency(path) is None
    taken = {"global": (1, 2, 9), "mamba": (2, 1, 3), "markov": (0.5, 3, 10), "conv": (1, 1, 1)}
    path.write_text(json.dumps(benchmark(**taken)))
    latency = SCRIPT.read_latency(path)
    table = SCRIPT.latency_table(models(**FIDS), latency, MANIFEST)
    found = {row["label"]: row for row in table.rows}
    assert list(found) == ["global", "mamba", "markov"]  # partners that are rows here
    assert found["mamba"]["ms crossing"] == "66" and found["markov"]["ms crossing"] == "none here"
    assert found["mamba"]["ms 2240"] == 3 and "ms crossing" not in found["global"]
    assert "a processor, 1 thread, torch 2, processor time" in table.reading[0] and "width 256" in table.reading[0]
    made = SCRIPT.lengths_figure(models(**FIDS), latency, MANIFEST, tmp_path)
    assert "Right, measured" in made.caption
    for damaged in ("{", "[]", json.dumps({"lengths": []}), json.dumps(benchmark(mamba=("x", 1, 1)))):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"mixers.json: .*; allowed: what `python -m benchmarks.mixers` writes"):
            SCRIPT.read_latency(path)


def test_the_stored_benchmark_has_every_mixer_and_length():
    latency = SCRIPT.read_latency()
    assert set(latency.ms) == set(inter_scale_mixers())
    assert latency.lengths == [sum(side**2 for side in sides) for sides in SCRIPT.LENGTHS]


def test_crossings_are_said():
    table = SCRIPT.lengths(models(**FIDS), MANIFEST)
    state, flops = table.reading[1:]
    rows = {row["label"]: row for row in table.rows}
    assert f"from L = {rows['intra+mamba']['state crossing']} on" in state and "`intra+mamba`" in state
    assert state.startswith("Than `intra+global` have a smaller state:") and "fewer FLOPs" in flops


@pytest.mark.slow
def test_it_runs_at_the_smallest_size_and_is_reported(tmp_path):
    """Three rows of it trained, sampled at two values of guidance, and both tables and figures of the report."""
    rows = [f"{pattern}, the preset's width" for pattern in ("intra+mamba", "intra+gla", "intra+global")]
    asked = arguments(tmp_path / "results", "--sample-seeds", "2", *(w for row in rows for w in ("--only", row)))
    asked[asked.index("mixers")] = "inter_scale"
    for settings in ([], ["sample.cfg_scale=0"]):
        assert main([*asked, *settings]) == 0
    script = find_analysis("inter_scale")
    assert report(script, ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "out")]) == 0
    found = {path.name for path in (tmp_path / "out").rglob("*inter_scale*")}
    tag = next(name.removesuffix("-own.csv") for name in found if name.endswith("-own.csv")).partition("-")[2]
    assert {f"inter_scale-{tag}.png", f"inter_scale-lengths-{tag}.png", f"inter_scale-{tag}-lengths.csv"} <= found
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
