"""Checkpoints of several processes under damage and kills; here one process is all of them."""

import errno
import json
import os
import pickle
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mvar.checkpoints.published import load_generator
from mvar.cli import main
from mvar.config import override
from mvar.errors import OK, USER_ERROR, UserError
from mvar.presets import PRESETS
from mvar.runs.store import Store
from mvar.training import checkpoint, shards
from mvar.training.kept import split
from mvar.training.saving import Checkpoints, take
from mvar.transformer import ScaleTransformer


@pytest.fixture(scope="module")
def group():
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def trained(value: float) -> tuple[nn.Module, torch.optim.AdamW]:
    module = nn.Linear(3, 2)
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return module, optimizer


def write(folder: Path, step: int, group, keep: int = 2) -> Path:
    module, optimizer = trained(step)
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "recipe": {"seed": step}}
    tensors, rest = split(state)
    path = shards.path_of(folder, step)
    shards.Writing(path, tensors, rest, keep, group).wait()
    return path


def test_shards_hold_what_a_file_holds(tmp_path, group):
    path = write(tmp_path, 3, group)
    module, optimizer = trained(3)
    file = checkpoint.save(tmp_path / "one", 3, {"module": module.state_dict(), "optimizer": optimizer.state_dict()})
    found, other = checkpoint.load(path), checkpoint.load(file)
    assert found["recipe"] == {"seed": 3}
    torch.testing.assert_close(found["module"], other["module"], rtol=0, atol=0)
    assert found["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]
    torch.testing.assert_close(found["optimizer"]["state"], other["optimizer"]["state"], rtol=0, atol=0)
    for kept in map(checkpoint.open_kept, (path, file)):
        fresh = nn.Linear(3, 2)
        into = torch.optim.AdamW(fresh.parameters())
        take(kept, fresh, into)
        torch.testing.assert_close(fresh.state_dict(), dict(module.state_dict()), rtol=0, atol=0)
        torch.testing.assert_close(into.state_dict()["state"], optimizer.state_dict()["state"], rtol=0, atol=0)
        with pytest.raises((KeyError, ValueError)):
            take(kept, nn.Linear(3, 4), torch.optim.AdamW(nn.Linear(3, 4).parameters()))


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, group, monkeypatch):
    """What is written is what was there when the writing began."""
    go, complete = Event(), shards.Writing._complete
    monkeypatch.setattr(shards.Writing, "_complete", lambda *args: go.wait(60) and complete(*args))
    module = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    path, mean, skips = shards.path_of(tmp_path, 1), torch.ones(3), [1]
    state = {"module": module.state_dict(), "means": {"1000": {"weight": mean}}, "skips": {"steps": skips}}
    writing = shards.Writing(path, *split(state), 2, group)
    nn.init.zeros_(module.weight)
    mean.zero_(), skips.append(2)
    assert not path.exists() and checkpoint.load_latest(tmp_path) is None
    go.set()
    writing.wait()
    found = checkpoint.load(path)
    torch.testing.assert_close(found["module"], before, rtol=0, atol=0)
    assert found["means"]["1000"]["weight"].tolist() == [1, 1, 1] and found["skips"] == {"steps": [1]}


