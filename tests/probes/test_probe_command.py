"""`mvar probe`: rows are kept and gone on with, of runs, checkpoints and plug-ins; mistakes are one line."""

import json
import re
from pathlib import Path

import pytest

import mvar
from mvar.checkpoints.weights import load_weights, save_weights
from mvar.cli import main
from mvar.errors import OK, USER_ERROR
from mvar.probes.corruption import Corruption
from mvar.probes.prefix import Prefix
from mvar.registries import PROBES
from mvar.runs.wiring import kept_probes
from mvar.transformer import ScaleTransformer

FEW = ("--set", "of=heldout", "cfg_scale=0", "samples=20")


def command(made, *more, name="prefix"):
    return ["probe", name, made[1].name, "--results", str(made[0].root), *more]


def load(made):
    return mvar.load(made[1].name, results=made[0].root)


def test_a_table_a_file_and_a_document(fresh, capsys):
    assert main(command(fresh, *FEW, "scales=3,4")) == OK
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    document = json.loads((fresh[1].path / "probes/prefix.json").read_text())
    assert [row["case"]["scales"] for row in document["rows"]] == [3, 4]
    first, last = (row["values"] for row in document["rows"])
    assert (
        lines["3"][1] == f"{first['fid']:.2f}"
        and lines["4"][2:4] == ["–", "–"]
        and "heldout," in lines[fresh[1].name + ":"]
    )
    assert main(command(fresh, *FEW, "scales=4", "--json")) == OK
    answer = json.loads(capsys.readouterr().out)
    assert answer["rows"] == [document["rows"][1]["case"] | last] and answer["model"] == fresh[1].name
    (kept,) = kept_probes(*fresh)
    assert kept.probe == "prefix" and len(kept.rows) == 2


