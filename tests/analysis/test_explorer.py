"""The explorer in Python: what the page holds is what was computed, its size is kept, mistakes are one line."""

import json
import re
from base64 import b64decode, b64encode
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from explored import NASTY, data_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from official import GOLDEN
from PIL import Image

import mvar
from mvar.analysis.explorer.chosen import FEW_TOKENS, Choice
from mvar.analysis.explorer.effects import effects_of
from mvar.analysis.explorer.packed import pack, unpack_row
from mvar.analysis.explorer.page import for_script, module
from mvar.analysis.explorer.view import Side
from mvar.cli import main
from mvar.errors import OK, USER_ERROR, UserError, ranges
from mvar.probes.knockout import Effect
from mvar.probes.knockout_kept import Knockout
from mvar.probes.single_maps import each_map
from mvar.scales import ScaleSchedule


@pytest.fixture
def runs(explored_store):
    store, names = explored_store
    return {key: mvar.load(name, results=store.root) for key, name in names.items()}


def command(explored_store, run, *more):
    return ["explore", explored_store[1][run], "--results", str(explored_store[0].root), *map(str, more)]


# Bytes ----------------------------------------------------------------------------------------------------------------


@given(
    arrays.arrays(np.float64, (14, 14), elements=st.sampled_from([0, 1e-12, 1e-4, 0.3, 1, 70])),
    st.integers(0, 13),
)
def test_a_weight_is_unpacked_within_half_a_step(values, query):
    schedule = ScaleSchedule((1, 2, 3))
    blocks = []
    for step in schedule.steps():
        block = torch.from_numpy(values[step.start : step.stop, : step.stop] + 1e-30)
        blocks.append((block / block.sum(1, keepdim=True)).float())
    data, means = pack(iter(blocks), schedule)
    scale = schedule.levels[query]
    row, found = blocks[scale][query - schedule.offsets[scale]].numpy(), unpack_row(data, schedule, query)
    assert (np.abs(found.weights - row) <= found.step / 2 * (1 + 1e-5) + 1e-30).all()
    parts = np.split(row, schedule.offsets[1 : scale + 1])
    np.testing.assert_allclose(found.mass, [part.sum(dtype=np.float64) for part in parts], rtol=1e-6)
    np.testing.assert_allclose(found.step, np.repeat([p.max() for p in parts], list(map(len, parts))) / 255, rtol=1e-6)
    assert found.entropy == pytest.approx(-sum(w * np.log(w) for w in row.astype(float) if w > 0), abs=1e-5)
    own = [unpack_row(data, schedule, i).mass[-1] for i in range(14)]
    assert means.own == pytest.approx(np.mean(own), rel=1e-5)


# Page -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(explored_store, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "a.html"
    store, names = explored_store
    both = [mvar.load(names[key], results=store.root) for key in ("maps", "mamba")]
    explorer = mvar.explore(*both, image=[0, 3], layer=2, mixer="markov", head=1)
    kept = explorer.page(path)
    return explorer, path, kept


def test_the_page_holds_what_was_computed(page):
    explorer, path, kept = page
    data = data_of(path)
    assert data["leftOut"] == kept.left_out == [] and len(data["maps"]) == 2 * (4 * 3 + 2 * 3 + 2 * (3 + 1))
    schedule = explorer.subjects[0].schedule
    for s, subject in enumerate(explorer.subjects):
        told, shown = data["subjects"][s], subject.pictures[1]
        parts = [(part["layer"], part["mixer"], part["kind"], part["heads"]) for part in told["parts"]]
        assert parts == [(part.layer, part.mixer, part.kind, part.num_heads) for part in subject.parts]
        assert len(told["sees"]) == len({part.mixer for part in subject.parts})
        exact = {}
        wanted = {part: subject.heads(part) for part in range(len(subject.parts))}

        def take(part, head, blocks, exact=exact):
            exact[part, head] = list(blocks)

        each_map(subject.model, shown.label, shown.inputs, wanted, take)
        means = {(row[0], row[1]): row[2:] for row in data["means"][f"{s}/1"]}
        assert len(means) == len(exact)
        for (part, head), blocks in exact.items():
            name = "mean" if head is None else head
            packed = b64decode(data["maps"][f"{s}/1/{part}/{name}"])
            for query in (0, 3, 29):
                scale = schedule.levels[query]
                row = blocks[scale][query - schedule.offsets[scale]].numpy()
                found = unpack_row(packed, schedule, query)
                assert (np.abs(found.weights - row) <= found.step / 2 * (1 + 1e-5) + 1e-30).all()
                looked_at = [np.count_nonzero(keys) for keys in np.split(row, schedule.offsets[1 : scale + 1])]
                assert told["sees"][told["parts"][part]["sees"]][query] == looked_at
                assert explorer.at(sides=(Side(s, part),)).sees(query).tolist() == looked_at
            own = torch.cat([block[:, schedule.offsets[k] :].sum(1) for k, block in enumerate(blocks)]).mean()
            assert means[part, name][0] == pytest.approx(float(own), rel=1e-5)


