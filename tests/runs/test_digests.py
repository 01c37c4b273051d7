"""Artefacts whose bytes are not those that were written: found, said once, made again to the bit."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny_runs import CONFIG, interrupt

from mvar import artefacts, layout
from mvar.artefacts import Check, check_artefact, write_artefact
from mvar.checkpoints.weights import load_weights
from mvar.cli import main
from mvar.config import override
from mvar.errors import OK, USER_ERROR, UserError
from mvar.runs import checking
from mvar.runs.pipeline import execute
from mvar.runs.states import DONE
from mvar.runs.store import Store

OTHER = override(CONFIG, {"sample.cfg_scale": 3.0})  # another evaluation of the same run
MAMBA = override(CONFIG, {"model.pattern": "mamba"})


def flip(path: Path, at: float = 0.6) -> None:
    """One bit inside the data: the format stays sound."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def said(capfd) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("mvar: ")]


def weights_of(store: Store, config=CONFIG) -> dict[str, Path]:
    stages = {kind: store.stage(kind, getattr(config, f"{kind}_id")).path for kind in ("tokenizer", "extractor")}
    return {
        "model": store.run(config.run_id).weights,
        "tokenizer": stages["tokenizer"] / "tokenizer.safetensors",
        "classifier": stages["extractor"] / layout.CLASSIFIER,
    }


def samples_of(store: Store, config=CONFIG) -> Path:
    return store.run(config.run_id).samples(config.evaluation_id) / "samples.npz"


def forget_evaluation(store: Store) -> None:
    (store.run(CONFIG.run_id).path / "eval.json").unlink()


@pytest.mark.parametrize("harm", [flip, cut])
@pytest.mark.parametrize("name", ["model", "tokenizer", pytest.param("classifier", marks=pytest.mark.slow)])
def test_damaged_weights_are_one_line_and_its_way_out_works(store, capfd, name, harm):
    path = weights_of(store)[name]
    whole = path.read_bytes()
    harm(path)
    if harm is flip:
        assert load_file(path)  # sound for its format
    command = ["evaluate", CONFIG.run_id, "--set", "sample.cfg_scale=3", "--results", str(store.root)]
    assert main(command) != OK
    (line,) = said(capfd)
    assert str(path) in line and "wrong checksum" in line and "delete that file" in line
    path.unlink()
    for config in (CONFIG, OTHER):  # the weights carry the settings of the command that makes them
        assert execute(config, store) == DONE and said(capfd) == []
    assert path.read_bytes() == whole and load_weights(path)
    assert store.run(CONFIG.run_id).evaluations().keys() >= {OTHER.evaluation_id}


def test_weights_of_another_run_are_not_taken_for_its_own(store, capfd):
    assert execute(MAMBA, store) == DONE
    path = store.run(CONFIG.run_id).weights
    shutil.copy(store.run(MAMBA.run_id).weights, path)
    assert (
        main(["sample", CONFIG.run_id, "--results", str(store.root), "--out", str(store.root / "g.png")]) == USER_ERROR
    )
    (line,) = said(capfd)
    assert str(path) in line and "wrong checksum" in line


def test_weights_without_a_record_are_accepted_as_unchecked(store, made):
    for path in weights_of(store).values():
        (path.parent / layout.DIGESTS).unlink()
        flip(path)
        assert load_weights(path) and check_artefact(path) is Check.UNCHECKED
        assert path in checking.unchecked_artefacts(store)
    assert checking.check_results(store) == []
    assert set(checking.unchecked_artefacts(Store(made))) == set()


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_a_bad_checkpoint_falls_back_to_the_one_before(store, made, tmp_path, capfd, harm):
    older, newest = interrupt(MAMBA, store, step=6)
    harm(newest)
    assert execute(MAMBA, store) == DONE
    lines = said(capfd)
    assert len(lines) == (0 if harm is Path.unlink else 1)
    if lines:
        assert str(newest) in lines[0] and lines[0].endswith(f"goes on from the one before it, {older.name}")
        assert "wrong checksum" in lines[0]
    shutil.copytree(made, tmp_path / "once")
    once = Store(tmp_path / "once")
    assert execute(MAMBA, once) == DONE
    assert once.run(MAMBA.run_id).weights.read_bytes() == store.run(MAMBA.run_id).weights.read_bytes()


def test_a_checkpoint_without_a_record_is_accepted(store, capfd):
    _, newest = interrupt(MAMBA, store, step=6)
    (newest.parent / layout.DIGESTS).unlink()
    assert execute(MAMBA, store) == DONE and said(capfd) == []


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "swap", "other shape", "remove", "flip unrecorded"])
def test_bad_samples_are_drawn_again(store, capfd, harm):
    path = samples_of(store)
    whole, metrics = path.read_bytes(), store.run(CONFIG.run_id).evaluations()[CONFIG.evaluation_id]["metrics"]
    if harm.startswith("flip"):
        flip(path)
    elif harm == "cut":
        cut(path)
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "remove":
        path.unlink()
    else:
        count = CONFIG.evaluation.num_images
        shape = (count, 8, 8, 1) if harm == "swap" else (3, 8, 8, 1)
        np.savez(path, arr_0=np.zeros(shape, np.uint8), labels=np.zeros(shape[0], np.int64))
    if harm == "flip unrecorded":
        (path.parent / layout.DIGESTS).unlink()
    forget_evaluation(store)
    assert execute(CONFIG, store) == DONE
    lines = said(capfd)
    assert len(lines) == (0 if harm == "remove" else 1)
    assert all(str(path) in line and line.endswith("they are drawn again") for line in lines)
    assert path.read_bytes() == whole
    assert store.run(CONFIG.run_id).evaluations()[CONFIG.evaluation_id]["metrics"] == metrics


