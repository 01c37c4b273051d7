"""`mvar knockout`: what is measured is kept and gone on with, of runs and of checkpoints; mistakes are one line."""

import json

import numpy as np
import pytest
import torch
from official import GOLDEN
from PIL import Image
from untrained_runs import save_stirred

import mvar
from mvar.checkpoints.published import load_generator
from mvar.checkpoints.weights import save_weights
from mvar.cli import main
from mvar.config import override
from mvar.errors import OK, USER_ERROR
from mvar.presets import PRESETS
from mvar.probes.cut_text import parse_cut
from mvar.probes.knockout import Bench, standard_cuts
from mvar.runs.store import Store
from mvar.runs.wiring import Stages


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run whose model is only initialised: store, run and model."""
    config = override(PRESETS["smoke"], {"model.pattern": "2*global 2*intra+mamba", "data.heldout_fraction": 0.05})
    store = Store(tmp_path_factory.mktemp("knockout") / "results")
    run, model = save_stirred(store, config)
    Stages(config, store).tokens.run()
    return store, run, model


@pytest.fixture
def fresh(made):
    """The same, nothing measured yet."""
    for path in made[1].path.glob("knockout*"):
        path.unlink()
    return made


def command(made, *more):
    return ["knockout", made[1].name, "--results", str(made[0].root), *more]


def test_a_table_and_a_file(fresh, capsys):
    wanted = ("--cut", "own", "--cut", "state:2", "--cut", "own")  # one of them twice
    assert main(command(fresh, *wanted, "--draws", "2", "--images", "0")) == OK
    out, _, by_scale = capsys.readouterr().out.partition("By scale")
    assert "more cuts" not in by_scale and [line.split()[:1] for line in out.splitlines()].count(["own"]) == 1
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()[:1] in (["own"], ["state:2"])}
    effect = mvar.load(fresh[1].name, results=fresh[0].root).knockout(["own"], draws=2)["own"]
    assert rows["own"][2] == f"{effect.change:+.3f}" and rows["own"][4] == f"{effect.control:+.3f}"
    assert rows["state:2"][1] == "–" and rows["state:2"][4:6] == ["–", "–"]
    (row,) = [line.split() for line in by_scale.splitlines() if line.split()[1:2] == ["3×3"]]  # `state` has no controls
    found = effect.by_scale[2]
    assert row[2:7:2] == [f"{found.change:+.3f}", f"{found.control:+.3f}", f"{found.beyond:+.3f}"] and row[0] == "own"
    values = json.loads((fresh[1].path / "knockout.json").read_text())
    assert list(values["effects"]) == ["own", "state:2"] and values["measured"]["source"] == "heldout"


def test_what_is_there_is_not_measured_again_and_a_killed_call_goes_on(fresh, monkeypatch):
    trained = mvar.load(fresh[1].name, results=fresh[0].root)
    calls, real = [], Bench.effect

    def effect(self, cut, draws):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(cut.text)
        return real(self, cut, draws)

    monkeypatch.setattr(Bench, "effect", effect)
    with pytest.raises(KeyboardInterrupt):
        trained.knockout(draws=1)
    standard = [cut.text for cut in standard_cuts(trained.model)]
    assert calls == standard[:3]
    kept = json.loads((fresh[1].path / "knockout.json").read_text())["effects"]
    monkeypatch.setattr(Bench, "effect", real)
    found = trained.knockout(draws=1)
    assert list(found.effects) == standard
    assert {text: json.loads((fresh[1].path / "knockout.json").read_text())["effects"][text] for text in kept} == kept
    whole = Bench(trained.measurable("heldout")[0].open(), trained.config.runtime.sample_batch)
    assert found["own"] == whole.effect(parse_cut("own"), 1)
    monkeypatch.setattr(Bench, "effect", None)
    monkeypatch.setattr(Bench, "bits", None)
    assert mvar.load(fresh[1].name, results=fresh[0].root).knockout(draws=1).effects == found.effects


def test_other_weights_draws_or_a_damaged_file_are_measured_anew(fresh):
    store, run, model = fresh

    def measure(draws=1):
        return mvar.load(run.name, results=store.root).knockout(["own"], draws=draws)

    before, weights = measure(), run.weights.read_bytes()
    assert len(measure(2)["own"].controls) == 2
    assert len(measure(1)["own"].controls) == 2  # more that are there stay
    (run.path / "knockout.json").write_text("{")
    assert measure().effects == before.effects
    document = json.loads((run.path / "knockout.json").read_text())
    for name in ("controls_by_scale", "beyond_sd_by_scale"):  # of a time before: there, and measured where it is asked
        del document["effects"]["own"][name]
    (run.path / "knockout.json").write_text(json.dumps(document))
    assert mvar.load(run.name, results=store.root).kept_cuts["own"].by_scale == []
    assert measure().effects == before.effects
    with torch.no_grad():
        model.blocks[0].attn.mat_qkv.weight *= 3
    save_weights(run.weights, model, {})
    assert measure()["own"].change != before["own"].change
    run.weights.write_bytes(weights)
    with torch.no_grad():
        model.blocks[0].attn.mat_qkv.weight /= 3
    assert measure().effects == before.effects


DAMAGES = (
    {"change": "hello"},
    {"change": None},
    {"controls": [0.1, "x"]},
    {"controls": [0.1]},
    {"change_by_scale": [0.1]},
    {"controls_by_scale": [[0.1], [0.2]]},
    {"num_images": "x"},
    {"cut": "coarser"},
)


def test_damaged_effects_are_measured_anew_and_the_others_stay(fresh):
    trained, path = mvar.load(fresh[1].name, results=fresh[0].root), fresh[1].path / "knockout.json"
    own = trained.knockout(["own"], draws=2)["own"]
    document = json.loads(path.read_text())
    whole = document["effects"]["own"]
    damaged = {f"scale:{k}": whole | {"cut": f"scale:{k}"} | damage for k, damage in enumerate(DAMAGES)}
    sound, more = {"coarser": whole | {"cut": "coarser"}}, {"own": whole | {"sd": "x"}, "state:2": {}, "branch": whole}
    path.write_text(json.dumps(document | {"effects": damaged | more | sound, "standard": ["zzz"]}))
    assert list(trained.kept_cuts.effects) == ["coarser"]
    assert trained.knockout(["own"], draws=2)["own"] == own
    found = json.loads(path.read_text())
    assert found["effects"] == sound | {"own": whole} and found["standard"] == []
    for damage in ({"num_images": "x"}, {"sides": ["a"]}, {"bits": None}, {"effects": 1}):
        path.write_text(json.dumps(found | damage))
        assert trained.kept_cuts is None


def test_fewer_images_are_kept_apart(fresh):
    trained = mvar.load(fresh[1].name, results=fresh[0].root)
    assert trained.knockout(["own"], draws=1, images=5)["own"].num_images == 5
    assert not (fresh[1].path / "knockout.json").exists()
    assert len(list((fresh[0].root / "knockout").glob("*/knockout.json"))) == 1


def test_a_published_checkpoint(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(10):
        path = tmp_path / "pictures" / f"class{number}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(rng.integers(0, 255, (80, 70, 3), dtype=np.uint8)).save(path)
    files = ["--checkpoint", str(GOLDEN / "var_l2" / "state.safetensors"), "--tokenizer"]
    files += [str(GOLDEN / "tok_full_q4" / "vae.safetensors"), "--results", str(tmp_path / "results")]
    wanted = ["--cut", "branch:global", "--cut", "own", "--draws", "1"]
    code = main(["knockout", *files, *wanted, "--images-from", str(tmp_path / "pictures")])
    out, err = capsys.readouterr()
    assert code == OK, err
    assert "branch:global" in out and "10 held-out images" in out
    assert main(["knockout", *files, *wanted]) == USER_ERROR
    assert "images-from" in capsys.readouterr().err


def test_fid_of_a_published_checkpoint(checkpoint, capsys, monkeypatch):
    files = [*checkpoint, "--json"]
    judged = ["--evaluation", "extractor=means", "num_images=20"]
    assert main(["knockout", *files, "--cut", "own", "--draws", "1", "--fid", "--fid-draws", "1", *judged]) == OK
    effect = json.loads(capsys.readouterr().out)["effects"]["own"]
    assert effect["fid"] > 0 and effect["fid_images"] == 20
    last = load_generator(GOLDEN / "var_l2" / "state.safetensors")[0].schedule.num_scales
    wanted = ["probe", "prefix", *files, "--set", "of=heldout", "cfg_scale=0", f"scales={last}"]
    assert main([*wanted, *judged]) == OK
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["fid"] > 0 and row["num_images"] == 20
    assert main(wanted) == OK  # nothing judges
    assert json.loads(capsys.readouterr().out)["rows"][0]["fid"] is None
    monkeypatch.delenv("MVAR_INCEPTION", raising=False)
    for given, said in (
        ([], "a file that is there, or another extractor, --evaluation extractor=NAME: "),
        (["--evaluation", "extractor=classifier"], "'classifier' is trained on the training images of a run"),
        (["--evaluation", "extractor=none"], "evaluation.extractor: 'none' is unknown"),
        (["--evaluation", "extractors=means"], "evaluation.extractors"),
        (["--evaluation", "extractor=means", "reference=none.npz"], "evaluation.reference: no file 'none.npz'"),
    ):
        assert main(["knockout", *files, "--cut", "own", "--draws", "1", "--fid", *given]) == USER_ERROR
        said_of_plug_in, *lines = capsys.readouterr().err.splitlines()
        assert said_of_plug_in.startswith("plug-ins: means") and len(lines) == 1 and said in lines[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--cut", "owm"], "cut: 'owm' is unknown (did you mean 'own'?)"),
        (["--cut", "own,layer=7"], "cut 'own,layer=7': layer 7; allowed: 0 to 3"),
        (
            ["--cut", "branch:linear"],
            "has no such part; allowed: own, coarser, scale:K, all, state, state:K, branch:gl",
        ),
        (["--draws", "0"], "draws: 0; allowed: 1 or more"),
        (["--fid-draws", "0"], "fid_draws: 0; allowed: 1 or more"),
        (["--images", "-1"], "images: -1; allowed: 1 or more"),
        (["--tokenizer", "x"], "tokenizer: a run has its own"),
        (["--images-from", "x"], "images-from: a run has its own images"),
        (["--evaluation", "extractor=inception"], "evaluation: a run has its own; allowed: --evaluation with --checkp"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_measured(fresh, capsys, monkeypatch, more, said):
    monkeypatch.setattr(Bench, "effect", None)
    assert main(command(fresh, *more)) == USER_ERROR
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and "Traceback" not in out + err
    assert not (fresh[1].path / "knockout.json").exists()