def test_the_page_is_one_file_that_runs_no_other_script(page):
    path = page[1]
    text = path.read_text()
    (digest,) = re.findall(r"script-src 'sha256-([^']+)'", text)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
    assert [kind for kind, _ in scripts] == [' id="data" type="application/json"', ' type="module"']
    assert b64encode(sha256(scripts[1][1].encode()).digest()).decode() == digest
    assert "default-src 'none'" in text and not re.search(r"(src|href)=|@import|url\(", text.replace(scripts[1][1], ""))
    assert "</script" not in module() and NASTY not in text
    assert data_of(path)["subjects"][0]["pictures"][0]["class"] in (NASTY, *"123456789")
    assert json.loads(for_script({"a": NASTY + "<!-- &"})) == {"a": NASTY + "<!-- &"}


def test_the_lines_of_python_make_the_view(page, explored_store, monkeypatch):
    monkeypatch.setenv("MVAR_RESULTS", str(explored_store[0].root))
    subject = data_of(page[1])["subjects"][0]
    run = eval(subject["load"], {"mvar": mvar})
    again = eval(f"mvar.explore(run, {subject['pictures'][1]['arguments']}, query=9)", {"mvar": mvar, "run": run})
    assert run.name == explored_store[1]["maps"] and again.subjects[0].pictures[0].name == "held-out image 3"
    np.testing.assert_array_equal(again.weights(), again.at(picture=0).weights(9))


def test_a_page_has_no_folder_of_this_machine(runs, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "own.png")
    explorer = mvar.explore(runs["maps"], file=tmp_path / "own.png")
    explorer.page(tmp_path / "a.html", layers=[0], heads=[0])
    assert str(tmp_path) not in (tmp_path / "a.html").read_text()
    sent, (subject,) = data_of(tmp_path / "a.html")["subjects"][0], explorer.subjects
    assert sent["load"] == f"mvar.load({runs['maps'].name!r})" and sent["pictures"][0]["arguments"] == "file='own.png'"
    here = subject.describe()
    assert eval(here["load"], {"mvar": mvar}).directory.path == runs["maps"].directory.path
    assert here["pictures"][0]["arguments"] == f"file={str(tmp_path / 'own.png')!r}"


def test_a_smaller_page_lacks_the_last_heads_and_says_so(explored_store, tmp_path, capsys):
    whole, small = tmp_path / "whole.html", tmp_path / "small.html"
    assert main(command(explored_store, "maps", "--images", 2, "--out", whole)) == OK
    size = whole.stat().st_size
    capsys.readouterr()
    assert main(command(explored_store, "maps", "--images", 2, "--max-mb", (size - 9000) / 1e6, "--out", small)) == OK
    said, data = capsys.readouterr().out, data_of(small)
    assert small.stat().st_size <= size - 9000
    lost = set(data_of(whole)["maps"]) - set(data["maps"])
    assert lost and {key.split("/")[-1] for key in lost} == {"1"}
    assert data["leftOut"][0] in said and data["leftOut"][0].startswith(f"{len(lost)} of 24 maps did not fit")
    assert "peak memory" in said
    assert main(command(explored_store, "maps", "--max-mb", 0.01, "--out", small)) == USER_ERROR
    assert re.search(r"max-mb: 0.01; allowed: 0.0\d or more for 4 images", capsys.readouterr().err)


