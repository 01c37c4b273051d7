"""Memory of a step, counted without values: as a real step on the CPU keeps it, and what a machine fits."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import memory
from benchmarks.gpu import settings as gpu_settings
from mvar.cli import main
from mvar.commands import gpu_table
from mvar.commands.gpu_table import PATTERNS, Share
from mvar.config import MambaConfig, ModelConfig, RuntimeConfig, TokenSpace, override
from mvar.data.crops import to_float
from mvar.errors import USER_ERROR, UserError
from mvar.kernels import optional
from mvar.kernels.scan import KERNELS
from mvar.presets import PRESETS
from mvar.runs.gpu_plan import GB, Setting, disk_gb, gpu_hours, opened, settle
from mvar.runs.gpus import Machine
from mvar.runs.stage_costs import encoding_flops
from mvar.tokenizer.model import Tokenizer
from mvar.training import checkpoint
from mvar.training import footprint as counting
from mvar.training.counted_scan import standing_in
from mvar.training.footprint import Held, few_layers, footprint, layers, step
from mvar.training.optimizer import build_adamw
from mvar.transformer import ScaleTransformer

ROOT = Path(__file__).parents[2]
SMALL = override(PRESETS["smoke"], {"model.pattern": "intra+mamba", "runtime.scan_backend": "torch"})


def model_of(pattern, kept, depth=3):
    space = TokenSpace((1, 2, 3), vocab_size=11, code_channels=5, num_classes=3)
    sizes = {"depth": depth, "width": 16, "num_heads": 2, "mamba": MambaConfig(d_state=8, headdim=8)}
    model = ModelConfig(pattern=pattern, drop_path=0.5, **sizes)
    return ScaleTransformer(model, space, RuntimeConfig(checkpoint_activations=kept)).train()


@pytest.mark.parametrize("kept", ["none", "selective", "full"])
@pytest.mark.parametrize("pattern", ["global", "intra+mamba", "linear"])
def test_what_is_counted_on_fake_tensors_is_what_a_real_step_keeps(pattern, kept):
    _, real = step(model_of(pattern, kept), 4, kept, "cpu")
    with torch.device("meta"):
        model = model_of(pattern, kept)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _, counted = step(model.to_empty(device="cpu"), 4, kept, "cpu")
    assert counted == real > 0


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["none", "selective", "full"])
def test_a_few_layers_and_images_stand_for_all_of_them(kept):
    """What is kept grows linearly with images and with layers of a kind: to the byte, in a model of mixed layers."""
    with torch.device("meta"):
        model = model_of("2*intra+mamba 3*global markov:1 2*markov:2", kept, depth=8)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        two, three = (few_layers(model, images, kept, "cpu") for images in (2, 3))
        for images in (1, 5):
            logits, saved = step(model, images, kept, "cpu")
            counted = [a + (images - 2) * (b - a) for a, b in zip(two, three, strict=True)]
            assert counted == [logits.nbytes, saved]


def test_running_means_are_counted_and_the_tokenizer_where_it_encodes():
    """Of that its weights, and the most it holds while it encodes a micro-batch: as encoding on the CPU holds it."""
    online = override(SMALL, {"train.tokens": "online"})
    cached, fresh = (footprint(config, 8, "full", "ddp", 1) for config in (SMALL, online))
    tokenizer = Tokenizer(SMALL.tokenizer, SMALL.data.channels).eval()
    pixels = torch.zeros(8, SMALL.data.channels, SMALL.data.image_size, SMALL.data.image_size, dtype=torch.uint8)
    with Held() as held:
        tokenizer.encode(to_float(pixels))
    assert fresh.tokenizer == sum(t.nbytes for t in tokenizer.state_dict().values()) > 0
    assert fresh.encoding == held.most > held.now == 0 and cached.tokenizer == cached.encoding == 0
    with_means = footprint(override(SMALL, {"train.ema": (1000, 2000)}), 8, "full", "ddp", 1)
    assert with_means.peak - cached.peak == cached.state // 2  # a moment's size each
    step_alone = cached.peak - cached.state
    assert fresh.peak == cached.state + fresh.tokenizer + max(step_alone, fresh.encoding)


def bytes_of_a_real_step(kept: str, images: int) -> dict[str, int]:
    """What training on the CPU holds: after a step its state, and what the forward pass keeps."""
    runtime = RuntimeConfig(checkpoint_activations=kept, scan_backend="torch")
    model = ScaleTransformer(SMALL.model, SMALL.token_space, runtime).train()
    logits, saved = step(model, images, kept, "cpu")
    optimizer = build_adamw(model, SMALL.train)
    logits.square().mean().backward()
    optimizer.step()
    tensors = [t for p in model.parameters() for t in (p, p.grad, *optimizer.state[p].values())]
    return {
        "state": sum(t.numel() * t.element_size() for t in tensors),
        "largest": max(sum(p.numel() for p in block.parameters()) for block in model.each_block()) * 4,
        "root": sum(p.numel() for name, p in model.named_parameters() if not name.startswith("blocks.")) * 4,
        "saved": saved,
        "layer": 0 if kept == "none" else max(layers(model, images, kept, "cpu")),
        "logits": 2 * logits.numel() * logits.element_size(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["none", "selective", "full"])
def test_the_plans_peak_is_that_of_a_real_step(kept):
    """Within 3 %, for each strategy: a GPU's kernels of attention keep a little else than the CPU's."""
    real = bytes_of_a_real_step(kept, 8)
    rest = real["saved"] + real["layer"] + real["logits"]
    assert footprint(SMALL, 8, kept, "ddp", 2).peak == pytest.approx(real["state"] + rest, rel=0.03)
    whole = 2 * real["largest"] + real["root"]  # two layers, and what is in none
    shared = real["state"] / 2 + 2 * whole + rest  # weights and gradients
    assert footprint(SMALL, 8, kept, "fsdp", 2).peak == pytest.approx(shared, rel=0.03)


def test_less_is_kept_where_more_is_recomputed_or_shared():
    peaks = [footprint(SMALL, 32, kept, "ddp", 2) for kept in ("none", "selective", "full")]
    assert peaks[0].saved > peaks[1].saved > peaks[2].saved
    shared = footprint(SMALL, 32, "full", "fsdp", 2)
    assert 2 * shared.state == peaks[2].state and shared.saved == peaks[2].saved
    parameters = sum(p.numel() for p in ScaleTransformer(SMALL.model, SMALL.token_space).parameters())
    assert peaks[0].state == 16 * parameters


def machine(limit_gb, gpus=2):
    return Machine(gpus, "h100", limit_gb / 0.95)


def test_the_quickest_setting_that_fits_is_taken():
    whole = footprint(SMALL, 16, "none", "ddp", 2).peak / GB
    found = settle(opened(SMALL), machine(whole * 1.001))
    assert found and (found.strategy, found.kept, found.micro_batch) == ("ddp", "none", 16)
    smaller = settle(opened(SMALL), machine(whole * 0.999))
    assert smaller and smaller.kept == "none" and smaller.micro_batch == 8 and smaller.peak_gb <= whole
    assert settle(opened(SMALL), machine(1e-6)) is settle(SMALL, machine(whole * 0.999)) is None


def test_the_plan_names_the_scan_that_it_counted(undrawn, capsys, tmp_path):
    words = ["plan", "mixers", "--preset", "smoke", "--only", "M-VAR", "--results", str(tmp_path), "--on"]
    assert main([*words, "2xh100-80gb", "--set", "runtime.scan_backend=torch"]) == 0
    assert "Peaks are counted, with torch's own scan; limit 76.0" in " ".join(capsys.readouterr().out.split())


def test_the_scan_that_will_run_is_counted(monkeypatch):
    """Compiled layers keep what the reference does; fla's scan keeps B and C of every head."""

    def saved(name="auto", compiled=False):
        config = override(SMALL, {"runtime.scan_backend": name, "runtime.compile": compiled})
        return footprint(config, 4, "none", "ddp", 1).saved

    every = {name: saved(name) for name in ("torch", "plain", "fla", "mamba_ssm")}
    assert saved(compiled=True) == saved("torch", True) == every["plain"] > every["torch"] == every["mamba_ssm"]
    mamba, width, length = SMALL.model.mamba, SMALL.model.width, SMALL.token_space.schedule.num_tokens
    heads = mamba.expand * width // mamba.headdim
    of_heads = 4 * SMALL.model.depth * 4 * length * heads * 2 * mamba.d_state
    assert every["fla"] > of_heads > 0 and every["fla"] != every["torch"]
    for installed in ("fla", "mamba_ssm"):
        monkeypatch.setitem(KERNELS, installed, KERNELS[installed]._replace(find=lambda: print))
        assert saved() == every[installed]
    assert KERNELS["fla"].find() is print and optional.fla_scan is not print


