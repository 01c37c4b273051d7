"""What an image takes by L: states and FLOPs of the configs, latency as a benchmark stored it, and where they cross."""

import json
from types import SimpleNamespace

import pytest

from mvar import UserError, inter_scale_mixers, shipped
from mvar.cost import state_bytes
from mvar.presets import PRESETS
from mvar.runs.experiment import find_experiment

SCRIPT = shipped.load(shipped.find("analysis", "costs_by_length"))
CELLS = find_experiment("inter_scale").cells(PRESETS["digits"])
MODELS = {cell.axes["pattern"]: cell.config for cell in CELLS[:5]}
MANIFEST = SimpleNamespace(name="inter_scale-x", title="x", tag="x")


def test_crossings_are_where_a_state_of_fixed_size_is_the_smaller_one():
    table = SCRIPT.lengths(MODELS, MANIFEST)
    found = {row["label"]: row for row in table.rows}
    dense, mamba = MODELS["intra+global"], MODELS["intra+mamba"]
    assert found["intra+mamba"]["state 30"] == state_bytes(mamba.model, mamba.token_space)
    assert found["intra+mamba"]["state 30"] == found["intra+mamba"]["state 2240"]
    at = int(found["intra+mamba"]["state crossing"].replace(",", ""))
    for sides in SCRIPT.LENGTHS:
        less = SCRIPT.costs(mamba, sides)["state"] < SCRIPT.costs(dense, sides)["state"]
        assert less == (sum(side**2 for side in sides) >= at)
    assert found["intra+global"]["state crossing"] is None


def benchmark(named="mixer", **ms):
    rows = [
        {named: name.replace("_", "+"), "ms": dict(zip(("30", "66", "2240"), taken, strict=True))}
        for name, taken in ms.items()
    ]
    machine = {"cpu": "a processor", "threads": 1, "torch": "2"}
    settings = {"mixer_width": 256, "processor_time": True, "depth": 8, "width": 64}
    return {"machine": machine, "settings": settings, "lengths": rows}


def test_latency_is_the_benchmarks_with_its_machine_and_its_crossings(tmp_path):
    path = tmp_path / "mixers.json"
    assert SCRIPT.read_latency(path, "mixer") is None
    taken = {"global": (1, 2, 9), "mamba": (2, 1, 3), "markov": (0.5, 3, 10), "conv": (1, 1, 1)}
    path.write_text(json.dumps(benchmark(**taken)))
    latency = SCRIPT.read_latency(path, "mixer")
    table = SCRIPT.latency_table(MODELS, latency, MANIFEST)
    found = {row["label"]: row for row in table.rows}
    assert list(found) == ["global", "mamba", "markov"]  # partners that are rows here
    assert found["mamba"]["ms crossing"] == "66" and found["markov"]["ms crossing"] == "none here"
    assert found["mamba"]["ms 2240"] == 3 and "ms crossing" not in found["global"]
    assert "a processor, 1 thread, torch 2, processor time" in table.reading[0] and "width 256" in table.reading[0]
    made = SCRIPT.lengths_figure(MODELS, latency, MANIFEST, tmp_path)
    assert "Right, measured" in made.caption
    for damaged in ("{", "[]", json.dumps({"lengths": []}), json.dumps(benchmark(mamba=("x", 1, 1)))):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"mixers.json: .*; allowed: what `python -m benchmarks.mixers` writes"):
            SCRIPT.read_latency(path, "mixer")


def test_latency_of_whole_models_is_by_their_patterns(tmp_path):
    path = tmp_path / "lengths.json"
    taken = {"intra_global": (2, 3, 9), "intra_mamba": (3, 2, 4), "intra": (1, 1, 1), "intra_conv": (1, 1, 1)}
    path.write_text(json.dumps(benchmark("pattern", **taken)))
    latency = SCRIPT.read_latency(path, "pattern")
    table = SCRIPT.latency_table(MODELS, latency, MANIFEST)
    found = {row["label"]: row for row in table.rows}
    assert list(found) == ["intra", "intra+global", "intra+mamba"] and "ms crossing" not in found["intra+global"]
    assert found["intra+mamba"]["ms crossing"] == "66" and found["intra"]["ms crossing"] == "30"
    assert "`python -m benchmarks.lengths`" in table.reading[0] and "depth 8, width 64" in table.reading[0]


def test_the_stored_benchmarks_have_every_mixer_and_length():
    mixers, models = SCRIPT.read_latency(SCRIPT.OF_MIXERS, "mixer"), SCRIPT.read_latency(SCRIPT.OF_MODELS, "pattern")
    assert set(mixers.ms) == set(inter_scale_mixers())
    assert set(models.ms) == {cell.axes["pattern"] for cell in CELLS}
    for latency in (mixers, models):
        assert latency.lengths == [sum(side**2 for side in sides) for sides in SCRIPT.LENGTHS]


def test_crossings_are_said():
    table = SCRIPT.lengths(MODELS, MANIFEST)
    state, flops = table.reading[1:]
    rows = {row["label"]: row for row in table.rows}
    assert f"from L = {rows['intra+mamba']['state crossing']} on" in state and "`intra+mamba`" in state
    assert state.startswith("Than `intra+global` have a smaller state:") and "fewer FLOPs" in flops
