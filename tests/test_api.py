"""One import: what is loaded from a run and from files is the same as what commands do; every example is run."""

import doctest
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import CONFIG
from torch.utils.flop_counter import FlopCounterMode

import mvar
from mvar.api import tables
from mvar.api.trained_run import TrainedRun
from mvar.checkpoints.weights import save_weights
from mvar.cli import main
from mvar.config import identity, override
from mvar.errors import OK, USER_ERROR, UserError
from mvar.registries import KINDS
from mvar.runs.pipeline import execute
from mvar.runs.store import Store
from mvar.transformer import ScaleTransformer

TINY = override(CONFIG, {"model.pattern": "global"})
ROOT = Path(__file__).parents[1]
EXAMPLES = ["Model", "Trained", "evaluate", "experiment", "explore", "load", "register", "runs", "train"]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with `results/`, which holds one finished run."""
    root = tmp_path_factory.mktemp("api")
    execute(TINY, Store(root / "results"))
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A working directory with a copy of it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Store(Path("results"))


@pytest.fixture
def run(here):
    return mvar.load("digits")


@pytest.fixture(autouse=True)
def registries_stay():
    kept = [(registry, dict(registry.own)) for registry in KINDS.values()]
    yield
    for registry, own in kept:
        registry.own = own


def examples(name):
    thing = tables.runs if name == "runs" else getattr(mvar, name)
    own = [thing, *(vars(TrainedRun).values() if name == "Trained" else ())]
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for part in own if callable(part) for test in finder.find(part, name, module=False, globs={})]
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings(name, here):
    tests = examples(name)
    assert tests, "no example"
    for test in tests:
        told = []
        result = doctest.DocTestRunner(verbose=False).run(test, out=told.append)
        assert not result.failed, "".join(told)


def test_all_that_can_be_called_has_an_example():
    """What the issue of one import names, method by method."""
    for method in ("sample", "grow", "nll", "knockout", "probe", "attention_map"):
        assert ">>>" in getattr(mvar.Trained, method).__doc__
    assert ">>>" in TrainedRun.attention.__doc__


def test_importing_takes_no_time_and_no_torch():
    code = """
import sys, time
began = time.perf_counter()
import mvar
took = time.perf_counter() - began
assert not {"torch", "numpy", "pandas", "pydantic"} & sys.modules.keys()
assert took < 0.3, took
mvar.register, mvar.runs
assert "torch" not in sys.modules and callable(mvar.runs)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Loading --------------------------------------------------------------------------------------------------------------


def test_a_run_by_id_by_directory_and_by_config(run, here):
    (directory,) = Path("results/runs").iterdir()
    for what in (run.name, directory, str(directory.resolve()), run.config):
        found = mvar.load(what)
        assert (found.name, found.config) == (directory.name, TINY)
    assert found.class_names == [str(n) for n in range(10)] and repr(found).startswith(f"<{run.name}: 2 layers of ")


