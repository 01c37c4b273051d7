"""The token cache of the pipeline: it belongs to the tokenizer's weights, not to its config or the path of its file."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from tiny_runs import CONFIG, TINY

from mvar import files
from mvar.checkpoints.weights import load_weights, save_weights
from mvar.cli import main
from mvar.commands.run import Run
from mvar.config import override
from mvar.data.crops import ImageSet
from mvar.errors import USER_ERROR, UserError
from mvar.files import file_digest, known_digest
from mvar.runs.pipeline import execute
from mvar.runs.states import DONE, STOPPED
from mvar.runs.store import Store
from mvar.runs.wiring import Stages


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def swap_weights(store: Store, config=CONFIG) -> None:
    """What remains after the tokenizer's folder was deleted and the tokenizer trained differently."""
    tokenizer = Stages(config, store).tokenizer.load()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    path = store.stage("tokenizer", config.tokenizer_id).path / "tokenizer.safetensors"
    save_weights(path, tokenizer, load_weights(path)[1])


def forget_weights(store: Store) -> list[Path]:
    """Make the caches those of an earlier version, which recorded the tokenizer's config only."""
    found = sorted(store.root.glob("stages/tokens-*/*/meta.json"))
    for path in found:
        meta = json.loads(path.read_text())
        del meta["ids"]["tokenizer_sha256"]
        path.write_text(json.dumps(meta))
    return found


def test_the_weights_are_recorded(store):
    weights = store.stage("tokenizer", CONFIG.tokenizer_id).path / "tokenizer.safetensors"
    for path in store.root.glob("stages/tokens-*/*/meta.json"):
        assert json.loads(path.read_text())["ids"]["tokenizer_sha256"] == file_digest(weights)


def test_another_tokenizer_of_the_same_config_is_found_before_training(store, monkeypatch):
    swap_weights(store)
    finished = snapshot(store.run(CONFIG.run_id).path)
    assert execute(CONFIG, Store(store.root)) == DONE  # finished: nothing is looked at
    other = override(CONFIG, {"seed": 1})
    monkeypatch.setattr(
        "mvar.runs.stages.train.TrainStage.run", lambda *_: pytest.fail("trained on the tokens of another")
    )
    with pytest.raises(UserError, match=r"token cache: .*train was built .*tokenizer_sha256 is .* needed is"):
        execute(other, store)
    assert snapshot(store.run(CONFIG.run_id).path) == finished
    monkeypatch.undo()
    shutil.rmtree(store.stage("tokens", CONFIG.tokens_id).path / "train")  # as the message says
    shutil.rmtree(store.stage("tokens", CONFIG.tokens_id).path / "heldout")
    assert execute(other, store) == DONE
    assert snapshot(store.run(CONFIG.run_id).path) == finished


def test_a_run_and_the_floors_belong_to_the_weights_too(store):
    """The caches are removed, as the message says: what was trained on them is neither gone on with nor used."""
    begun, reached = override(CONFIG, {"seed": 1, "runtime.checkpoint_every": 1}), []
    note = lambda stage, done, total: reached.append(stage == "train" and done >= 2)  # noqa: E731
    assert execute(begun, store, note, lambda: any(reached)) == STOPPED
    record = store.all_floors(CONFIG)
    swap_weights(store)
    shutil.rmtree(store.stage("tokens", CONFIG.tokens_id).path)
    for config in (begun, override(CONFIG, {"sample.cfg_scale": 0})):
        with pytest.raises(UserError, match=r"run: .* trained on tokens of another .* remove the run's folder"):
            execute(config, store)
    assert store.is_done(CONFIG)
    shutil.rmtree(store.run(begun.run_id).path)
    assert execute(begun, store) == DONE
    again = store.all_floors(CONFIG)
    assert again.keys() == record.keys() and again != record


def test_runs_and_floors_of_an_earlier_version_are_taken_as_they_are(store):
    run, extractor = store.run(CONFIG.run_id), store.stage("extractor", CONFIG.extractor_id)
    (run.path / "tokenizer.json").unlink()
    path = extractor.path / "floors.json"
    document = json.loads(path.read_text())
    for record in document["floors"].values():
        del record["tokenizer_sha256"]
    path.write_text(json.dumps(document))
    before = snapshot(extractor.path)
    assert execute(override(CONFIG, {"sample.cfg_scale": 0}), store) == DONE
    assert snapshot(extractor.path) == before and (run.path / "tokenizer.json").is_file()


@pytest.mark.slow
def test_the_same_through_the_command_line(tmp_path, capsys, monkeypatch):
    settings = tuple(f"{name}={value}" for name, value in TINY.items())
    arguments = ["run", "mixers", "--preset", "smoke", "--results", str(tmp_path), "--set", *settings]
    run = Run(sweeps=("mixers",), preset="smoke", set=(settings,), results=tmp_path)
    first, *others = [config for request in run.requests() for config in request.configs()]
    store = Store(tmp_path)
    assert others and execute(first, store) == DONE
    swap_weights(store, first)
    finished = snapshot(store.run(first.run_id).path)
    assert main([*arguments, "--workers", "1"]) == USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mvar: error")]
    assert len(lines) == 1 and "tokenizer_sha256" in lines[0] and "remove the folder" in lines[0]
    assert all(config.run_id in lines[0] for config in others) and first.run_id not in lines[0]
    assert snapshot(store.run(first.run_id).path) == finished


