"""The benchmarks run, at sizes of seconds, and compare like with like. No time is judged here."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from itertools import accumulate, product
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import attention, by_length, lengths, machine, mixers, official, sampling, scan, statistics, submit
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import parity as gpu_parity
from benchmarks.gpu import sampling as gpu_sampling
from benchmarks.gpu import settings as gpu_settings
from benchmarks.gpu import table as gpu_table
from benchmarks.gpu import training as gpu_training
from mvar import shipped
from mvar.errors import UserError
from mvar.kernels import causal_conv, optional
from mvar.mixers.base import inter_scale_mixers
from mvar.presets import PRESETS
from mvar.registries import MIXERS

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(machine, "GEMM_SIZES", (32, 64))
    monkeypatch.setattr(sampling, "keep_freed_memory", lambda: None)  # for the rest of the process
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def finite(value):
    """All numbers of a JSON document are finite and none is negative."""
    if isinstance(value, dict | list):
        return all(map(finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or 0 <= value < float("inf")


# Machine ------------------------------------------------------------------------------------------------------------


def test_the_yardstick_is_the_best_of_all_products(monkeypatch):
    clock = iter([0.0, 4.0, 10.0, 11.0, 20.0, 28.0, 30.0, 34.0])
    monkeypatch.setattr(machine, "GEMM_SIZES", (1, 2))
    monkeypatch.setattr(machine, "GEMM_REPEATS", 2)
    assert machine.gemm_flops_per_s(lambda: next(clock)) == max(2 * 1**3 / 1.0, 2 * 2**3 / 4.0)


def test_the_yardstick_is_the_better_of_before_and_after(monkeypatch):
    rates = iter([3.0, 5.0])
    monkeypatch.setattr(machine, "gemm_flops_per_s", lambda clock: next(rates))
    assert machine.with_gemm(lambda: "measured") == ("measured", 5.0)


# Scan ---------------------------------------------------------------------------------------------------------------


def scan_settings(tmp_path, **changes):
    return scan.Settings(
        **{"widths": (32,), "resolutions": ("256",), "repeats": 1, "out": tmp_path / "a.json"} | changes
    )


def test_scan_without_its_peer_measures_our_rate(tmp_path, capsys):
    scan.main(scan_settings(tmp_path, peer=False))
    found = json.loads((tmp_path / "a.json").read_text())
    assert [(row["part"], row["pass"]) for row in found["rows"]] == [
        (part, what) for part in ("scan", "mixer") for what in ("forward", "forward + backward")
    ]
    assert all(row["ratio"] is None and row["rate_over_gemm"] > 0 for row in found["rows"])
    assert finite(found["rows"]) and "Mamba-2, batch 1" in capsys.readouterr().out


def test_scan_says_that_its_peer_is_missing_and_leaves_earlier_figures(tmp_path):
    code = "import sys; sys.modules['transformers'] = None; import runpy; sys.argv = sys.argv[1:]"
    code += "; runpy.run_module('benchmarks.scan', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, "scan", "--out", str(tmp_path / "a.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir())
    assert "transformers is not installed" in done.stderr and len(done.stderr.splitlines()) == 1
    assert 'pip install -c constraints.txt -e ".[benchmarks]"' in done.stderr and "--no-peer" in done.stderr


def test_scan_says_that_its_peer_is_too_old(monkeypatch):
    for name in ("transformers", "transformers.models"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    old = type(sys)("transformers.models.mamba2")
    old.modeling_mamba2 = type(sys)("modeling_mamba2")
    monkeypatch.setitem(sys.modules, old.__name__, old)
    with pytest.raises(UserError, match="too old"):
        scan.load_peer()


def test_scan_compares_with_the_peer_before_it_measures(tmp_path):
    """A peer that computes something else is found out; with transformers installed, that it computes the same."""
    wrong = type("Peer", (), {"mamba2_chunk_scan": staticmethod(lambda x, *_, **__: x + 1)})
    with pytest.raises(AssertionError):
        scan.measure(scan_settings(tmp_path), 32, 30, "scan", wrong)
    pytest.importorskip("transformers", minversion="5")
    for part in ("scan", "mixer"):
        rows = scan.measure(scan_settings(tmp_path), 32, 30, part, scan.load_peer())
        assert all(row["ratio"] > 0 for row in rows)


# Sampling -----------------------------------------------------------------------------------------------------------


def sampling_settings(tmp_path, **changes):
    return sampling.Settings(
        **{"depth": 1, "width": 32, "batch": 2, "repeats": 1, "out": tmp_path / "a.json"} | changes
    )


def test_sampling_measures_every_mixer(tmp_path, capsys):
    sampling.main(sampling_settings(tmp_path))
    found = json.loads((tmp_path / "a.json").read_text())
    assert set(found["rate_over_gemm"]) == {*MIXERS.names(), "intra+mamba"}
    assert finite(found) and found["state_over_prefix"] > 0
    assert "carried state against prefix" in capsys.readouterr().out


def test_sampling_again_over_the_prefix_draws_the_same_tokens(tmp_path):
    settings = sampling_settings(tmp_path, depth=2)
    model, quantizer = sampling.build(settings, "intra+mamba")
    carried = sampling.sampler(settings, model, quantizer)()
    for block in model.blocks:
        block.mamba = sampling.PrefixRecompute(block.mamba)
    again = sampling.sampler(settings, model, quantizer)
    sampling.same_draws(lambda: carried, again)
    other = sampling.Generated(carried.tokens.flip(0), carried.latent)
    with pytest.raises(UserError, match="tokens differ"):
        sampling.same_draws(lambda: other, again)


@pytest.mark.parametrize("pattern", ["global", "intra+mamba"])
def test_the_products_are_all_of_the_linear_layers(tmp_path, pattern):
    """With guidance two rows a token in every layer but the head, which is given one."""
    settings = sampling_settings(tmp_path)
    model, quantizer = sampling.build(settings, pattern)
    run, flops = sampling.products(sampling.sampler(settings, model, quantizer))
    run()
    rows, width, counted = settings.batch * model.schedule.num_tokens, settings.width, 0
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and not any(part in name for part in ("ada_", "head_nm", "word_embed")):
            counted += (2 if layer is not model.head else 1) * 2 * rows * layer.weight.numel()
    others = 2 * 2 * rows * (model.space.code_channels * width + 12 * width**2)  # at most: embedding, AdaLN by scale
    assert counted < flops < counted + others


# Attention ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_attention_measures_time_and_memory(tmp_path, capsys):
    settings = attention.Settings(heads=1, whole_depth=1, memory_depth=1, repeats=1, out=tmp_path / "a.json")
    attention.main(settings)
    found = json.loads((tmp_path / "a.json").read_text())
    assert finite(found) and set(found["time"]["layer_s"]) == {"ours", *attention.PEERS}
    assert found["memory"]["maps_beyond_weights_mib"] > found["memory"]["ours_beyond_weights_mib"]
    assert "256 px, one layer: ours" in capsys.readouterr().out


# Submit and report --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", ["0", "-5", "7"])
def test_submit_takes_multiples_of_a_sweep(cells):
    with pytest.raises(UserError, match=f"cells: {cells}; allowed: a multiple of 5"):
        submit.parse(["--cells", cells])


def test_submit_counts_the_cells_of_the_sweep():
    from mvar.presets import PRESETS
    from mvar.runs.experiment import find_experiment

    assert len(find_experiment("layers").cells(PRESETS["smoke"])) == submit.LAYERS_CELLS


def test_submit_says_what_slurm_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(submit.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"sbatch, .*slurmctld.* not found; allowed: apt-get install"):
        submit.parse([])
    monkeypatch.setattr(submit.shutil, "which", lambda name: name)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    with pytest.raises(UserError, match="as root"):
        submit.parse(["--out", str(tmp_path)])


def test_a_mistake_is_one_line(tmp_path):
    command = [sys.executable, "-m", "benchmarks.report", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "holds no finished run" in done.stderr and len(done.stderr.splitlines()) == 1


# Statistics ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_statistics_of_both_sides_are_the_same(tmp_path):
    statistics.main(statistics.Settings(images=300, features=16, threads=1, out=tmp_path / "a.json"))
    found = json.loads((tmp_path / "a.json").read_text())
    assert finite(found) and found["error"] < 1e-6 and {"ratio_seconds", "ratio_peak"} < set(found)


# Mixers -------------------------------------------------------------------------------------------------------------


def test_mixers_are_measured_without_their_peers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mixers, "PATCH_SIDES", {"256": (1, 2, 3), "512": (1, 2, 3, 4, 5)})
    out = tmp_path / "a.json"
    short = {"widths": (64,), "mixer_width": 64, "processes": 1, "repeats": 1, "peer": False, "out": out}
    mixers.main(mixers.Settings(**short))
    found = json.loads(out.read_text())
    assert [(row["mixer"], row["length"]) for row in found["kernels"][::2]] == [
        (n, k) for k in (14, 55) for n in ("gla", "gdn")
    ]
    assert all(row["ratio"] is None and row["rate_over_gemm"] > 0 for row in found["kernels"])
    assert {row["mixer"] for row in found["lengths"]} == set(inter_scale_mixers())
    for key in ("ms", "peak_bytes"):
        assert all(list(row[key]) == ["30", "55"] for row in found["lengths"]) and finite(found["kernels"])
    assert "through an image" in capsys.readouterr().out
    stored = shipped.load(shipped.find("analysis", "costs_by_length")).read_benchmark(out, "mixer")
    assert stored.lengths == [30, 55] and set(stored.taken) == set(inter_scale_mixers()) and stored.repeats == 1
    with pytest.raises(UserError, match="processor-time: threads 0; allowed: with --threads 1"):
        mixers.main(mixers.Settings(processor_time=True, **short))


def test_lengths_measures_whole_models(tmp_path, capsys):
    out = tmp_path / "a.json"
    lengths.main(lengths.Settings(preset="smoke", scales=(2, 1), processes=1, repeats=2, out=out))
    found = json.loads(out.read_text())
    assert {row["pattern"] for row in found["lengths"]} == {
        "global",
        "intra",
        *(f"intra+{n}" for n in inter_scale_mixers()),
    }
    assert all(list(row["ms"]) == ["1", "5"] and finite(row["ms"]) for row in found["lengths"])
    for row in found["lengths"]:  # every repeat is kept
        assert {at: [median(each) for each in taken] for at, taken in row["repeats_ms"].items()} == row["ms"]
        assert [[len(each) for each in taken] for taken in row["repeats_ms"].values()] == [[2], [2]]
    assert "less than" in capsys.readouterr().out and found["settings"]["depth"] == PRESETS["smoke"].model.depth
    stored = shipped.load(shipped.find("analysis", "costs_by_length")).read_benchmark(out, "pattern")
    assert stored.lengths == [1, 5] and f"width {PRESETS['smoke'].model.width}" in stored.of and stored.repeats == 2
    for wrong, said in (
        ({"preset": "x"}, "preset: 'x' is unknown"),
        ({"processes": 0}, "processes: 0; allowed: 1 or more"),
        ({"scales": (0, 11)}, "scales: .*; allowed: one number or more, each from 1 to 10"),
        ({"processor_time": True}, "processor-time: threads 0; allowed: with --threads 1"),
    ):
        with pytest.raises(UserError, match=said):
            lengths.main(lengths.Settings(**wrong))


def test_mixers_are_compared_with_their_peers_before_they_are_measured(tmp_path):
    settings = mixers.Settings(repeats=1, out=tmp_path / "a.json")
    with pytest.raises(AssertionError):
        mixers.measure_kernel(settings, "gdn", 64, 30, {"gdn": lambda q, k, v, *_: v + 1})
    pytest.importorskip("transformers", minversion="5")
    peers = mixers.load_peers()
    assert all(row["ratio"] > 0 for name in peers for row in mixers.measure_kernel(settings, name, 64, 70, peers))


def test_mixers_say_which_peer_is_missing(monkeypatch):
    for name in ("transformers", "transformers.models.qwen3_next.modeling_qwen3_next"):  # it may be loaded already
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"peer: transformers is not installed.*\[benchmarks,dev\].*--no-peer"):
        mixers.load_peers()
    peer = type(sys)("transformers.models.qwen3_next.modeling_qwen3_next")
    peer.torch_chunk_gated_delta_rule = None
    for name in ("transformers", "transformers.models", "transformers.models.qwen3_next"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.setitem(sys.modules, peer.__name__, peer)
    monkeypatch.setattr(mixers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="peer: fla-core is not installed"):
        mixers.load_peers()


# By length ----------------------------------------------------------------------------------------------------------


def test_a_crossing_is_where_it_stays_less():
    assert by_length.crossing({30: True, 66: False, 147: True}) == 147
    assert by_length.crossing({30: True, 66: True, 147: True}) == 30
    assert by_length.crossing({30: True, 66: True, 147: False}) is None


def test_less_time_is_less_beyond_what_processes_scatter_by():
    """The same means: with a small scatter a crossing, with a large one or a single process none."""
    dense, peaks = {30: [4.0, 6.0], 66: [9.9, 10.1, 10.0]}, {30: 5, 66: 7}

    def crossings(taken, held=6):
        row = by_length.compared({30: [5.0, 5.0], 66: taken}, dense, {30: 5, 66: held}, peaks)
        return row["ms_crossing"], row["peak_crossing"]

    assert crossings([9.0, 8.9, 9.1]) == (66, 66) and crossings([9.0, 9.0, 9.0]) == (66, 66)
    assert crossings([7.0, 11.0, 9.0], held=7) == (None, None) and crossings([9.0]) == (None, 66)
    row = by_length.compared({66: [9.0, 8.9, 9.1]}, dense, {66: 6}, peaks)
    low, high = row["ms_difference"][66]
    assert low < -1 < high < 0 and low + high == pytest.approx(-2)


def test_a_process_counts_once_whatever_its_repeats_scatter_by():
    first = by_length.Measured({"a": {30: [1.0, 9.0, 2.0]}, "b": {30: [4.0, 4.0, 4.0]}}, {"a": {30: 7}, "b": {30: 8}})
    second = by_length.Measured({"a": {30: [3.0, 3.0, 0.0]}, "b": {30: [5.0, 4.0, 6.0]}}, {"a": {30: 7}, "b": {30: 8}})
    ours, dense = by_length.rows_of([first, second], "name", "b")
    assert ours["ms"] == {30: [2.0, 3.0]} and dense["ms"] == {30: [4.0, 5.0]} and ours["name"] == "a"
    assert ours["repeats_ms"] == {30: [[1.0, 9.0, 2.0], [3.0, 3.0, 0.0]]} and ours["peak_crossing"] == 30


def test_processes_are_fresh_ones():
    who = "__import__('os').getpid()"
    assert len({os.getpid(), *by_length.in_processes(2, eval, who)}) == 3
    assert by_length.in_processes(1, eval, who) == [os.getpid()]


def test_repeats_are_taken_in_turn():
    order = []
    runs = {name: partial(order.append, name) for name in "ab"}
    taken = machine.times(runs, 3)
    assert order == ["a", "b"] * 4 and {name: len(each) for name, each in taken.items()} == {"a": 3, "b": 3}


def test_the_peak_is_the_most_that_tensors_hold_at_once():
    """To the byte, and as torch's own allocator counts it; what was there before is not in it."""
    x = torch.ones(1000)

    def run():
        y = x + 1  # 4,000 bytes
        z = torch.cat((y, y))  # 8,000 more
        del y
        return z.view(2, 1000)[0].add_(1)  # a view, in place

    assert by_length.peak(run) == 12_000
    draw = lengths.drawer(PRESETS["smoke"], "intra+mamba", 2)
    draw()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        draw()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held = list(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    assert by_length.peak(draw) == by_length.peak(draw) == pytest.approx(max(held), rel=0.01)


# Official ------------------------------------------------------------------------------------------------------------


CHECKOUT = {
    "vqvae.py": """
class VQVAE:
    def __init__(self, *args, ch, v_patch_nums):
        pass
""",
    "var.py": """
import torch

class VAR(torch.nn.Module):
    def __init__(self, vae, num_classes, depth, embed_dim, num_heads, patch_nums, **others):
        super().__init__()
        self.sides, self.blocks = patch_nums, torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(depth))

    def init_weights(self, **factors):
        pass

    def autoregressive_infer_cfg(self, count, labels, g_seed, cfg, top_k, top_p):
        assert len(labels) == count
        for side in self.sides:
            x = torch.zeros(count, side * side, 8)
            for block in self.blocks:
                x = block(x)
""",
}


def checkout(folder):
    """A folder that has the official names."""
    (folder / "models").mkdir()
    for name, text in CHECKOUT.items():
        (folder / "models" / name).write_text(text)


def test_a_folder_without_the_official_code_is_told(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/var.py").touch()
    assert official.check(official.Settings(tmp_path)) == {"VAR": tmp_path}
    with pytest.raises(UserError, match=r"models/mvar.py is not there; allowed: the folder of a checkout"):
        official.check(official.Settings(tmp_path, tmp_path))


def test_attention_in_place_of_flash_attn_stays_within_scales():
    """And our scan in place of mamba-ssm's reads a prefix as the whole image does."""
    settings = official.Settings(Path(), resolution="digits")
    flash = official.stand_ins(settings, "M-VAR")["flash_attn"]
    q, k, v = torch.randn(3, 2 * 30, 2, 8)
    found = flash.flash_attn_varlen_func(q, k, v, None, None, 16, 16, softmax_scale=0.5)
    third = slice(30 + 5, 30 + 14)  # of the second image
    one = (t[third].transpose(0, 1) for t in (q, k, v))
    wanted = torch.nn.functional.scaled_dot_product_attention(*one, scale=0.5).transpose(0, 1)
    torch.testing.assert_close(found[third], wanted)
    scan = official.OfficialMamba.of(settings.schedule)(d_model=64, d_state=8, d_conv=4, expand=2)
    x = torch.randn(2, 30, 64)
    torch.testing.assert_close(scan(x[:, :14]), scan(x)[:, :14])


def test_times_and_the_yardstick_are_by_one_clock(monkeypatch):
    """The processor's: the share of products is of times that other work is in or not, but alike."""
    clocks, sides = set(), [("VAR", work, side) for work in ("sampling", "training") for side in ("official", "ours")]
    monkeypatch.setattr(official, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(official, "check", lambda settings: {"VAR": Path()})
    monkeypatch.setattr(official, "runs_of", lambda *_: dict.fromkeys(sides, lambda: None))
    monkeypatch.setattr(official, "seconds", lambda runs, repeats, clock: clocks.add(clock) or dict.fromkeys(runs, 2.0))
    monkeypatch.setattr(machine, "gemm_flops_per_s", lambda clock: clocks.add(clock) or 1e9)
    rows = official.measure(official.Settings(Path(), resolution="digits"))["rows"]
    assert clocks == {time.process_time} and [row["ratio"] for row in rows] == [1, 1]


def test_another_number_of_parameters_is_one_line(tmp_path):
    """Before anything is timed."""
    checkout(tmp_path)
    settings = official.Settings(tmp_path, depth=1, width=64, resolution="digits", out=tmp_path / "a.json")
    with pytest.raises(UserError, match=r"^official: VAR has 72 parameters, ours [\d,]{6,}; allowed: as many$"):
        official.main(settings)
    assert not settings.out.exists()


def test_where_an_aim_is_missed_the_share_of_products_is_told(capsys):
    row = {"model": "VAR", "official_s": 2.5, "ours_s": 2.0, "aim": 1.35, "products_share": 0.73}
    rows = [row | {"work": "sampling", "ratio": 1.25}, row | {"work": "training", "ratio": 1.35}]
    official.show({"machine": {"cpu": "a CPU", "threads": 1}, "rows": rows})
    missed, reached = (line for line in capsys.readouterr().out.splitlines() if "VAR" in line)
    assert "73%" in missed and "sampling" in missed and "%" not in reached


WRAPPED = """
import torch
from mvar.config import ModelConfig, TokenSpace
from mvar.transformer import ScaleTransformer
IMPORTS

class NAME(ScaleTransformer):
    def __init__(self, vae, num_classes, depth, embed_dim, num_heads, attn_l2_norm, cond_drop_rate, patch_nums):
        sizes = {"depth": depth, "width": embed_dim, "num_heads": num_heads, "attn_l2_norm": attn_l2_norm}
        super().__init__(ModelConfig(pattern="PATTERN", **sizes), TokenSpace(tuple(patch_nums), 4096, 32, num_classes))

    def init_weights(self, **factors):
        super().init_weights()

    def forward(self, labels, inputs):
        return super().forward(labels, inputs)[0] + OFF

    def autoregressive_infer_cfg(self, count, labels, g_seed, cfg, top_k, top_p):
        state = None
        for span in self.schedule.steps():
            inputs = torch.zeros(count, span.length if span.first else 0, 32)
            logits, state = super().forward(labels, inputs, span, state)
"""


def wrapped(folder, name, off=0):
    """A checkout whose model is ours under the official names."""
    (folder / "models").mkdir(parents=True)
    (folder / "models/vqvae.py").write_text(CHECKOUT["vqvae.py"])
    kernels = "" if name == "VAR" else "from flash_attn import flash_attn_func\nfrom mamba_ssm import Mamba2"
    text = WRAPPED.replace("PATTERN", official.PATTERNS[name]).replace("IMPORTS", kernels).replace("OFF", str(off))
    file = name.replace("-", "")
    (folder / "models" / f"{file.lower()}.py").write_text(text.replace("NAME", file))
    return folder


def test_the_official_code_is_measured_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "GEMM_SIZES", (64,))
    checkouts = [wrapped(tmp_path / name, name) for name in official.PATTERNS]
    sizes = {"depth": 1, "width": 64, "batch": 2, "resolution": "digits", "repeats": 1}
    official.main(official.Settings(*checkouts, **sizes, out=tmp_path / "a.json"))
    found = json.loads((tmp_path / "a.json").read_text())
    assert [(row["model"], row["work"]) for row in found["rows"]] == [*official.AIMS][::2] + [*official.AIMS][1::2]
    for row in found["rows"]:
        assert row["official_s"] > 0 < row["products_share"] and row["ratio"] == row["official_s"] / row["ours_s"]
        assert row["aim"] == official.AIMS[row["model"], row["work"]]
    assert str(tmp_path) not in json.dumps(found) and not {"models", "mamba_ssm", "flash_attn"} & sys.modules.keys()
    wrapped(tmp_path / "other", "VAR", off=0.1)
    with pytest.raises(UserError, match=r"^official: logits of VAR differ from ours by .*; allowed: less than 1e-3$"):
        official.main(official.Settings(tmp_path / "other", **sizes, out=tmp_path / "b.json"))
    assert not (tmp_path / "b.json").exists()


def test_a_step_beside_the_official_code_trains():
    """The same one on both sides: loss, gradients, clipping, update."""
    settings = official.Settings(Path(), batch=2, resolution="digits")
    labels, inputs, tokens = official.batch(settings)
    assert labels.shape == (2,) and inputs.shape == (2, 29, official.C) and tokens.shape == (2, 30)
    torch.manual_seed(0)
    model = torch.nn.Linear(official.C, official.V)
    before = model.weight.detach().clone()
    official.trainer(settings, model, lambda labels, inputs: model(torch.cat((inputs[:, :1], inputs), 1)))()
    moved = (model.weight.detach() - before).abs()
    assert 0 < moved.max() < 3e-5 and model.weight.grad is None


# GPU ----------------------------------------------------------------------------------------------------------------


def test_without_a_gpu_the_gpu_benchmark_is_a_rehearsal_or_nothing(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=r"gpu: there is none here; allowed: .* --tiny"):
        gpu.main(gpu.Settings(out=tmp_path))
    with pytest.raises(UserError, match=r"official: .*var.py is not there"):
        gpu.main(gpu.Settings(tiny=True, out=tmp_path, official=tmp_path))
    with pytest.raises(UserError, match="official-mvar: given without --official"):
        gpu.main(gpu.Settings(tiny=True, out=tmp_path, official_mvar=tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_was_not_measured_is_a_dash():
    parts = {
        "sampling": [
            {"model": "M-VAR", "batch": 1, "times_the_official": None, "aim": 3.0},
            {"model": "M-VAR", "batch": 8, "times_the_official": 2.0, "aim": None},
        ],
        "training": [{"model": "VAR", "mfu": None}, {"said": "CUDA out of memory", "holds": False}],
    }
    machine = {"gpu": "none", "cpu": "a CPU", "torch": "2"}
    text = gpu_table.as_markdown({"machine": machine, "settings": {"tiny": True}, "parts": parts})
    assert "none (a CPU), torch 2: a rehearsal at a tiny size" in text
    assert "| M-VAR, batch 1: times as fast as the official code | 3 | - |" in text
    assert (
        "| VAR: MFU of a training step | 0.5 | - |" in text
        and "| - | - | NO |" in text
        and "- CUDA out of memory\n" in text
    )


def test_a_peak_is_held_against_the_plans(monkeypatch):
    """Not more above it than the plan leaves free of a card's memory; one GPU has a dash in place of sharded steps."""
    monkeypatch.setattr(gpu_training, "footprint", lambda *_: SimpleNamespace(peak=20e9))
    settings = gpu.Settings()
    for peak, holds in ((19.0, True), (21.0, True), (21.1, False)):
        assert gpu_training.planned(settings, "VAR", "none", 1, peak)["holds"] is holds
    rows = list(gpu_training.not_sharded(settings))
    assert [(row["strategy"], row["keeps"]) for row in rows] == [("fsdp", "none"), ("fsdp", "full")] * 2
    assert all(row["planned_gb"] == 20 and row["peak_gb"] is None and "holds" not in row for row in rows)


def test_a_training_step_is_timed_as_the_host_queues_it(monkeypatch):
    """Waiting for each of them would add what a run never waits for: only before the first and after the last."""
    now, waits, settings = [0.0], list[float](), gpu.Settings(tiny=True, repeats=4)

    def fit(*_, progress, **__):
        for done in range(1, 100):
            now[0] += 1.0
            progress(done, 100)

    monkeypatch.setattr(gpu_training, "fit", fit)
    monkeypatch.setattr(gpu_training, "wait", lambda device: waits.append(now[0]))
    monkeypatch.setattr(gpu_training, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(gpu_training, "random_objective", lambda *_: (None, SimpleNamespace(train=None)))
    taken, _ = gpu_training.looped(settings, settings.config("VAR"))
    assert taken == 1 and waits == [gpu_training.WARM, gpu_training.WARM + 4]


def test_parity_names_causal_conv1d_and_is_without_it_too(monkeypatch):
    """No setting names it: a mixer takes it where it is."""
    asked = []

    def convolve(x, weight, bias, initial_states, activation):
        asked.append(x.dtype)
        padded = torch.cat((initial_states, x), 2) if initial_states is not None else F.pad(x, (weight.shape[1] - 1, 0))
        return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(bias)))

    monkeypatch.setattr(gpu_parity.MIXERS, "names", lambda: ["gdn", "gla"])
    monkeypatch.setattr(optional, "causal_conv1d", lambda: convolve)
    fits = lambda x, weight: x.dtype != torch.float64 and optional.causal_conv1d() is not None  # noqa: E731
    monkeypatch.setattr(causal_conv, "_fits_package", fits)
    monkeypatch.setattr(gpu_parity, "DTYPES", {"fp32": torch.float32})
    rows = [*gpu_parity.rows(gpu.Settings(tiny=True))]
    assert [(row["mixer"], row["back_end"]) for row in rows] == [
        *(("gdn", "torch, causal_conv1d"), ("gdn", "torch"), ("gdn", "compiled, causal_conv1d"), ("gdn", "compiled")),
        *(("gla", "torch"), ("gla", "compiled")),
    ]
    assert all(row["holds"] for row in rows) and len(asked) == 6
    monkeypatch.setattr(optional, "causal_conv1d", lambda: lambda *args, **kwargs: 2 * convolve(*args, **kwargs))
    assert [row["holds"] for row in gpu_parity.rows(gpu.Settings(tiny=True))][:2] == [False, True]


def test_a_part_of_the_gpu_benchmark_that_fails_is_a_row():
    def rows(settings):
        yield {"model": "VAR"}
        raise RuntimeError("CUDA out of memory\nTried to allocate")

    found = list(gpu.measured(rows, gpu.Settings()))
    assert found == [{"model": "VAR"}, {"said": "RuntimeError: CUDA out of memory", "holds": False}]


@pytest.mark.slow
def test_sampling_is_measured_beside_a_checkout(tmp_path):
    """Of code with the official names; without one of M-VAR, that has dashes."""
    checkout(tmp_path)
    settings = gpu.Settings(tiny=True, repeats=1, batches=(1, 2), official=tmp_path)
    rows = list(gpu_sampling.rows(settings))
    assert [(row["model"], row["batch"]) for row in rows] == [(m, n) for m in ("VAR", "M-VAR") for n in (1, 2)]
    for row in rows:
        assert "said" not in row and row["aim"] == (3 if (row["model"], row["batch"]) == ("M-VAR", 1) else None)
        assert row["times_the_official"] is None  # of a rehearsal, whose sizes differ
        for what in ("official_s", "official, compiled_s"):
            assert (row[what] or 0) > 0 if row["model"] == "VAR" else row[what] is None


@pytest.mark.slow
def test_the_gpu_benchmark_is_rehearsed_to_its_end(tmp_path):
    """As a command: its second process imports it."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--repeats", "1", "--batches", "1", "2"]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [document] = tmp_path.glob("gpu-*-tiny.json")
    found = json.loads(document.read_text())["parts"]
    assert set(found) == {"parity", "replay", "agreement", "sampling", "training", "processes"}
    parity = found["parity"]
    assert {row["mixer"] for row in parity} == set(MIXERS.names())
    assert all(row.get("holds") is not False for rows in found.values() for row in rows)
    assert {row["back_end"] for row in parity if "said" not in row} >= {"torch", "plain", "compiled"}
    assert {row["batch"] for row in found["replay"]} == {1, 2} == {row["batch"] for row in found["sampling"]}
    assert all(row["tokens_that_differ"] == 0 and row["replayed_s"] > 0 for row in found["replay"])
    assert all(row["times_the_official"] is None for row in found["sampling"])
    assert {(row["model"], row["precision"]) for row in found["agreement"]} == set(
        product(("VAR", "M-VAR"), gpu_settings.HALF)
    )
    compiled = [row for row in found["training"] if row.get("compiled")]
    assert [row["model"] for row in compiled] == ["VAR", "M-VAR"] and all(row["step_s"] > 0 for row in compiled)
    memory = [row for row in found["training"] + found["processes"][1:] if row not in compiled]
    ways = [(row["model"], row["strategy"], row["keeps"]) for row in memory]
    assert ways[:6] == [*product(("VAR", "M-VAR"), ["ddp"], ("none", "selective", "full"))]
    assert ways[6:] == [*product(("VAR", "M-VAR"), ["fsdp"], ("none", "full"))]
    assert 0 <= found["processes"][0]["sharded_error"] < 1e-2
    for row in memory:
        assert row["step_s"] > 0 and row["planned_gb"] > 0 and row["peak_gb"] is None
    page = document.with_suffix(".md").read_text()
    assert page.count("| - |") > 4 and all(f"## {title}" in page for title in gpu_table.TITLES.values())
    assert str(tmp_path) not in document.read_text() + page