def test_what_cannot_be_loaded(here):
    untrained = override(TINY, {"seed": 5})
    here.run_of(untrained).write_config(untrained)
    names = ", ".join(run.name for run in here.runs())
    for call, message in [
        (lambda: mvar.load("nope"), f"run: 'nope' is unknown; allowed: {names}"),
        (lambda: mvar.load(untrained), f"run: {untrained.run_id} is not trained yet"),
        (lambda: mvar.load("digits", results="no"), "results: no is no directory; allowed: one that `mvar run` has"),
        (lambda: mvar.load("model.pth"), "tokenizer: not given; allowed: the tokenizer's file"),
        (lambda: mvar.load("model.pth", "vae.pth"), "checkpoint: no file 'model.pth'"),
        (lambda: mvar.load("digits", num_heads=2), "patch_sides, num_heads, weights: a run has its own"),
        (lambda: mvar.runs("no"), "results: no is no directory"),
        (lambda: mvar.train("smok"), "preset: 'smok' is unknown (did you mean 'smoke'?)"),
        (lambda: mvar.train("smoke", settings={"train.stepz": 3}), "field train.stepz: 'stepz' is unknown"),
        (lambda: mvar.Model("nope"), "mixer: 'nope' is unknown"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            call()


# Drawing --------------------------------------------------------------------------------------------------------------


def test_images_are_those_of_the_run(run, here):
    """The evaluation's images: its labels go round the classes, and it draws them in one batch."""
    (path,) = Path("results/runs").glob("*/samples/*/samples.npz")
    with np.load(path) as stored:
        images = run.sample(classes=stored["labels"].tolist(), seed=TINY.sample.seed)
        assert images.dtype == np.uint8 and np.array_equal(images, stored["arr_0"])


def test_images_are_those_of_the_command(run, here, capsys):
    assert (
        main(["sample", run.name, "--classes", "3,8", "--per-class", "2", "--seed", "4", "--set", "cfg_scale=3"]) == OK
    )
    assert capsys.readouterr().out == "grid.png: rows 3, 8\n"
    grid = np.asarray(Image.open("grid.png").convert("L"))
    images = run.sample(classes=[3, "8"], per_class=2, seed=4, cfg_scale=3)
    assert images.shape == (4, 8, 8, 1)
    for number, image in enumerate(images):
        row, column = 2 + 34 * (number // 2), 2 + 34 * (number % 2)  # enlarged four times, two pixels between them
        assert np.array_equal(grid[row : row + 32 : 4, column : column + 32 : 4], image[..., 0])


def test_settings_of_the_drawing(run):
    plain = run.sample([3], cfg_scale=0)
    nowhere = run.sample([3], cfg_scale=3, guidance="interval", interval={"low": 0.1, "high": 0.2})
    assert np.array_equal(nowhere, plain)
    assert not np.array_equal(run.sample([3], cfg_scale=100, guidance="constant"), plain)
    assert not np.array_equal(run.sample([3], seed=1, cfg_scale=0), plain)
    assert np.array_equal(run.grow([3], cfg_scale=0)[:, -1], plain)
    assert run.sample([3], candidates=2).shape == plain.shape  # the run's classifier picks
    assert run.config == TINY  # none of this is the run's own
    for settings, message in [
        ({"classes": ["nope"]}, "class: 'nope' is unknown; allowed: 0, 1, 2"),
        ({"classes": [10]}, "class: '10' is unknown (did you mean '1'?); allowed: 0, 1, 2"),
        ({"classes": [-1]}, "class: '-1' is unknown (did you mean '1'?); allowed: 0, 1, 2"),
        ({"cfg_scal": 3}, "field sample.cfg_scal: 'cfg_scal' is unknown (did you mean 'cfg_scale'?)"),
        ({"guidance": "rampe"}, "sample.guidance: 'rampe' is unknown (did you mean 'ramp'?)"),
        ({"interval": {"lo": 1}}, "field sample.interval.lo: 'lo' is unknown"),
        ({"per_class": 0}, "per_class: 0; allowed: 1 or more"),
        ({"seed": -1}, "seed: -1; allowed: 0 or more"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            run.sample(**settings)


def test_sampling_methods_on_the_command_line(run, here, capsys):
    """A method is a setting of evaluations: what is there stays done, and a new one is drawn by it."""
    before = json.loads((run.directory.path / "eval.json").read_text())["evaluations"]
    mvar.register("guidance", "mine")(type("Mine", (mvar.Guidance,), {"weight": lambda self, *_: 1.0}))
    assert here.is_done(TINY)
    mvar.evaluate(run, guidance="mine", filter="min_p", num_images=20, min_p={"p": 0.2})
    after = json.loads((run.directory.path / "eval.json").read_text())["evaluations"]
    (new,) = after.keys() - before.keys()
    assert {name: after[name] for name in before} == before and here.is_done(TINY)
    told = after[new]["sample"]
    assert (told["guidance"], told["filter"], told["min_p"]) == ("mine", "min_p", {"p": 0.2})
    assert "guidance" not in identity.as_document(TINY.sample)  # documents of today's runs keep their bytes
    drawn = run.sample([3], guidance="constant", cfg_scale=100)
    words = ["--classes", "3", "--per-class", "1", "--set", "guidance=constant", "cfg_scale=100"]
    assert main(["sample", run.name, *words]) == OK
    assert np.array_equal(np.asarray(Image.open("grid.png").convert("L"))[2:34:4, 2:34:4], drawn[0, ..., 0])
    capsys.readouterr()
    assert main(["sample", run.name, "--set", "guidance=interval", "interval.low=0.9"]) == USER_ERROR
    assert capsys.readouterr().err == ("mvar: error: sample.interval.low: 0.9 is above high; allowed: at most 0.8\n")
    assert main(["sample", run.name, "--set", "seed=3"]) == USER_ERROR
    assert "set: seed is given by --seed" in capsys.readouterr().err


# Likelihood and attention -------------------------------------------------------------------------------------------


def test_likelihood(run, here):
    from mvar.data.splits import load_images

    metrics = next(iter(run.directory.evaluations().values()))["metrics"]
    found = run.nll()
    assert found.bits == metrics["eval/nll_bits_per_token"] and found.error == metrics["eval/error"]
    assert found.bits_by_scale == tuple(metrics[f"eval/nll_bits_scale_{k:02d}"] for k in range(4))
    heldout = load_images(TINY.data, "heldout")
    assert found.num_images == len(heldout)
    pixels = np.stack([np.moveaxis(heldout.image(i, None), 0, -1) for i in range(len(heldout))])
    labels = heldout.labels.tolist()
    assert run.nll(pixels, labels).bits == pytest.approx(found.bits, rel=1e-6)
    wrong = [(label + 1) % 10 for label in labels]
    assert run.nll(pixels, wrong).bits != found.bits
    assert run.nll(split="train").num_images > found.num_images
    with pytest.raises(mvar.UserError, match=r"split: 'nope' is unknown; allowed: train, heldout$"):
        run.nll(split="nope")
    for images, classes, message in [
        (pixels[:2], [1], "labels: 1 for 2 images; allowed: one class an image"),
        (pixels[:2, :4], [1, 2], "images: uint8 (2, 4, 8, 1); allowed: uint8 (N, 8, 8, 1)"),
        (pixels[:2] / 255, [1, 2], "images: float64 (2, 8, 8, 1); allowed: uint8 (N, 8, 8, 1)"),
        (pixels[:1], ["x"], "class: 'x' is unknown"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            run.nll(images, classes)


def test_what_is_loaded_computes_as_its_run_does(run):
    """In fp32 by the run's own settings, whatever the process has; afterwards the process has that again."""

    def now():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    seen, before = set(), now()
    watching = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: seen.add(now()))
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        for call in (
            lambda: run.sample([3]),
            lambda: run.grow([3]),
            lambda: run.nll(np.zeros((1, 8, 8, 1), np.uint8), [3]),
            lambda: run.attention(images=2),
            lambda: run.attention_map(0, drawn=3),
            lambda: run.knockout(["own"], draws=1, images=2),
            lambda: run.probe("prefix", images=2, scales=[4], of=["heldout"], cfg_scale=[0], samples=2),
            lambda: mvar.explore(run, image=0).weights(query=29),
        ):
            seen.clear()
            call()
            assert seen == {("highest", False)} and now() == ("high", True)
    finally:
        watching.remove()
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_attention(run, here, capsys):
    """Kept where the command keeps it, and by both the same; of an image that is drawn too."""
    stats = run.attention()
    before = (run.directory.path / "attention.json").read_bytes()
    assert main(["attention", run.name]) == OK
    assert (run.directory.path / "attention.json").read_bytes() == before
    assert json.loads(before)["share"] == stats.share
    drawn = run.attention("self", images=4, cfg_scale=0)
    (folder,) = Path("results/attention").iterdir()
    assert json.loads((folder / "attention.json").read_text())["share"] == drawn.share
    rows = run.attention_map(0, image=2)
    torch.testing.assert_close(rows.sum(-1), torch.ones(30))
    torch.testing.assert_close(run.attention_map(0, image=2, query=29), rows[29])
    assert not torch.equal(run.attention_map(0, drawn=3), run.attention_map(0, drawn=3, seed=1))
    for call, message in [
        (lambda: run.attention(cfg_scale=3), "cfg_scale: only for images that are drawn; allowed: with source self"),
        (lambda: run.attention_map(7), "layer: '7' is unknown; allowed: 0, 1"),
        (lambda: run.attention_map(0, image=10**6), "image: 1000000; allowed: 0 to "),
        (lambda: run.attention_map(0, cfg_scale=3), "cfg_scale: only for an image that is drawn"),
        (lambda: run.attention("nope"), "source: 'nope' is unknown; allowed: heldout, self"),
        (lambda: run.attention(images=-1), "images: -1; allowed: 1 or more"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            call()


def test_files_are_what_the_run_is(run, here, capsys):
    for extra in ([], ["--what", "tokenizer"]):
        assert main(["export", run.name, "--out", f"{'vae' if extra else 'model'}.safetensors", *extra]) == OK
    files = mvar.load("model.safetensors", "vae.safetensors")
    settings = {name: getattr(TINY.sample, name) for name in ("cfg_scale", "top_k", "top_p")}
    assert np.array_equal(files.sample([3, 8], per_class=2, **settings), run.sample([3, 8], per_class=2))
    torch.testing.assert_close(files.attention_map(0, drawn=3, **settings), run.attention_map(0, drawn=3))
    drawn = files.attention("self", images=3)
    assert drawn.num_images == 3 and str(files.facts)
    images = run.sample(range(10))
    assert files.nll(images, range(10)) == run.nll(images, range(10))
    intra = override(TINY, {"model.pattern": "intra"})
    model = ScaleTransformer(intra.model, intra.token_space)
    save_weights(Path("intra.safetensors"), model, {"config": identity.as_document(intra)})
    for call, message in [
        (lambda: mvar.load("intra.safetensors", "vae.safetensors").attention("self"), "has no global layer"),
        (files.nll, "heldout images: a checkpoint has none; allowed: images of your own"),
        (lambda: files.sample([3], candidates=2), "sample.candidates: needs a classifier"),
        (files.attention, "images-from: ''; source heldout of a checkpoint needs it"),
        (lambda: mvar.evaluate("model.safetensors"), "tokenizer: not given"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            call()


# Making ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_is_what_the_command_does(tmp_path, monkeypatch, capsys):
    """The same run as `execute` makes, to the bit; called again it does nothing, and it goes on where it was."""
    monkeypatch.chdir(tmp_path)
    run = mvar.train(TINY)
    execute(TINY, Store("other"))
    assert run.directory.weights.read_bytes() == Store("other").run_of(TINY).weights.read_bytes()
    before = {path: path.stat().st_mtime_ns for path in run.directory.path.rglob("*") if path.is_file()}
    assert mvar.train(TINY).name == run.name
    assert before == {path: path.stat().st_mtime_ns for path in run.directory.path.rglob("*") if path.is_file()}
    assert main(["status"]) == OK
    assert "1 done" in capsys.readouterr().out


def test_evaluations_are_made_once(run, here):
    own = next(iter(run.directory.evaluations().values()))["metrics"]
    assert mvar.evaluate(run) == mvar.evaluate(run.name) == own
    weights = run.directory.weights.stat().st_mtime_ns
    found = mvar.evaluate(run, num_images=20, sample={"cfg_scale": 0})
    began = time.perf_counter()
    assert mvar.evaluate(run, num_images=20, cfg_scale=0) == found and time.perf_counter() - began < 1
    assert run.directory.weights.stat().st_mtime_ns == weights and len(run.directory.evaluations()) == 2
    table = mvar.runs()
    assert sorted(table["num_images"]) == [20, TINY.evaluation.num_images]
    assert table.set_index("num_images").loc[20, "eval/fid"] == found["eval/fid"]
    for settings, message in [
        ({"nope": 3}, "field: 'nope' is unknown; allowed: cfg_scale"),
        ({"train.steps": 3}, "field: 'train.steps' is unknown"),
        ({"sample": {"nope": 3}}, "field sample.nope: 'nope' is unknown"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            mvar.evaluate(run, **settings)


@pytest.mark.usefixtures("undrawn")
def test_the_table_of_runs_is_the_reports(run, here):
    import pandas

    assert main(["report"]) == OK
    with pandas.option_context("mode.string_storage", "python"):
        written = pandas.read_csv("results/report/tables/runs.csv")
    pandas.testing.assert_frame_equal(mvar.runs()[["run_id", "eval/fid"]], written[["run_id", "eval/fid"]], rtol=1e-9)
    assert list(written.columns) == list(mvar.runs().columns)
    Path("none").mkdir()
    assert mvar.runs("none").empty


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "options", "depth"),
    [
        ("4*mamba 4*global", {"width": 128}, 8),
        ("intra+mamba", {"depth": 3, "width": 32, "mamba": {"headdim": 32}}, 3),
        ("global", {}, 8),
        ("mamba 2*intra", {"vocab_size": 16, "patch_sides": (1, 2)}, 3),
    ],
)
def test_an_untrained_model(pattern, options, depth):
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    model = mvar.Model(pattern, **options).eval()
    assert torch.equal(torch.random.get_rng_state(), state)  # whoever makes one has random numbers of their own
    assert len(model.config.layers) == depth
    assert model.num_params == sum(p.numel() for p in model.parameters())
    length, vocab = model.space.schedule.num_tokens, model.space.vocab_size
    tokens = torch.randint(vocab, (2, length))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = model(tokens, torch.tensor([0, 1]))
    assert logits.shape == (2, length, vocab)
    if "mamba" not in pattern:  # torch does not see the scan
        codebook = counter.get_flop_counts().get("Model.quantizer", {})
        assert abs(counter.get_total_flops() - sum(codebook.values()) - 2 * model.flops) < 0.05 * 2 * model.flops
    again = mvar.Model(pattern, **options).eval()
    assert torch.equal(again(tokens, torch.tensor([0, 1])), logits)
    last = torch.cat((tokens[:, : -model.space.schedule.lengths[-1]], tokens.flip(1)), 1)[:, :length]
    assert torch.equal(model(last, torch.tensor([0, 1])), logits)  # the finest scale is only predicted
    assert model.generate([0, 1], cfg_scale=0).shape == (2, length)


def test_a_model_trains_and_its_codebook_does_not():
    model = mvar.Model("intra", depth=1)
    model(torch.zeros(1, 30, dtype=torch.int64), torch.tensor([3])).square().mean().backward()
    assert all(p.grad is not None for p in model.generator.head.parameters())
    assert not any(p.requires_grad for p in model.quantizer.parameters())


def test_rows_of_an_experiment():
    found = mvar.experiment("sizes", {"a": {"model.width": 32}, "b": TINY}, artefact="Sizes", notes=("small",))
    cells = found.cells(mvar.PRESETS["digits"])
    assert [(cell.label, cell.config.model.width) for cell in cells] == [("a", 32), ("b", 16)]
    assert (found.name, found.artefact, found.notes) == ("sizes", "Sizes", ("small",))
    with pytest.raises(UserError, match="'widht' is unknown"):
        mvar.experiment("sizes", {"a": {"model.widht": 32}}).cells(mvar.PRESETS["digits"])


def test_the_page_on_python(here, monkeypatch):
    """Every block of docs/python.md, in order; `digits` stands for the tiny run, and files for what was exported."""
    page = (ROOT / "docs/python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 5 and len(blocks[0].splitlines()) == 11
    monkeypatch.setitem(mvar.PRESETS, "digits", TINY)
    for extra, name in (([], "var_d16.pth"), (["--what", "tokenizer"], "vae_ch160v4096z32.pth")):
        assert main(["export", TINY.run_id, "--out", name, *extra]) == OK
    names = {}
    for block in blocks:
        exec(block.replace("digits-d8-w64-global", "digits-d2-w16-global"), names)
    assert names["images"].shape == (1, 8, 8, 1) and len(names["bits"]) == 4 and names["row"].shape == (30,)
    for kind in ("guidance", "filter"):  # the tables name what there is
        for name in KINDS[kind].paths:
            assert f"| `{name}` |" in page


@pytest.mark.parametrize(("page", "is_there"), [("README.md", "table"), ("docs/explore.md", "run")])
def test_python_on_other_pages(here, monkeypatch, page, is_there):
    """As above: `digits` and its model are the tiny run, of one layer less than what is looked at."""
    monkeypatch.setitem(mvar.PRESETS, "digits", TINY)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        exec(block.replace("digits-d8-w64-global", "digits-d2-w16-global").replace("layer=2", "layer=1"), names)
    assert is_there in names


def test_python_on_the_page_of_plug_ins():
    """The first block leaves out what a mixer is made of, and is told so; the second is whole."""
    registered, settings = re.findall(r"```python\n(.*?)```", (ROOT / "docs/plug-ins.md").read_text(), re.DOTALL)
    with pytest.raises(UserError, match=r"mixer 'recent': lacks .*; allowed: a class that has all that mvar.Mixer"):
        exec(registered, {})
    exec(settings, names := {})
    assert names["Settings"]().per_class == 300


def test_the_name_of_the_table_says_what_it_is():
    """`help(mvar.runs)` and editors: the package's name stands for the table of its runs."""
    import inspect
    import pydoc

    from mvar.api.tables import runs as table

    assert str(inspect.signature(mvar.runs)) == str(inspect.signature(table))
    assert inspect.getdoc(mvar.runs).startswith(inspect.getdoc(table).splitlines()[0])
    assert "results: where runs are kept" in pydoc.plain(pydoc.render_doc(mvar.runs))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mvar.train("digits", {"seed": 1}), r"results: {'seed': 1}; allowed: a directory; fields are given as"),
        (lambda: mvar.train("digits", "results", ["seed=1"]), r"settings: \['seed=1'\]; allowed: a dict of fields"),
        (lambda: mvar.evaluate("digits", "sample.cfg_scale=3"), r"settings: 'sample.cfg_scale=3'; allowed: a dict of"),
        (lambda: mvar.evaluate("digits", ["a"]), r"settings: \['a'\]; allowed: a dict of fields and values"),
    ],
)
def test_settings_are_a_dict(call, said):
    with pytest.raises(mvar.UserError, match=said):
        call()