@pytest.mark.skipif(find_spec("fla") is None, reason="fla-core is not installed")
def test_what_stands_in_for_flas_scan_keeps_what_its_source_does():
    """Queries, keys, values and sums of decays; the rest is None here: no state before a training's first token."""
    source = Path(find_spec("fla").origin).parent / "ops/simple_gla/chunk.py"
    kept = re.search(r"class ChunkSimpleGLAFunction.*?ctx\.save_for_backward\((.*?)\)", source.read_text(), re.S)[1]
    assert re.split(r",\s*", kept) == ["q", "k", "v", "g", "g_gamma", "initial_state", "chunk_indices"]
    q, k, v, g = (torch.ones(2, 3, 4, *last, requires_grad=True) for last in ((5,), (5,), (6,), ()))
    with standing_in("fla"):
        y, _ = optional.fla_scan()(q, k, v, g=g, scale=1.0)
    assert [t.shape for t in y.grad_fn.saved_tensors] == [t.shape for t in (q, k, v, g)] and y.shape == v.shape


@pytest.mark.parametrize("text", ["8h100", "0xh100-80gb", "8xh100", "axh100-80gb"])
def test_a_machine_is_named_as_it_is_read(text):
    with pytest.raises(UserError, match="allowed: COUNTxCARD-MEMORYgb"):
        Machine.parse(text)


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes nothing: counting it takes a second a model."""
    monkeypatch.setattr(gpu_table, "drawing", lambda config, images: 0)


def test_plan_says_what_fits_and_what_does_not(undrawn, capsys, tmp_path):
    words = ["plan", "mixers", "--preset", "smoke", "--only", "VAR", "--results", str(tmp_path)]
    assert main([*words, "--on", "2xh100-80gb"]) == 0
    shown = capsys.readouterr()
    assert "micro_batch=16" in shown.out and "assumed, not measured: 40%" in shown.out + shown.err
    assert "the same is taken of any precision and batch, and of encoding; training" in " ".join(shown.out.split())
    assert re.search(
        r"at most 0 GB of checkpoints, weights and images; 0\.\d+ GB of token caches", shown.out + shown.err
    )
    assert "Peaks are counted; limit 76.0 of 80 GB" in " ".join(shown.out.split())
    assert main([*words, "--on", "4xh100-80gb", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["fits_on"] == 1 and run["setting"]["micro_batch"] == 8 and run["gpus_needed"] is None
    assert main([*words, "--on", "3xh100-80gb"]) == USER_ERROR
    assert "32 images do not divide into 3 GPUs" in capsys.readouterr().err
    assert main([*words, "--on", "2xh1-80gb"]) == main([*words, "--on", "2xh100-80gb", "--mfu", "2"]) == USER_ERROR


def test_plan_says_what_is_nearest_where_nothing_fits(undrawn, capsys, tmp_path):
    """Exit code 2, and the number of such cards that would do."""
    names = ["plan", "mixers", "--preset", "smoke", "--only", "VAR", "--results", str(tmp_path), "--set"]
    wide = ["model.width=8192", "model.depth=4", "model.num_heads=8", "runtime.strategy=auto"]
    assert main([*names, *wide, "--on", "2xrtx4090-24gb"]) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mvar: error: on: 1 of 1 run do not fit; ")
    needed = int(re.fullmatch(r".* needs [\d.]+ GB a GPU at least, limit 22\.8; (\d+) such GPUs would do", line)[1])
    on = ["--on", f"{needed}xrtx4090-24gb"]
    assert needed > 2 and main([*names, *wide, *on]) == 0
    capsys.readouterr()
    assert main([*names, *wide[:-1], *on]) == USER_ERROR  # of the run itself no number would do: it is not sharded
    told = capsys.readouterr().err
    assert "no number of such GPUs would do; runtime.strategy=fsdp runtime.checkpoint_activations=" in told
    assert main([*names, *wide[:-1], "runtime.strategy=fsdp", "train.ema=[1000]", *on]) == USER_ERROR
    assert "fsdp keeps no running means" in capsys.readouterr().err


def test_plan_says_which_runs_are_given_fewer_gpus_than_they_fit_on(undrawn, capsys, tmp_path):
    """Those that leave nothing open: one, also where that is too few."""
    words = ["plan", "mixers", "--preset", "smoke", "--only", "VAR", "--results", str(tmp_path)]
    words += ["--on", "4xrtx4090-24gb", "--set", "train.batch_size=131072"]
    said = "no fit on one GPU, and `mvar run` gives no more to a run whose runtime leaves nothing open"
    assert main([*words, "--json"]) == 0
    shown = capsys.readouterr()
    (run,) = json.loads(shown.out)["runs"]
    assert run["fits_on"] == 2 and not run["is_planned"]
    assert main(words) == 0 and said in " ".join(capsys.readouterr().out.split())
    assert main([*words, "runtime.micro_batch=auto"]) == 0 and said not in " ".join(capsys.readouterr().out.split())


def test_plan_says_where_drawing_does_not_fit(capsys, tmp_path):
    names = ["plan", "mixers", "--preset", "smoke", "--only", "VAR", "--results", str(tmp_path), "--set"]
    assert main([*names, "runtime.sample_batch=1000000", "--on", "1xrtx4090-24gb"]) == USER_ERROR
    assert re.search(r"sample_batch: 1,000,000 images at once: [\d.]+ GB, limit 22\.8; allowed: 50 or fewer, or auto",
                     capsys.readouterr().err)  # fmt: skip


def test_plan_says_where_tokens_cannot_be_written(undrawn, capsys, tmp_path, monkeypatch):
    names = ["plan", "mixers", "--preset", "smoke", "--only", "VAR", "--results", str(tmp_path)]
    monkeypatch.setattr(gpu_table, "encoding", lambda config: 22.9e9)
    assert main([*names, "--on", "1xrtx4090-24gb"]) == USER_ERROR
    assert (
        "tokenizer: writing tokens of images takes 22.9 GB, limit 22.8; allowed: larger GPUs" in capsys.readouterr().err
    )
    assert main([*names, "--on", "1xh100-80gb"]) == 0
    assert "encoding GB" in capsys.readouterr().out


def test_gpu_hours_have_the_encoding_of_fresh_crops():
    """In fp32, whatever the training's precision; by TF32 where that is on."""
    on, way = Machine.parse("1xh100-80gb"), Setting("ddp", "none", 32, 1.0)

    def hours(**changes):
        changes = {name.replace("_", ".", 1): value for name, value in changes.items()}
        return gpu_hours(override(SMALL, changes | {"train.precision": "bf16"}), on, way, 0.5)

    images, encoding = SMALL.train.steps * SMALL.train.batch_size, encoding_flops(SMALL) / 0.5 / 3600
    assert hours(train_tokens="online") - hours() == pytest.approx(images * encoding / 67e12)
    assert hours(train_tokens="online", runtime_tf32=True) - hours() == pytest.approx(images * encoding / (989e12 / 2))