def test_chosen_layers_and_heads(explored_store, tmp_path, capsys):
    out = tmp_path / "a.html"
    assert (
        main(command(explored_store, "mamba", "--images", 1, "--layers", "1,3", "--heads", 1, "--out", out, "--json"))
        == OK
    )
    answer = json.loads(capsys.readouterr().out)
    data = data_of(out)
    assert set(data["maps"]) == {f"0/0/{p}/{h}" for p, h in [(1, "mean"), (1, 1), (4, "mean"), (4, 1), (5, "mean")]}
    assert answer["maps"] == 5 and answer["left_out"] == data["leftOut"] and answer["peak_mib"] > 50
    assert data["leftOut"] == [
        "Maps of layers 0, 2 are not in this file: --layers chooses others.",
        "Maps of heads 0 are not in this file: --heads chooses others.",
    ]
    # the matrix knows all attention all the same; the reach is explored_store for what is chosen only
    assert {(row[0], row[1]) for row in data["means"]["0/0"]} == {
        *((p, h) for p in (0, 1, 2, 4) for h in ("mean", 0, 1)), (5, "mean"),
    }  # fmt: skip


def test_of_models_with_many_tokens_four_layers(runs):
    subject = mvar.explore(runs["maps"], image=0).subjects[0]
    assert Choice().parts(subject) == [0, 1, 2, 3]

    many = SimpleNamespace(
        model=SimpleNamespace(config=SimpleNamespace(depth=16)),
        schedule=SimpleNamespace(num_tokens=FEW_TOKENS + 1),
        parts=[SimpleNamespace(layer=layer) for layer in range(16)],
    )
    assert Choice().parts(many) == [0, 5, 10, 15]


@pytest.mark.slow
def test_a_published_checkpoint(tmp_path, capsys, monkeypatch):
    files = ["--checkpoint", str(GOLDEN / "var_l2" / "state.safetensors"), "--tokenizer"]
    files += [str(GOLDEN / "tok_full_q4" / "vae.safetensors"), "--results", str(tmp_path / "results")]
    out = tmp_path / "a.html"
    assert main(["explore", *files, "--images", "1", "--out", str(out)]) == OK, capsys.readouterr().err
    (subject,) = data_of(out)["subjects"]
    assert subject["pictures"][0]["name"] == "drawn, seed 0" and data_of(out)["maps"]
    for path in (files[1], files[3]):
        (tmp_path / Path(path).name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    run = eval(subject["load"], {"mvar": mvar})
    again = eval(f"mvar.explore(run, {subject['pictures'][0]['arguments']})", {"mvar": mvar, "run": run})
    row = unpack_row(b64decode(data_of(out)["maps"]["0/0/0/mean"]), again.subjects[0].schedule, 7)
    assert (np.abs(row.weights - again.at(sides=(Side(0, 0),)).weights(7)) <= row.step * 0.501 + 1e-30).all()


# Views ----------------------------------------------------------------------------------------------------------------


def test_weights_are_those_of_the_model(runs, tmp_path):
    run = runs["maps"]
    explorer = mvar.explore(run, image=2, layer=0, head=1, query=17)
    expected = run.attention_map(0, 1, image=2, query=17).numpy()  # of one query: another product
    np.testing.assert_allclose(explorer.weights(), expected, rtol=1e-5)
    explorer.save(tmp_path / "view.pdf")
    assert (tmp_path / "view.pdf").read_bytes()[:4] == b"%PDF" and not (tmp_path / "view.png").exists()
    with pytest.raises(UserError, match=r"path: .*view.svg; allowed: a name that ends in .png or .pdf"):
        explorer.save(tmp_path / "view.svg")


@pytest.mark.slow
def test_two_runs_and_two_heads_are_drawn(runs):
    from matplotlib.text import Text

    explorer = mvar.explore(runs["mamba"], runs["maps"], image=0, layer=2, mixer="mamba", beside={"run": 1, "head": 0})
    figure = explorer.figure()
    said = " ".join(text.get_text() for text in figure.findobj(Text))
    assert "layer 2, mamba, reach" in said and "layer 0, global, head 0" in said and runs["maps"].name[:12] in said
    assert explorer.weights(side=0).sum() == pytest.approx(1, abs=1e-5)


def test_drawn_and_own_images(runs, tmp_path):
    run = runs["maps"]
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(15, 20)).save(tmp_path / "own.png")
    seen = mvar.explore(run, drawn=[3], seed=5, file=tmp_path / "own.png", file_class=7).subjects[0].pictures
    assert [(p.name, p.class_name) for p in seen] == [("drawn, seed 5", "3"), ("own.png", "7")]
    np.testing.assert_array_equal(seen[0].stages[-1], run.sample([3], seed=5)[0])
    assert seen[0].inputs.shape == seen[1].inputs.shape and seen[1].stages.shape == seen[0].stages.shape


