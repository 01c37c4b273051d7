"""Checkpoints and weight files under kills, truncation and full disks."""

import errno
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from mvar.checkpoints.weights import load_weights, save_weights
from mvar.errors import UserError
from mvar.training import checkpoint


def state(value: float) -> dict:
    return {"module": {"w": torch.full((300,), value)}, "train_s": 1.5, "recipe": {"steps": 3, "end": None}}


def test_round_trip_and_only_the_newest_are_kept(tmp_path):
    assert checkpoint.load_latest(tmp_path / "nothing") is None
    for step in (1, 2, 10, 100_000_000):
        checkpoint.save(tmp_path, step, state(step), keep=2)
    assert sorted(p.name for p in tmp_path.glob("*step_*")) == ["step_00000010.pt", "step_100000000.pt"]
    step, found = checkpoint.load_latest(tmp_path)
    assert step == 100_000_000
    assert torch.equal(found["module"]["w"], torch.full((300,), 1e8))
    assert found["recipe"] == {"steps": 3, "end": None}


@pytest.mark.parametrize("keep_share", [0.0, 0.3, 0.999])
def test_truncated_newest_falls_back_to_the_older(tmp_path, capsys, keep_share):
    checkpoint.save(tmp_path, 1, state(1.0))
    path = checkpoint.save(tmp_path, 2, state(2.0))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep_share)])
    step, found = checkpoint.load_latest(tmp_path)
    assert step == 1
    assert found["module"]["w"][0] == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mvar: warning: {path}: not a readable checkpoint, {path.stat().st_size} bytes")
    assert line.endswith("; training goes on from the one before it, step_00000001.pt")
    with pytest.raises(UserError) as error:
        checkpoint.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_where_no_checkpoint_can_be_read_training_starts_anew_and_says_so(tmp_path, capsys):
    for step in (7, 9):
        checkpoint.save(tmp_path, step, state(step)).write_bytes(b"")
    assert checkpoint.load_latest(tmp_path) is None
    newest, older = capsys.readouterr().err.splitlines()
    for name, line in (("step_00000009.pt", newest), ("step_00000007.pt", older)):
        assert name in line and line.endswith("allowed: a complete one; no other can be read, training starts anew")
    checkpoint.save(tmp_path, 3, state(3.0), keep=2)  # must outlive the damaged ones of later steps
    assert [path.name for path in tmp_path.glob("*step_*")] == ["step_00000003.pt"]
    assert checkpoint.load_latest(tmp_path)[0] == 3 and capsys.readouterr().err == ""


def test_a_checkpoint_cannot_run_code(tmp_path):
    path = checkpoint.path_of(tmp_path, 1)
    torch.save({"step": 1, "state": Path("/")}, path)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoint.load(path)


def test_what_torch_would_load_but_is_no_checkpoint_falls_back(tmp_path, capsys):
    checkpoint.save(tmp_path, 1, state(1.0))
    path = checkpoint.path_of(tmp_path, 2)
    others = [
        [1, 2],
        {"step": 2},
        {"step": 1, "state": state(2.0)},
        {"step": "2", "state": {}},
        {"step": 2, "state": 3},
    ]
    for content in others:
        torch.save(content, path)
        assert checkpoint.load_latest(tmp_path)[0] == 1
        assert f"{path}: not a readable checkpoint" in capsys.readouterr().err


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    path = checkpoint.path_of(tmp_path, 1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 28))
    with pytest.raises(UserError, match="its parts claim 268435456 bytes"):
        checkpoint.load(path)


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "step_00000001.pt")


def test_full_disk_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state(1.0))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*step_00000002\.pt"):
        checkpoint.save(tmp_path, 2, state(2.0))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.glob("*step_*")] == ["step_00000001.pt"]
    assert checkpoint.load_latest(tmp_path)[0] == 1


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """No file may grow larger: a write that really fails, as on a full disk (Python ignores the signal with it)."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("num_values", [1_000, 100_000])  # the write fails in the end; or within torch, which hides it
def test_a_write_that_really_fails_names_the_file(tmp_path, num_values):
    checkpoint.save(tmp_path, 1, state(1.0))
    values = torch.zeros(num_values)
    with room_for(3_000), pytest.raises(OSError, match=r"File too large: '.*step_00000002\.pt'"):
        checkpoint.save(tmp_path, 2, {"module": {"w": values}})
    with room_for(3_000), pytest.raises(OSError, match=r"File too large: '.*m\.safetensors'"):
        save_weights(tmp_path / "m.safetensors", nn.Linear(num_values, 1), {})
    assert [path.name for path in tmp_path.glob("*step_*")] == ["step_00000001.pt"]
    assert checkpoint.load_latest(tmp_path)[0] == 1


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    (tmp_path / ".step_00000001.pt.abc.tmp").write_bytes(b"half")
    checkpoint.save(tmp_path, 1, state(1.0))
    assert [p.name for p in tmp_path.glob("*step_*")] == ["step_00000001.pt"]


def test_weights_round_trip_with_shared_tensors_and_metadata(tmp_path):
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    module.append(module[0])  # two names of one tensor
    path = tmp_path / "a" / "w.safetensors"
    save_weights(path, module, {"config": {"depth": 2, "root": None}, "note": "x"})
    weights, metadata = load_weights(path)
    assert metadata == {"config": {"depth": 2, "root": None}, "note": "x"}
    assert weights.keys() == module.state_dict().keys()
    assert all(torch.equal(weights[k], v) for k, v in module.state_dict().items())


def test_damaged_weights_are_named(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="no such weights file"):
        load_weights(path)
    save_weights(path, nn.Linear(30, 30), {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"w\.safetensors: not a readable"):
        load_weights(path)