def test_a_cache_of_an_earlier_version_is_adopted_where_its_tokens_agree(store):
    metas = forget_weights(store)
    tokens = [(path.parent / "tokens.bin").stat().st_mtime_ns for path in metas]
    assert len(metas) == 2
    assert execute(override(CONFIG, {"seed": 1}), store) == DONE
    assert all(json.loads(path.read_text())["ids"]["tokenizer_sha256"] for path in metas)
    assert [(path.parent / "tokens.bin").stat().st_mtime_ns for path in metas] == tokens  # not built again


def test_a_cache_of_an_earlier_version_and_another_tokenizer_is_refused(store):
    metas = forget_weights(store)
    swap_weights(store)
    for attempt in (lambda: Stages(CONFIG, store).tokens.run(), lambda: Stages(CONFIG, store).tokens.open("heldout")):
        with pytest.raises(UserError, match=r"built by another tokenizer .* tokens of 64 rows agree; remove the"):
            attempt()
    assert not any("tokenizer_sha256" in path.read_text() for path in metas)


def test_another_file_behind_the_checkpoints_path(store, tmp_path, monkeypatch):
    here = store.stage("tokenizer", CONFIG.tokenizer_id).path / "tokenizer.safetensors"
    state, _ = load_weights(here)
    torch.save(state, tmp_path / "vae.pth")
    torch.save({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "other.pth")
    monkeypatch.setenv("VAE", str(tmp_path / "vae.pth"))
    config = override(CONFIG, {"tokenizer.checkpoint": "$VAE"})
    Stages(config, store).tokenizer.run()
    os.utime(tmp_path / "vae.pth")  # touched: the same bytes
    Stages(config, store).tokenizer.run()
    monkeypatch.setenv("VAE", str(tmp_path / "other.pth"))
    with pytest.raises(UserError, match=r"tokenizer.checkpoint: \$VAE is another file .* allowed: that file"):
        Stages(config, store).tokenizer.run()
    monkeypatch.setenv("VAE", str(tmp_path / "gone.pth"))
    Stages(config, store).tokenizer.run()  # the stage holds its weights


def test_images_are_decoded_by_the_threads_that_are_asked_for(store, tmp_path, monkeypatch):
    decoders, image = set(), ImageSet.image
    monkeypatch.setattr(ImageSet, "image", lambda *a: decoders.add(threading.current_thread()) or image(*a))
    other = Store(tmp_path / "other")
    tokenizer, copy = (s.stage("tokenizer", CONFIG.tokenizer_id).path for s in (store, other))
    shutil.copytree(tokenizer, copy)
    Stages(override(CONFIG, {"runtime.num_workers": 3}), other).tokens.run()
    assert decoders and threading.main_thread() not in decoders
    caches = [s.stage("tokens", CONFIG.tokens_id).path for s in (store, other)]
    for name in ("train/tokens.bin", "train/labels.bin", "train/meta.json", "heldout/tokens.bin", "heldout/meta.json"):
        assert (caches[0] / name).read_bytes() == (caches[1] / name).read_bytes()


def test_a_flipped_byte_in_a_large_cache_is_found(store, monkeypatch):
    """Large: of the size that is not read through at every opening."""
    monkeypatch.setattr(files, "STAMPED_FROM_BYTES", 100)
    path = store.stage("tokens", CONFIG.tokens_id).path / "train" / "tokens.bin"
    assert execute(override(CONFIG, {"seed": 1}), store) == DONE
    assert (path.parent / ".tokens.bin.sha256").is_file()
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    with pytest.raises(UserError, match=r"tokens\.bin is corrupt \(wrong checksum\); remove the folder"):
        execute(override(CONFIG, {"seed": 2}), store)
    shutil.rmtree(path.parent)
    assert execute(override(CONFIG, {"seed": 2}), store) == DONE
    assert path.read_bytes() == data


def test_a_large_file_is_read_once_for_each_state_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "STAMPED_FROM_BYTES", 10)
    path, read = tmp_path / "weights", []
    monkeypatch.setattr(files, "file_digest", lambda path: read.append(path) or file_digest(path))
    path.write_bytes(b"small")
    assert known_digest(path) == known_digest(path) == file_digest(path)
    assert len(read) == 2 and [p.name for p in tmp_path.iterdir()] == ["weights"]
    path.write_bytes(b"large enough")
    assert known_digest(path) == known_digest(path) == file_digest(path)
    assert len(read) == 3
    path.write_bytes(b"large_enough")  # the same size
    assert known_digest(path) == file_digest(path) and len(read) == 4
    (tmp_path / ".weights.sha256").write_text("{")
    assert known_digest(path) == file_digest(path) and len(read) == 5
    nowhere = tmp_path / "weights" / "stamp"  # a file is no folder: the stamp cannot be written
    assert known_digest(path, nowhere) == known_digest(path, nowhere) == file_digest(path) and len(read) == 7
