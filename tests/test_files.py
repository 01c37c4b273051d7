"""Writers: whole files, with the permissions of any new file, and never through a link."""

import json
import os
import stat

import numpy as np
import pytest

from mvar.errors import UserError
from mvar.files import atomic_write, own_file, read_json, write_json
from mvar.rows import Rows
from mvar.training.metrics_log import MetricsLog


@pytest.fixture(params=[0o022, 0o002, 0o077, 0o027])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_what_the_umask_leaves(umask, tmp_path):
    write_json(tmp_path / "a" / "new.json", {})
    assert mode(tmp_path / "a" / "new.json") == 0o666 & ~umask
    with atomic_write(tmp_path / "secret", mode=0o600) as file:
        assert mode(next(tmp_path.glob(".secret.*.tmp"))) == 0o600 & ~umask  # never open to others, not for a moment
        file.write(b"x")
    assert mode(tmp_path / "secret") == 0o600 & ~umask


def test_a_replaced_file_is_a_new_one(umask, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and mode(path) == 0o666 & ~umask


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), atomic_write(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def linked(tmp_path):
    """A link to somebody's file, and that file."""
    target, link = tmp_path / "elsewhere" / "theirs", tmp_path / "here" / "link"
    target.parent.mkdir()
    link.parent.mkdir()
    target.write_bytes(b"theirs\n")
    link.symlink_to(target)
    return link, target


def write_png(path):
    from mvar.runs.stages.sample import save_grid

    save_grid(path, np.zeros((1, 1, 4, 4, 3), np.uint8))


def write_figure(path):
    from mvar.analysis.style import canvas

    for kind in ("png", "pdf"):
        path.with_name(f"f.{kind}").symlink_to(path.readlink())
    with canvas(path.parent, "f", 1.0):
        pass
    path.unlink()
    path.with_name("f.pdf").rename(path)


def write_weights(path):
    from torch import nn

    from mvar.checkpoints.weights import save_weights

    save_weights(path, nn.Linear(1, 1), {})


def grow(path, data):
    """Rows that are given their name in the end."""
    with Rows(path.with_suffix(".partial"), path.with_suffix(".record"), {}, 1, final=path) as rows:
        rows.append(data)
        rows.finish()


def write_partial(path):
    with Rows(path, path.with_suffix(".record"), {}, 1) as rows:
        rows.append(b"ours!!")


WRITERS = {
    "json": lambda path: write_json(path, {}),
    "png": write_png,
    "figure": write_figure,
    "weights": write_weights,
    "rows": lambda path: grow(path, b"ours!!"),
    "rows in work": write_partial,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_link_is_replaced_and_not_followed(write, linked):
    link, target = linked
    write(link)
    assert target.read_bytes() == b"theirs\n"
    assert not link.is_symlink() and link.is_file() and link.read_bytes() != b"theirs\n"


def test_a_log_that_is_a_link_goes_on_in_a_file_of_its_own(linked):
    link, target = linked
    target.write_text('{"step": 1}\n')
    link.rename(link.with_name("metrics.jsonl"))
    log = MetricsLog(link.parent, step=1, cadence=[[0, 1]])
    log.write({"step": 2})
    log.close()
    path = link.with_name("metrics.jsonl")
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2] and not path.is_symlink()
    assert target.read_text() == '{"step": 1}\n'


def test_a_link_to_nothing_makes_nothing_there(tmp_path):
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "not there")
    own_file(path).write_bytes(b"x")
    assert not path.is_symlink() and not (tmp_path / "not there").exists()
    assert own_file(tmp_path / "neither") == tmp_path / "neither"


def test_a_directory_that_is_a_link_is_used(tmp_path):
    """Runs on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    write_json(tmp_path / "runs" / "a" / "x.json", {"a": 1})
    assert read_json(tmp_path / "disk" / "a" / "x.json") == {"a": 1} and (tmp_path / "runs").is_symlink()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"\x00" * 9, b"[" * 100_000])
def test_what_is_no_json_is_one_line(content, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json: not valid JSON \("):
        read_json(path)


def test_json_is_utf8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    (tmp_path / "x.json").write_bytes('{"é": "中"}'.encode())
    assert read_json(tmp_path / "x.json") == {"é": "中"}