def test_disk_holds_the_checkpoint_that_is_being_written(tmp_path, monkeypatch):
    """Beside all that are kept; and afterwards the images of every evaluation, those that are being drawn twice."""
    sizes = {"model.depth": 2, "model.width": 128, "model.pattern": "global"}  # their names take little of a file
    config = override(SMALL, {**sizes, "runtime.keep_checkpoints": 2, "evaluation.num_images": 10})
    model = ScaleTransformer(config.model, config.token_space)
    optimizer, held, kept = build_adamw(model, config.train), [], checkpoint.keep_newest
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {"module": model.state_dict(), "optimizer": optimizer.state_dict()}

    def keep(path, count):
        held.append(sum(found.stat().st_size for found in tmp_path.glob("step_*.pt")))
        kept(path, count)

    monkeypatch.setattr(checkpoint, "keep_newest", keep)
    for number in range(1, 6):
        checkpoint.save(tmp_path, number, state, config.runtime.keep_checkpoints)
    assert disk_gb([config]) * GB == pytest.approx(max(held), rel=0.03) and held[-1] > 2.9 * held[0]
    many = [override(config, {"evaluation.num_images": 10**7, "sample.cfg_scale": scale}) for scale in (0, 1, 2)]
    assert disk_gb(many) - disk_gb(many[:2]) == pytest.approx(10**7 * 64 / GB)
    assert disk_gb(many[:1]) == pytest.approx(2 * 10**7 * 64 / GB, rel=0.03)