def test_what_is_there_is_not_measured_again_and_a_killed_call_goes_on(fresh, monkeypatch):
    real, calls = Prefix.measure, []

    def measure(self, case, subject):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(case["scales"])
        return real(self, case, subject)

    wanted = {"of": ["heldout"], "cfg_scale": [0], "samples": 10, "scales": [1, 4, 3]}
    monkeypatch.setattr(Prefix, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        load(fresh).probe("prefix", **wanted)
    assert calls == [1, 4]
    monkeypatch.setattr(Prefix, "measure", lambda self, case, subject: real(self, case, subject) | {"num_images": -1})
    assert [row["num_images"] for row in load(fresh).probe("prefix", **wanted).rows] == [10, 10, -1]
    monkeypatch.setattr(Prefix, "measure", None)
    assert [row["scales"] for row in load(fresh).probe("prefix", **wanted | {"scales": [3, 1]}).rows] == [3, 1]


def test_other_weights_other_sampling_or_a_damaged_file_are_measured_anew(fresh, monkeypatch, tmp_path):
    def measure(**more):
        return load(fresh).probe("prefix", of=["heldout"], samples=10, scales=[2], **{"cfg_scale": [0], **more}).rows

    before, weights = measure(), fresh[1].weights.read_bytes()
    assert measure(seed=1)[0]["fid"] != before[0]["fid"]
    three = measure(cfg_scale=[3], filtered=True)
    assert three[0]["cfg_scale"] == 3
    path = fresh[1].path / "probes/prefix.json"
    assert len(json.loads(path.read_text())["rows"]) == 3
    before_named = {"of": ["heldout"], "samples": 10, "scales": [2], "guidance": [3], "filtered": True}
    assert load(fresh).probe("prefix", **before_named).rows == three and len(json.loads(path.read_text())["rows"]) == 3
    path.write_text("{")
    assert measure() == before
    for field in ("bits", "fid", "bits_half_width"):
        document = json.loads(path.read_text())
        document["rows"][0]["values"][field] = "x"
        path.write_text(json.dumps(document))
        assert kept_probes(*fresh) == [] and measure() == before
    monkeypatch.setattr(Prefix, "version", 2)
    assert measure() == before and json.loads(path.read_text())["version"] == 2
    config = fresh[1].config()
    model = ScaleTransformer(config.model, config.token_space)
    model.load_state_dict({k: v * 1.5 for k, v in load_weights(fresh[1].weights)[0].items()})
    save_weights(fresh[1].weights, model, {"class_names": [str(n) for n in range(10)]})
    assert measure()[0]["bits"] != before[0]["bits"]
    fresh[1].weights.write_bytes(weights)
    assert measure() == before
    assert measure(out=tmp_path / "here") == before and (tmp_path / "here/probes/prefix.json").is_file()


def test_rows_of_a_field_that_was_called_otherwise_are_those_of_today(fresh, monkeypatch):
    wanted = {"of": ["heldout"], "samples": 10, "scales": [2], "cfg_scale": [0]}
    before, path = load(fresh).probe("prefix", **wanted).rows, fresh[1].path / "probes/prefix.json"
    document = json.loads(path.read_text())
    document["rows"][0]["case"]["guidance"] = document["rows"][0]["case"].pop("cfg_scale")
    path.write_text(json.dumps(document))
    (kept,) = kept_probes(*fresh)
    assert kept.rows == before
    assert load(fresh).probe("prefix", **wanted | {"scales": [2, 3]}).rows[:1] == before
    assert ["cfg_scale" in row["case"] for row in json.loads(path.read_text())["rows"]] == [True, True]
    monkeypatch.setattr(Prefix, "measure", None)
    assert load(fresh).probe("prefix", **wanted).rows == before


def test_rows_of_before_a_field_there_was_are_read_and_a_damaged_one_costs_no_other(fresh, monkeypatch):
    before = load(fresh).probe("corruption", scales=[1, 2], rates=[1], samples=10).rows
    path = fresh[1].path / "probes/corruption.json"
    document = json.loads(path.read_text())
    del document["rows"][0]["case"]["of"], document["rows"][1]["values"]["fid"]
    path.write_text(json.dumps(document))
    measured, real = [], Corruption.measure
    monkeypatch.setattr(Corruption, "measure", lambda self, case, s: measured.append(case) or real(self, case, s))
    assert load(fresh).probe("corruption", scales=[1, 2], rates=[1], samples=10).rows == before
    assert [case["scale"] for case in measured] == [2]


def test_a_case_that_is_asked_for_twice_is_one_row(fresh):
    rows = load(fresh).probe("state", keep=[4, 4], precision=["whole", "whole"], samples=2).rows
    assert [row["keep"] for row in rows] == [4]


@pytest.mark.slow
def test_a_checkpoint_has_held_out_images_alone(checkpoint, capsys):
    def ask(*words):
        code = main(["probe", *words[:1], *checkpoint, *words[1:]])
        return code, *capsys.readouterr()

    judged, few = ("--evaluation", "extractor=means", "num_images=20"), ("--set", "scales=1", "rates=1")
    code, out, err = ask("corruption", *few, *judged, "--json")
    (row,) = json.loads(out)["rows"]
    assert code == OK and row["of"] == "heldout" and row["fid"] > 0 and row["num_images"] == 20, err
    code, out, _ = ask("corruption", *few)
    (title,) = [line for line in out.splitlines() if ": corruption" in line]
    assert code == OK and "drawn" not in title and title.strip().endswith("scale 1, replaced by other, seed 0")
    code, out, _ = ask("prefix", "--set", "scales=1", "--json")
    assert code == OK and {row["of"] for row in json.loads(out)["rows"]} == {"heldout"}
    code, _, err = ask("prefix", "--set", "of=train")
    assert code == USER_ERROR and "of: train; a checkpoint has no training images; allowed: heldout" in err


def test_the_list_says_what_can_be_set(capsys):
    assert main(["probe"]) == OK
    out = capsys.readouterr().out
    for name in PROBES.names():
        assert f"\n{name}: " in f"\n{out}"
        for field in PROBES.find(name).Settings.model_fields:
            assert f"    {field}=" in out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["scales=5"], "scales: 5; allowed: 0 to 4"),
        (["of=test"], "of: 'test' is unknown; allowed: train, heldout"),
        (["cfg_scale=x"], "cfg_scale.0: 'x': Input should be a valid number"),
        (["cfg_scale=0,-2"], "cfg_scale: -2; allowed: 0 or more"),
        (["cfg_scale=1", "guidance=1"], "guidance: is cfg_scale, which is given too; allowed: cfg_scale"),
        (["samples=1"], "samples: 1: Input should be greater than or equal to 2"),
        (["scale=1"], "probe prefix: setting: 'scale' is unknown (did you mean 'scales'?); allowed: scales, of"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_measured(fresh, capsys, monkeypatch, more, said):
    monkeypatch.setattr(Prefix, "measure", None)
    assert main(command(fresh, "--set", *more)) == USER_ERROR
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and "Traceback" not in out + err


def test_an_unknown_probe_is_one_line(fresh, capsys):
    assert main(command(fresh, name="prefx")) == USER_ERROR
    assert "probe: 'prefx' is unknown (did you mean 'prefix'?); allowed: prefix" in capsys.readouterr().err


def test_a_probe_of_a_plug_in(fresh, tmp_path, capsys):
    """The one of docs/probes.md."""
    page = (Path(__file__).parents[2] / "docs/probes.md").read_text()
    (tmp_path / "mine.py").write_text(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0])
    assert main(command(fresh, "--plugin", str(tmp_path / "mine.py"), "--json", name="norms")) == OK
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["layer"] for row in rows] == [0, 1] and rows[0]["norm"] > 0
    assert main(command(fresh, "--plugin", str(tmp_path / "mine.py"), "--set", "a=1", name="norms")) == USER_ERROR
    assert "a: probe 'norms' has no settings" in capsys.readouterr().err
    assert main(["probe"]) == OK  # it is gone with its command
    assert "norms" not in capsys.readouterr().out


def test_a_plug_in_that_lacks_something_is_refused():
    with pytest.raises(mvar.UserError, match="lacks cases, measure, fields, values"):
        mvar.register("probe", "nothing")(type("Nothing", (mvar.Probe,), {}))
