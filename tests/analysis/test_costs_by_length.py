"""What an image takes by L: states and FLOPs of the configs, latency as a benchmark stored it, and where they cross."""

import json
from types import SimpleNamespace

import pytest

from benchmarks.by_length import compared, crossing
from mvar import UserError, inter_scale_mixers, shipped
from mvar.analysis.render import to_csv
from mvar.cost import state_bytes
from mvar.presets import PRESETS
from mvar.runs.experiment import find_experiment

SCRIPT = shipped.load(shipped.find("analysis", "costs_by_length"))
CELLS = find_experiment("inter_scale").cells(PRESETS["digits"])
MODELS = {cell.axes["pattern"]: cell.config for cell in CELLS[:5]}
MANIFEST = SimpleNamespace(name="inter_scale-x", title="x", tag="x")
LENGTHS = (30, 66, 2240)


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


def benchmark(named="mixer", dense="global", **ms):
    """A document of mean milliseconds at three L, each of three processes; as many MB held."""
    repeats = {
        name: {at: [m - 0.1, m, m + 0.1] for at, m in zip(LENGTHS, means, strict=True)} for name, means in ms.items()
    }
    peaks = {name: {at: int(1e6 * m) for at, m in zip(LENGTHS, means, strict=True)} for name, means in ms.items()}
    rows = [
        {named: name.replace("_", "+")} | compared(taken, repeats[dense], peaks[name], peaks[dense])
        for name, taken in repeats.items()
    ]
    machine = {"cpu": "a processor", "threads": 1, "torch": "2"}
    settings = {"repeats": 5, "mixer_width": 256, "processor_time": True, "depth": 8, "width": 64}
    return {"machine": machine, "settings": settings, "lengths": rows}


def test_what_was_measured_is_the_benchmarks_with_its_machine_and_its_crossings(tmp_path):
    path = tmp_path / "mixers.json"
    assert SCRIPT.read_benchmark(path, "mixer") is None
    taken = {"global": (1, 2, 9), "mamba": (2, 1, 3), "markov": (0.5, 3, 8.9), "conv": (1, 1, 1)}
    path.write_text(json.dumps(benchmark(**taken)))
    stored = SCRIPT.read_benchmark(path, "mixer")
    table = SCRIPT.measured_table(MODELS, stored, MANIFEST)
    found = {row["label"]: row for row in table.rows}
    assert list(found) == ["global", "mamba", "markov"]  # partners that are rows here
    assert found["mamba"]["ms crossing"] == "66" and found["markov"]["ms crossing"] == "none here"
    assert found["markov"]["peak crossing"] == "2,240"  # bytes do not scatter
    assert found["mamba"]["ms 2240"].text(1) == "3.0 ± 0.1" and "ms crossing" not in found["global"]
    assert found["mamba"]["ms 2240"].n == 3 and found["mamba"]["peak 66"] == 1
    assert "a processor, 1 thread, torch 2, processor time" in table.reading[0] and "width 256" in table.reading[0]
    assert "over 3 processes of the median of 5 repeats" in table.reading[1]
    less = "Measured less time than `global` at every L from there on, beyond what processes scatter by: "
    assert table.reading[2] == less + "from L = 66 on `mamba`; at no L here, or not at the largest, `markov`."
    csv = to_csv(table).splitlines()
    assert {"ms 30_sd", "ms 2240_n", "peak 66", "peak crossing"} < set(csv[0].split(","))
    made = SCRIPT.lengths_figure(MODELS, stored, MANIFEST, tmp_path)
    assert "Measured: the partner" in made.caption and "mean time over 3 processes" in made.caption
    old = benchmark(**taken) | {"lengths": [{"mixer": "mamba", "ms": {"30": 1.5}, "crossing": None}]}
    for damaged in ("{", "[]", json.dumps({"lengths": []}), json.dumps(old)):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"mixers.json: .*; allowed: what `python -m benchmarks.mixers` writes"):
            SCRIPT.read_benchmark(path, "mixer")


def test_what_whole_models_take_is_by_their_patterns(tmp_path):
    path = tmp_path / "lengths.json"
    taken = {"intra_global": (2, 3, 9), "intra_mamba": (3, 2, 4), "intra": (1, 1, 1), "intra_conv": (1, 1, 1)}
    path.write_text(json.dumps(benchmark("pattern", "intra_global", **taken)))
    stored = SCRIPT.read_benchmark(path, "pattern")
    table = SCRIPT.measured_table(MODELS, stored, MANIFEST)
    found = {row["label"]: row for row in table.rows}
    assert list(found) == ["intra", "intra+global", "intra+mamba"] and "ms crossing" not in found["intra+global"]
    assert found["intra+mamba"]["ms crossing"] == "66" and found["intra"]["ms crossing"] == "30"
    assert "`python -m benchmarks.lengths`" in table.reading[0] and "depth 8, width 64" in table.reading[0]


def test_the_stored_benchmarks_have_every_mixer_and_length():
    """And their crossings are those of their repeats."""
    mixers = SCRIPT.read_benchmark(SCRIPT.OF_MIXERS, "mixer")
    models = SCRIPT.read_benchmark(SCRIPT.OF_MODELS, "pattern")
    assert set(mixers.taken) == set(inter_scale_mixers())
    assert set(models.taken) == {cell.axes["pattern"] for cell in CELLS}
    for stored in (mixers, models):
        assert stored.lengths == [sum(side**2 for side in sides) for sides in SCRIPT.LENGTHS]
        assert all(ms.n >= 3 for taken in stored.taken.values() for ms in taken.ms.values()) and stored.repeats >= 3
        dense = stored.taken[stored.dense]
        for taken in stored.taken.values():
            for n, (low, high) in taken.difference.items():
                assert (low + high) / 2 == pytest.approx(taken.ms[n].mean - dense.ms[n].mean)
            assert taken.crossings["ms"] == crossing({n: high < 0 for n, (_, high) in taken.difference.items()})
            assert taken.crossings["peak"] == crossing({n: taken.peak[n] < dense.peak[n] for n in taken.peak})


def test_crossings_are_said():
    table = SCRIPT.lengths(MODELS, MANIFEST)
    state, flops = table.reading[1:]
    rows = {row["label"]: row for row in table.rows}
    assert f"from L = {rows['intra+mamba']['state crossing']} on" in state and "`intra+mamba`" in state
    assert state.startswith("Than `intra+global` have a smaller state:") and "fewer FLOPs" in flops
