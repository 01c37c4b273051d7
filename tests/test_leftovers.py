"""Atomic files: what killed writers leave is removed, what living ones write is not."""

import os
import signal
import time

import pytest

from mvar import files
from mvar.files import atomic_write, machine, process_began, remove_leftovers
from mvar.runs.store import Store


def killed_while_writing(path) -> None:
    child = os.fork()
    if child == 0:
        with atomic_write(path) as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def temporary_files(folder) -> list[str]:
    return sorted(p.name for p in folder.rglob(".*.tmp"))


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_is_not(tmp_path):
    killed_while_writing(tmp_path / "below" / "a.json")
    with atomic_write(tmp_path / "b.json") as file:
        file.write(b"{}")
        assert len(temporary_files(tmp_path)) == 2
        remove_leftovers(tmp_path)
        (left,) = temporary_files(tmp_path)
        assert left.startswith(".b.json.")
    assert (tmp_path / "b.json").read_bytes() == b"{}" and temporary_files(tmp_path) == []


def test_a_number_that_another_process_has_now_is_no_living_writer(tmp_path):
    began = process_began(os.getpid())
    names = {began: True, str(int(began) + 1): False}
    for text, lives in names.items():
        path = tmp_path / f".a.json.{machine()}-{os.getpid()}-{text}.abcd1234.tmp"
        path.touch()
        remove_leftovers(tmp_path)
        assert path.exists() == lives


@pytest.mark.parametrize("name", [".a.json.00000000-1-5.abcd1234.tmp", ".a.json.abcd_123.tmp"])
def test_writers_that_cannot_be_asked_for_have_a_day(tmp_path, name):
    path = tmp_path / name
    path.touch()
    remove_leftovers(tmp_path)
    assert path.exists()
    os.utime(path, (0, time.time() - files.STRANGE_AGE_S - 1))
    remove_leftovers(tmp_path)
    assert not path.exists()


def test_files_that_are_not_ours_stay(tmp_path):
    for name in (".a.tmp", "a.json.00000000-1-5.abcd1234.tmp", ".a.json.ABCDEFGH.tmp"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".a.json.abcd1234.tmp").symlink_to("nowhere")
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_whoever_works_in_a_run_or_stage_next_tidies_up(tmp_path):
    for directory in (Store(tmp_path).run("a-run"), Store(tmp_path).stage("tokens", "abc")):
        killed_while_writing(directory.path / "train" / "tokens.bin")
        killed_while_writing(directory.path / "status.json")
        with directory.lock():
            assert temporary_files(directory.path) == []