@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_rows_that_are_recorded_but_not_there_are_drawn_again(store, tmp_path, capfd, harm):
    path, drawn = samples_of(store), []
    whole = path.read_bytes()
    path.unlink()
    forget_evaluation(store)
    small = override(CONFIG, {"runtime.sample_batch": 10})

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "sample":
            drawn.append(done)

    assert execute(small, store, progress, lambda: bool(drawn)) != DONE
    assert 0 < drawn[-1] < CONFIG.evaluation.num_images and (path.parent / "partial.json").is_file()
    harm(path.parent / "partial.bin")
    assert execute(small, store) == DONE
    (line,) = said(capfd)
    assert "partial.bin" in line and line.endswith("they are made anew")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("of", ["record", "file"])
def test_a_kill_between_two_renames_harms_nothing(tmp_path, monkeypatch, of):
    """Whichever rename a kill prevents, and however often: what is there stays valid, and so does what comes."""
    path = tmp_path / "x.safetensors"
    with write_artefact(path) as file:
        file.write(b"old")
    rename, stop = os.replace, [of]

    def killed(source, target) -> None:
        if stop and Path(target).name == (layout.DIGESTS if stop[0] == "record" else path.name):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", killed)
    for content in (b"new", b"newer", b"new"):
        with pytest.raises(KeyboardInterrupt), write_artefact(path) as file:
            file.write(content)
        assert path.read_bytes() == b"old" and check_artefact(path) is Check.SOUND
    stop.clear()
    with write_artefact(path) as file:
        file.write(b"new")
    assert artefacts.read_artefact(path) == b"new"
    path.write_bytes(b"bad")
    with pytest.raises(UserError, match="wrong checksum"):
        artefacts.read_artefact(path)
    stop.append("file")
    with pytest.raises(KeyboardInterrupt), write_artefact(path) as file:
        file.write(b"newer")
    with pytest.raises(UserError, match="wrong checksum"):  # what was damaged has not become valid
        artefacts.read_artefact(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": {"x": 3}, "check": "0"}', b"\xff", b"[" * 5000])
def test_a_damaged_record_vouches_for_nothing_and_is_named(tmp_path, capfd, content):
    path = tmp_path / "x.safetensors"
    with write_artefact(path) as file:
        file.write(b"old")
    (tmp_path / layout.DIGESTS).write_bytes(content)
    assert artefacts.read_artefact(path) == b"old" and check_artefact(path) is Check.UNCHECKED
    assert str(tmp_path / layout.DIGESTS) in capfd.readouterr().err
    with write_artefact(path) as file:
        file.write(b"new")
    assert check_artefact(path) is Check.SOUND


def test_every_artefact_is_checked(store):
    """One changed byte in each is one line, and nothing else is."""
    interrupt(MAMBA, store, step=6)
    assert checking.check_results(store) == []
    tokens = store.stage("tokens", CONFIG.tokens_id).path
    paths = [
        *weights_of(store).values(),
        samples_of(store),
        tokens / "train" / "tokens.bin",
        tokens / "heldout" / "labels.bin",
    ]
    for folder in (store.run(MAMBA.run_id).path, *(p.parent for p in weights_of(store).values())):
        paths += sorted((folder / "checkpoints").glob("step_*.pt"))
    assert len(paths) == 6 + 2 + 3
    for path in paths:
        whole = path.read_bytes()
        flip(path)
        (found,) = checking.check_results(store)
        assert found.path == path and found.remedy and str(path) in str(found) and "\n" not in str(found)
        path.write_bytes(whole)
    assert checking.check_results(store) == []


def test_sample_attention_and_export_want_the_tokenizer_of_the_run(store, capfd):
    path = weights_of(store)["tokenizer"]
    (path.parent / layout.DIGESTS).unlink()
    flip(path)  # another tokenizer, for which nobody vouches
    place, before = ["--results", str(store.root)], samples_of(store).stat().st_mtime_ns
    commands = (
        ["sample", CONFIG.run_id, "--out", str(store.root / "g.png")],
        ["attention", CONFIG.run_id, "--source", "self"],
        ["export", CONFIG.run_id, "--out", str(store.root / "t.pth"), "--what", "tokenizer"],
    )
    for command in commands:
        assert main([*command, *place]) == USER_ERROR
        (line,) = said(capfd)
        assert "is trained on tokens of another tokenizer" in line
    assert not (store.root / "g.png").exists() and not (store.root / "t.pth").exists()
    assert samples_of(store).stat().st_mtime_ns == before