def test_a_share_of_the_rate_is_assumed_given_or_measured(tmp_path):
    assert Share.parse("") == Share(0.4, "assumed, not measured")
    assert Share.parse("0.55").mfu == 0.55 and "as given" in Share.parse("0.55").told
    path = tmp_path / "gpu-x.json"
    rows = [{"model": "VAR", "mfu": 0.51}, {"model": "M-VAR", "mfu": 0.37}, {"said": "Error", "holds": False}]
    rows += [{"model": "VAR", "mfu": 0.1, "compiled": True}]  # no run compiles unless it is asked for
    found = {"machine": {"gpu": "H100"}, "settings": vars(gpu_settings.Settings()), "parts": {"training": rows}}
    path.write_text(json.dumps(found, default=str))
    share = Share.parse(str(path))
    assert (share.mfu, share.told) == (0.37, "measured on H100 of training in bf16, 32 images a step")
    assert [share.of(pattern) for pattern in ("global", "intra+mamba", "mamba")] == [0.51, 0.37, 0.37]  # its own row
    assert PATTERNS == gpu_settings.PATTERNS and Share.parse("0.3").of("global") == 0.3
    path.write_text(json.dumps({"machine": {"gpu": None}, "parts": {"training": [{"mfu": None}]}}))
    for text in (str(path), str(tmp_path / "none.json"), "0", "1.5", "nan", "half"):
        with pytest.raises(UserError, match=r"mfu: .*allowed: above 0, up to 1, or the JSON file of `make gpu`"):
            Share.parse(text)


