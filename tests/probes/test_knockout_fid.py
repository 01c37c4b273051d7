"""FID under a cut: asked for apart, of what the model draws with it, kept beside the likelihoods."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import mvar
from mvar.cli import main
from mvar.commands.knockout import Knockout
from mvar.config import override
from mvar.data.crops import to_uint8
from mvar.data.splits import load_images
from mvar.errors import OK, UserError
from mvar.evaluation.fidelity import frechet_distance
from mvar.evaluation.floors import reconstruct
from mvar.evaluation.images import Images, spread_indices
from mvar.evaluation.reference import write_reference
from mvar.probes.contract import make_probe
from mvar.probes.cut_text import parse_cut
from mvar.probes.interventions import cutting, random_sites, sites_of
from mvar.probes.knockout import DRAWS, FID_DRAWS, Bench
from mvar.probes.knockout_kept import check_drawn, measure_cuts
from mvar.probes.prefix import Prefix
from mvar.probes.probe_kept import kept_probe, measure_probe
from mvar.probes.subject import Subject
from mvar.runs.wiring import Stages
from mvar.sampling import balanced_labels, generate


@pytest.fixture
def trained(untrained):
    (untrained[1].path / "knockout.json").unlink(missing_ok=True)
    return mvar.load(untrained[1].name, results=untrained[0].root)


def test_fid_is_that_of_images_drawn_with_the_cut(untrained, trained, monkeypatch):
    before = trained.knockout(["own", "branch:mamba"], draws=1)
    assert before["own"].fid is None
    monkeypatch.setattr(Bench, "effect", None)  # likelihoods that are there are not measured again
    found = trained.knockout(["own", "branch:mamba"], draws=1, fid=True, fid_draws=1)
    stages = Stages.of_run(*untrained)
    extractor, count = stages.extractor.load(), trained.config.evaluation.num_images
    fids = {}
    own_sites = sites_of(trained.model, parse_cut("own"))
    for text, sites in ((None, ()), ("own", own_sites), ("random", random_sites(own_sites, 0) or ())):
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
    assert own.fid_controls == (pytest.approx(fids["random"] - fids[None], rel=1e-6),)
    assert found["branch:mamba"].fid_control is None
    assert (own.change, own.controls) == (before["own"].change, before["own"].controls)
    again = mvar.load(untrained[1].name, results=untrained[0].root)
    assert again.knockout(["own"], draws=1, fid=True, fid_draws=1)["own"] == own


def test_drawn_images_are_resampled_from_held_out_ones(untrained, trained, monkeypatch):
    """Each from the partner of its number, which begin anew after the last; random keys from the same."""
    judged = []

    def judge(_, images):
        judged.append(images)
        return 1.0

    monkeypatch.setattr(Subject, "fid", judge)
    trained.knockout(["own,kind=resample"], draws=1, images=9, fid=True, fid_draws=1)
    opened = trained.measurable("heldout", 9, kept_in="knockout")[0].open()
    bench, labels = Bench(opened, 9), balanced_labels(len(judged[0]), 10)
    sites = sites_of(opened.model, parse_cut("own"))
    for images, places in zip(judged, ((), sites, random_sites(sites, 0) or ()), strict=True):
        for n in (0, 13):
            with cutting(places, bench.recorded(places, [bench.partners[n % 9]]) if places else None):
                drawn = generate(
                    opened.model, opened.tokenizer.quantize, labels[n : n + 1], [(opened.sample.seed, n)], opened.sample
                )
            image = to_uint8(opened.tokenizer.decode(drawn.latent)).numpy()[0].astype(int)
            assert abs(images[n] - image).max() <= 1
    assert (judged[1] != judged[0]).any() and (judged[2] != judged[1]).any()


def test_more_random_cuts_go_on_from_those_that_are_there(untrained, trained, monkeypatch):
    one = trained.knockout(["own"], draws=1, fid=True, fid_draws=1)["own"]
    assert len(one.fid_controls) == 1 and one.fid_beyond == one.fid_change - one.fid_controls[0]
    calls, real = [], Subject.draw
    monkeypatch.setattr(Subject, "draw", lambda *args: calls.append(args) or real(*args))
    three = trained.knockout(["own"], draws=1, fid=True)["own"]  # the default
    assert len(calls) == 2 and three.fid_controls[:1] == one.fid_controls and len(set(three.fid_controls)) == 3
    assert three.fid_beyond_half_width > 0 and three.fid == one.fid
    assert trained.knockout(["own"], draws=1, fid=True, fid_draws=2)["own"] == three and len(calls) == 2
    assert trained.knockout(["own"], draws=2)["own"].fid_controls == three.fid_controls  # of more controls of NLL
    path = untrained[1].path / "knockout.json"
    document = json.loads(path.read_text())
    effect = document["effects"]["own"]
    effect["fid_control"] = effect.pop("fid_controls")[0]  # as it was kept once
    path.write_text(json.dumps(document))
    assert trained.knockout(["own"], draws=2)["own"].fid_controls == one.fid_controls
    assert trained.knockout(["own"], draws=2, fid=True)["own"].fid_controls == three.fid_controls


def test_a_document_without_it_is_read(untrained, trained):
    effect = trained.knockout(["own"], draws=1)["own"]
    path = untrained[1].path / "knockout.json"
    document = json.loads(path.read_text())
    for name in ("fid", "fid_change", "fid_images", "fid_controls"):
        del document["effects"]["own"][name]
    path.write_text(json.dumps(document))
    assert trained.knockout(["own"], draws=1)["own"] == effect


def test_on_the_command_line(untrained, trained, capsys):
    assert (Knockout().draws, Knockout().fid_draws) == (DRAWS, FID_DRAWS)  # as in Python
    words = ["knockout", untrained[1].name, "--results", str(untrained[0].root), "--draws", "1", "--fid"]
    assert main([*words, "--cut", "state:2,kind=mean"]) == OK
    assert "FID: of images drawn with the cut" in " ".join(capsys.readouterr().out.split())


def test_what_nothing_judges_has_no_fid(trained):
    opened = replace(trained.measurable("heldout")[0].open(), judge=None)
    with pytest.raises(UserError, match="fid: nothing judges images that are drawn; allowed: a run, or a checkpoint w"):
        check_drawn(opened)


def test_fid_against_another_reference_is_another_one(untrained, trained, tmp_path):
    store, run = untrained
    (ours,) = trained.knockout(["own"], draws=1, fid=True, fid_draws=1).effects.values()
    (run.path / "knockout.json").unlink()
    extractor, path = Stages.of_run(store, run).extractor.load(), tmp_path / "reference.npz"
    reference = load_images(trained.config.data, "train")
    write_reference(path, reference, extractor)
    config = override(trained.config, {"evaluation.reference": str(path)})
    what, cuts = Stages(config, store, run=run).attention.heldout(), [parse_cut("own")]
    (found,) = measure_cuts(what, cuts, tmp_path, draws=1, fid_images=30, fid_draws=1).effects.values()
    assert found.change == ours.change and found.fid != ours.fid and found.fid_by != ours.fid_by
    settings: dict[str, Any] = {"scales": [4], "of": ["heldout"], "cfg_scale": [0], "samples": 30}
    (row,) = measure_probe("prefix", make_probe("prefix", settings), what, config, tmp_path).rows
    real = Images(load_images(config.data, "heldout"), "")
    shown, _ = reconstruct(trained.tokenizer, real.subset(spread_indices(len(real), 30)))
    features = [extractor.extract(images)[0] for images in (Images(shown, ""), Images(reference, ""))]
    assert row["fid"] == pytest.approx(frechet_distance(*features), rel=1e-6)
    (kept,) = json.loads((tmp_path / "probes/prefix.json").read_text())["rows"]
    assert kept["reference"]["file"] == path.name
    kind, plain = Prefix, trained.measurable("heldout")[0]
    assert kept_probe("prefix", kind, plain, tmp_path) is None
    seen = kept_probe("prefix", kind, what, tmp_path)
    path.unlink()  # a report elsewhere shows it all the same
    assert seen and seen.rows == [row] and kept_probe("prefix", kind, what, tmp_path) == seen
    with pytest.raises(UserError, match=r"evaluation.reference: no file '.*reference.npz'; allowed"):
        measure_cuts(what, cuts, tmp_path, draws=1, fid_images=30, fid_draws=1)
