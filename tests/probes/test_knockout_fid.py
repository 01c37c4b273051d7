"""FID under a cut: asked for apart, of what the model draws with it, kept beside the likelihoods."""

import json
from dataclasses import replace

import pytest
import torch

import mvar
from mvar.cli import main
from mvar.errors import OK, USER_ERROR, UserError
from mvar.evaluation.fidelity import frechet_distance
from mvar.evaluation.images import Images
from mvar.probes.cut_text import parse_cut
from mvar.probes.interventions import cutting, sites_of
from mvar.probes.knockout import Bench
from mvar.probes.knockout_kept import check_drawn
from mvar.runs.wiring import Stages
from mvar.sampling import balanced_labels


@pytest.fixture
def trained(untrained):
    (untrained[1].path / "knockout.json").unlink(missing_ok=True)
    return mvar.load(untrained[1].name, results=untrained[0].root)


def test_fid_is_that_of_images_drawn_with_the_cut(untrained, trained, monkeypatch):
    before = trained.knockout(["own", "branch:mamba"], draws=1)
    assert before["own"].fid is None
    monkeypatch.setattr(Bench, "effect", None)  # likelihoods that are there are not measured again
    found = trained.knockout(["own", "branch:mamba"], draws=1, fid=True)
    stages = Stages.of_run(*untrained)
    extractor, count = stages.extractor.load(), trained.config.evaluation.num_images
    fids = {}
    for text in (None, "own"):
        sites = sites_of(trained.model, parse_cut(text)) if text else ()
        with cutting(sites):
            images = mvar.draw_images(
                *(trained.model, trained.tokenizer, balanced_labels(count, 10)),
                [(trained.config.sample.seed, i) for i in range(count)],
                trained.config,
            )
        reference = Images(stages.attention.heldout().open().images("heldout"), "")
        features = [extractor.extract(Images(torch.from_numpy(images).permute(0, 3, 1, 2), ""))[0]]
        fids[text] = frechet_distance(*features, extractor.extract(reference)[0])
    own = found["own"]
    assert own.fid == pytest.approx(fids["own"], rel=1e-6)
    assert own.fid_change == pytest.approx(fids["own"] - fids[None], rel=1e-6) and own.fid_images == count
    assert (own.change, own.controls) == (before["own"].change, before["own"].controls)
    assert mvar.load(untrained[1].name, results=untrained[0].root).knockout(["own"], draws=1, fid=True)["own"] == own


def test_a_document_without_it_is_read(untrained, trained):
    effect = trained.knockout(["own"], draws=1)["own"]
    path = untrained[1].path / "knockout.json"
    document = json.loads(path.read_text())
    for name in ("fid", "fid_change", "fid_images"):
        del document["effects"]["own"][name]
    path.write_text(json.dumps(document))
    assert trained.knockout(["own"], draws=1)["own"] == effect


def test_on_the_command_line(untrained, trained, capsys):
    words = ["knockout", untrained[1].name, "--results", str(untrained[0].root), "--draws", "1", "--fid"]
    assert main([*words, "--cut", "state:2,kind=mean"]) == OK
    assert "FID: of images drawn with the cut" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--cut", "own,kind=resample"]) == USER_ERROR
    said = "fid: cut 'own,kind=resample' takes from another real image; allowed: kind=cut, kind=mean"
    assert said in capsys.readouterr().err


def test_a_checkpoint_has_no_fid(trained):
    opened = replace(trained.measurable("heldout")[0].open(), extractor=None)
    with pytest.raises(UserError, match="fid: a checkpoint has no feature extractor; allowed: a run"):
        check_drawn(parse_cut("own"), opened)