def test_plan_takes_the_gpus_of_a_profile(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('base = "several-nodes"\ngpu = "h100-80gb"\n')
    words = ["plan", "mixers", "--preset", "smoke", "--only", "VAR", "--results", str(tmp_path), "--on"]
    assert main([*words, "mine.toml"]) == 0
    assert "hours on 16 GPUs" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "several-nodes"]) == USER_ERROR
    assert "on: profile several-nodes has no gpu; allowed: gpus_per_node, and gpu" in capsys.readouterr().err


@pytest.mark.slow
def test_every_model_of_the_papers_fits_eight_cards(monkeypatch):
    """The table of the papers' models: peaks by strategy, and a setting below the limit for each; in seconds, for three
    layers at most stand for all of them."""
    stored = {row["model"]: row for row in json.loads((ROOT / "benchmarks/results/memory.json").read_text())["rows"]}
    on, run = Machine.parse("8xh100-80gb"), []
    monkeypatch.setattr(counting, "step", lambda module, *args: run.append(len(module.blocks)) or step(module, *args))
    for name in ("VAR-d16", "M-VAR-d16"):
        row = memory.row(name, on)
        assert row["peak_gb"] == pytest.approx(stored[name]["peak_gb"], rel=1e-6)  # as `python -m benchmarks.memory`
        peaks = list(row["peak_gb"].values())
        assert peaks[0] > peaks[2] > peaks[1] > peaks[3] and row["fits"]["peak_gb"] <= on.limit_gb
    for name in ("VAR-d36 at 512 px", "M-VAR-d32"):
        preset, pattern = memory.ROWS[name]
        config = override(PRESETS[preset], {"model.pattern": pattern})
        assert footprint(config, 4, "full", "fsdp", 8).peak / GB <= on.limit_gb
    assert max(run) == 3 and len(run) <= 4 * 3 * 4  # of two images and of three, of three ways to keep


