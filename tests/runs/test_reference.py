"""A run against a file of reference: its digest in the row, copies by held-out images; samples for other evaluators."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import CONFIG

from mvar.cli import main
from mvar.config import override
from mvar.data.splits import load_images
from mvar.errors import OK, USER_ERROR, UserError
from mvar.evaluation.extractors.contract import kind_of
from mvar.evaluation.reference import write_reference
from mvar.files import file_digest
from mvar.runs.measured import to_measure
from mvar.runs.pipeline import execute
from mvar.runs.states import DONE
from mvar.runs.wiring import Stages


def test_a_run_against_a_file_of_its_own_held_out_images(store, tmp_path):
    path = tmp_path / "VIRTUAL_digits.npz"
    extractor = kind_of(CONFIG).load(store.stage("extractor", CONFIG.extractor_id).path)
    write_reference(path, load_images(CONFIG.data, "heldout"), extractor)
    asked = override(CONFIG, {"evaluation.reference": str(path), "evaluation.also": "sfid"})
    assert execute(asked, store) == DONE
    run = store.run(CONFIG.run_id)
    ours, found = (run.evaluations()[config.evaluation_id] for config in (CONFIG, asked))
    assert found["reference"] == {"file": path.name, "sha256": file_digest(path), "num_images": 450}
    page = (Path(__file__).parents[2] / "results" / "README.md").read_text()
    assert [key for key in (*found, *found["reference"], *ours["reference"]) if f"`{key}`" not in page] == []
    shared = {key: value for key, value in found["metrics"].items() if key != "eval/sfid"}
    assert shared == pytest.approx(ours["metrics"], rel=1e-6) and found["metrics"]["eval/sfid"] > 0
    assert execute(override(CONFIG, {"evaluation.also": "sfid"}), store) == DONE
    again = run.evaluations()[CONFIG.evaluation_id]["metrics"]["eval/sfid"]
    assert found["metrics"]["eval/sfid"] == pytest.approx(again, rel=1e-6)
    write_reference(path, load_images(CONFIG.data, "train"), extractor, keep=10)
    more = override(asked, {"evaluation.also": "sfid,density_coverage"})
    assert to_measure(run, more) == ["density_coverage"]
    with pytest.raises(UserError, match=r"is another file than evaluation .* has been compared with"):
        execute(more, store)
    assert np.isclose(run.evaluations()[asked.evaluation_id]["metrics"]["eval/fid"], shared["eval/fid"])


def test_samples_as_the_evaluator_of_guided_diffusion_takes_them(store, tmp_path, capsys):
    """One array `arr_0`, uint8 NHWC of three channels, in a header and a layout that it reads in a stream."""
    out, place = tmp_path / "s.npz", ["--results", str(store.root)]
    assert main(["export", CONFIG.run_id, "--what", "samples", "--out", str(out), *place]) == OK
    assert "40 images of evaluation" in capsys.readouterr().out
    drawn, labels = Stages.of_run(store, store.run(CONFIG.run_id)).sample.read()
    with zipfile.ZipFile(out) as archive, archive.open("arr_0.npy") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
        assert (shape, fortran, kind) == ((40, 8, 8, 3), False, np.uint8)
        pixels = np.frombuffer(file.read(), np.uint8).reshape(shape)
    assert (pixels == drawn).all() and isinstance(drawn, np.memmap) and len(labels) == 40
    for words, reason in (
        (["--what", "samples", "--evaluation", "nope"], "evaluation: 'nope' is unknown"),
        (["--what", "samples", "--out", str(tmp_path / "s.png")], "allowed: a name that ends in .npz"),
        (["--evaluation", "x"], "evaluation: a model has none"),
    ):
        assert main(["export", CONFIG.run_id, *words, *place]) == USER_ERROR
        assert reason in capsys.readouterr().err