def test_the_first_images_are_of_different_classes(runs):
    names = [p.class_name for p in mvar.explore(runs["maps"]).subjects[0].pictures]
    assert len(names) == len(set(names)) == 4


def effect(cut, change):
    return Effect(cut, 10, 1.0, change, 0.1, (), (), None, (), None, None)


def test_effects_belong_to_cells(runs):
    cuts = {"own,layer=0": 0.5, "own,layer=0,head=1": 0.25, "own,layer=2": 0.125, "state,layer=3": -1.0, "own": 9.0}
    measured = Knockout({cut: effect(cut, change) for cut, change in cuts.items()}, (1, 2), 10, 1.0)
    parts = mvar.explore(runs["mamba"], image=0).subjects[0].parts
    assert [part.mixer for part in parts] == ["global", "global", "intra", "mamba", "intra", "mamba"]
    found = effects_of(parts, measured).to_json()
    assert found == {
        "images": 10,
        "changes": {"own": [[0, "mean", 0.5], [0, 1, 0.25], [2, "mean", 0.125]], "state": [[5, "mean", -1.0]]},
    }
    assert effects_of(parts, None).to_json() == {"images": 0, "changes": {}}


def test_what_knockout_measured_is_on_the_page(runs, tmp_path):
    run = runs["maps"]
    measured = run.knockout(["own,layer=0", "own,layer=0,head=1"], draws=1)
    mvar.explore(run, image=0).page(tmp_path / "a.html", layers=[0])
    effects = data_of(tmp_path / "a.html")["subjects"][0]["effects"]
    assert effects["images"] == measured.num_images
    expected = [[0, "mean", measured["own,layer=0"].change], [0, 1, measured["own,layer=0,head=1"].change]]
    assert [row[:2] for row in effects["changes"]["own"]] == [row[:2] for row in expected]
    assert [row[2] for row in effects["changes"]["own"]] == pytest.approx([row[2] for row in expected], rel=1e-5)
    (run.directory.path / "knockout.json").unlink()


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--layers", "4"], "layers: 4; allowed: 0 to 3"),
        (["--layers", "1-x"], "layers: '1-x'; allowed: numbers and ranges, e.g. 0,3-5"),
        (["--heads", "2"], "heads: 2; allowed: 0 to 1"),
        (["--images", "0"], "images: 0; allowed: 1 to 1,000"),
        (["--max-mb", "0"], "max-mb: 0; allowed: more than 0, less than 10,000"),
        (["--seed", "-1"], "seed: -1; allowed: 0 or more"),
        (["--image-class", "3"], "image-class: only for pictures of your own; allowed: with --image FILE"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--beside", "nothing"], "run: 'nothing' is unknown"),
        (["--classes", "12"], "12"),
        (["--num-heads", "3"], "num-heads: a run has its own; allowed: --num-heads with --checkpoint only"),
        (["--out", "nowhere/a.html"], "out: nowhere/a.html: there is no folder nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(explored_store, tmp_path, monkeypatch, capsys, more, said):
    monkeypatch.chdir(tmp_path)
    assert main(command(explored_store, "maps", *more)) == USER_ERROR
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"query": 30}, "query: 30; allowed: 0 to 29"),
        ({"layer": 4}, "layer: 4; allowed: 0 to 3"),
        (
            {"layer": 2, "mixer": "mambo"},
            r"mixer: 'mambo' is unknown \(did you mean 'mamba'\?\); allowed: intra, mamba",
        ),
        ({"layer": 2, "mixer": "mamba", "head": 0}, "head: 0 of layer 2, mamba; allowed: None: it has no maps"),
        ({"head": 2}, "head: 2 of layer 0, global; allowed: 0 to 1, None for their mean"),
        ({"beside": {"run": 1}}, "run: 1; allowed: 0 to 0"),
        ({"beside": {"leyer": 1}}, "beside: 'leyer' is unknown"),
        ({"image": 10**6}, "image: 1000000; allowed: 0 to"),
        ({"file_class": 1}, "file_class: only for pictures of your own"),
    ],
)
def test_what_is_not_there_is_refused(runs, wanted, said):
    with pytest.raises(UserError, match=said):
        mvar.explore(runs["mamba"], **({"image": 0} | wanted))


def test_no_run_is_refused():
    with pytest.raises(UserError, match="runs: none; allowed: one or more"):
        mvar.explore()


def test_ranges():
    assert [ranges(n) for n in ([], [3], [0, 1, 2, 7, 8, 11])] == ["", "3", "0-2, 7-8, 11"]