def test_the_benchmark_prints_a_row_a_model_and_keeps_it(tmp_path, capsys, monkeypatch):
    peaks = {("none", "ddp"): 9e9, ("full", "ddp"): 8e9, ("none", "fsdp"): 7e9, ("full", "fsdp"): 6e9}
    monkeypatch.setattr(memory, "footprint", lambda config, images, *way: SimpleNamespace(peak=peaks[way[:2]]))
    monkeypatch.setattr(memory, "settle", lambda config, on: Setting("fsdp", "full", 12, 5.5) if on.gpus > 4 else None)
    for on, told in (
        ("8xh100-80gb", "strategy=fsdp checkpoint_activations=full micro_batch=12"),
        ("4xl40s-48gb", "no"),
    ):
        memory.main(memory.Settings(on=on, out=tmp_path / "a.json"))
        lines = capsys.readouterr().out.splitlines()
        for name, images in (("VAR-d36 at 512 px", 768), ("M-VAR-d32", 1024)):
            (line,) = (line for line in lines if name in line)
            assert re.findall(r"\d+", line.partition(name)[2])[:5] == [str(images // Machine.parse(on).gpus), *"9876"]
            assert told in line
        stored = json.loads((tmp_path / "a.json").read_text())
        assert [row["model"] for row in stored["rows"]] == list(memory.ROWS) and stored["on"] == on


def test_the_documents_table_is_the_stored_one():
    """And every row has a setting below the limit."""
    stored = json.loads((ROOT / "benchmarks/results/memory.json").read_text())
    lines = (ROOT / "docs/memory.md").read_text().splitlines()
    assert [row["model"] for row in stored["rows"]] == list(memory.ROWS)
    for row in stored["rows"]:
        cells = [row["model"], str(row["images_per_gpu"]), *(f"{peak:,.0f}" for peak in row["peak_gb"].values())]
        (line,) = (line for line in lines if line.startswith(f"| {' | '.join(cells)} | "))
        strategy, kept, size = re.split("[= ]", row["fits"]["setting"])[1::2]
        told = "as it is" if int(size) == row["images_per_gpu"] else f"{size} images at once"
        named = [word for word, plain in ((strategy, "ddp"), (kept, "none")) if word != plain]
        assert told in line and re.findall("`(.*?)`", line) == named
        assert row["fits"]["peak_gb"] < stored["limit_gb"]