def test_on_cpus_nothing_is_copied_and_training_waits(tmp_path, group, monkeypatch):
    """A copy would be of the size of all that training holds."""
    monkeypatch.delattr("torch.distributed.checkpoint.staging.BlockingAsyncStager.stage")
    module, optimizer = trained(1)
    checkpoints = Checkpoints(tmp_path, SimpleNamespace(world_size=2, device=torch.device("cpu")))
    checkpoints.save(1, {"module": module.state_dict(), "optimizer": optimizer.state_dict()}, keep=2)
    found = checkpoint.load(shards.path_of(tmp_path, 1))
    torch.testing.assert_close(found["module"], dict(module.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(found["optimizer"]["state"], optimizer.state_dict()["state"], rtol=0, atol=0)
    checkpoints.close()


def test_the_newest_are_kept_of_either_form(tmp_path, group):
    checkpoint.save(tmp_path, 1, {"module": {}})
    write(tmp_path, 2, group)
    write(tmp_path, 4, group)
    assert sorted(p.name for p in tmp_path.glob("*step_*")) == ["step_00000002", "step_00000004"]
    checkpoint.save(tmp_path, 4, {"module": {}})
    assert sorted(p.name for p in tmp_path.glob("*step_*")) == ["step_00000002", "step_00000004.pt"]
    write(tmp_path, 3, group, keep=1)
    assert [p.name for p in tmp_path.glob("*step_*")] == ["step_00000003"]


DAMAGE = {
    "__0_0.distcp of 3 files missing": lambda path: (path / "__0_0.distcp").unlink(),
    "rest.pt of 3 files missing": lambda path: (path / "rest.pt").unlink(),
    "digests.json is missing": lambda path: (path / "digests.json").unlink(),
    "digests.json: damaged": lambda path: (path / "digests.json").write_text("{}"),
    "__0_0.distcp is damaged: SHA-256": lambda path: flip(path / "__0_0.distcp"),
    ".metadata is damaged: SHA-256": lambda path: flip(path / ".metadata"),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_shard_falls_back_to_the_checkpoint_before(tmp_path, group, capsys, reason):
    write(tmp_path, 1, group)
    path = write(tmp_path, 2, group)
    DAMAGE[reason](path)
    step, found = checkpoint.load_latest(tmp_path)
    assert step == 1 and found["recipe"] == {"seed": 1}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mvar: warning: {path}: not a readable checkpoint (") and reason in line
    assert line.endswith("; allowed: a complete one; training goes on from the one before it, step_00000001")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoint.load(path)


def test_an_index_cannot_run_code(tmp_path, group):
    path = write(tmp_path, 1, group)
    (path / ".metadata").write_bytes(pickle.dumps(os.system))
    record = json.loads((path / "digests.json").read_text())["files"]
    shards.note_all(path, {name: shards.file_digest(path / name) for name in record})
    with pytest.raises(UserError, match=r"\.metadata holds Python objects \(posix\.system\), which could run code"):
        checkpoint.load(path)


def test_a_kill_before_the_folder_has_its_name_loses_nothing(tmp_path, group, monkeypatch):
    write(tmp_path, 1, group)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for owner, name in ((Path, "rename"), (os, "fsync")):  # in the end, and at the first file
        monkeypatch.setattr(owner, name, full)
        with pytest.raises(OSError, match="No space left on device"):
            write(tmp_path, 2, group)
        monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.glob("*step_*")) == [".step_00000002.tmp", "step_00000001"]
    assert checkpoint.load_latest(tmp_path)[0] == 1
    checkpoint.save(tmp_path, 3, {"module": {}})
    assert not list(tmp_path.glob(".step_*"))


def test_who_takes_a_folder_for_a_file_is_told_how_to_get_one(tmp_path, group, capsys):
    path = write(tmp_path, 1, group)
    assert main(["inspect", str(path)]) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert "a folder of several processes' shards: mvar export RUN --step N makes a file of it" in line


def test_repair_finds_what_is_missing(tmp_path, group, capsys):
    path = write(tmp_path / "runs" / "r" / "checkpoints", 2, group)
    (path / "__0_0.distcp").unlink()
    flip(path / "rest.pt")
    assert main(["repair", "--check", "--results", str(tmp_path)])
    said = " ".join("".join(capsys.readouterr()).split())
    assert "__0_0.distcp: cannot be read" in said and "rest.pt: wrong checksum" in said
    assert "delete the folder" in said


@pytest.mark.slow
def test_a_checkpoint_of_either_form_is_exported(tmp_path, group, capsys):
    """Of an unfinished run: what the official code loads, with the run's configuration."""
    config = override(PRESETS["smoke"], {"model.depth": 2, "model.width": 16, "model.pattern": "intra+mamba"})
    run = Store(tmp_path).run_of(config)
    run.path.mkdir(parents=True)
    run.write_config(config)
    model = ScaleTransformer(config.model, config.token_space)
    state = {"module": model.state_dict()}
    shards.Writing(shards.path_of(run.path / "checkpoints", 4), *split(state), 2, group).wait()
    checkpoint.save(run.path / "checkpoints", 8, state)
    words = ["export", run.name, "--results", str(tmp_path), "--out", str(tmp_path / "g.pth")]
    for step in (4, 8):
        assert main([*words, "--step", str(step)]) == OK
        loaded, facts = load_generator(tmp_path / "g.pth")
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
        assert facts.config == config.model
    assert main([*words, "--step", "6"]) == main([*words, "--step", "4", "--ema", "3"]) == USER_ERROR
    assert "step: " in capsys.readouterr().err
    assert main(words) == USER_ERROR and "is not trained yet" in capsys.readouterr().err
