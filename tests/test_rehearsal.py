"""The rehearsal of docs/imagenet.md knows every command of the page: neither can change alone."""

import importlib.util
import os
from pathlib import Path

import pytest

from mvar.config import override
from mvar.presets import PRESETS

SCRIPT = Path(__file__).parents[1] / ".ci/rehearsal.py"


@pytest.fixture(scope="module")
def rehearsal():
    spec = importlib.util.spec_from_file_location("rehearsal", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_of_the_page_is_rehearsed(rehearsal):
    names, commands = rehearsal.page()
    assert sorted(names) == sorted(rehearsal.FILES)
    run = [rehearsal.rehearsed(command) for command in commands]
    for beginning in rehearsal.ADDED:
        assert any(command.startswith(beginning) for command in run), beginning
    (shared,) = (command for command in run if command.startswith("torchrun"))
    assert "--nproc-per-node 2 " in shared and shared.endswith(rehearsal.TINY_SET + rehearsal.SHARED)
    (alone,) = (command for command in run if command.startswith("mvar run"))
    assert alone.endswith(f"{rehearsal.TINY_SET} runtime.threads=2 --workers 1")  # the cores that the processes had
    with pytest.raises(ValueError, match=r"no rehearsal of 'mvar forget RUN'"):
        rehearsal.rehearsed("mvar forget RUN")


def test_what_is_made_small_is_no_architecture(rehearsal):
    config = PRESETS["imagenet256-d16-online"]
    small = override(config, rehearsal.TINY)
    assert (small.model, small.tokenizer, small.data) == (config.model, config.tokenizer, config.data)
    assert small.train.tokens == "online" and small.evaluation.num_images == 16


def test_what_processes_take_stays_known_when_they_are_gone(rehearsal):
    took = rehearsal.Took("a command")
    took.look([os.getpid()])
    memory, seconds = took.memory, took.core_s[os.getpid()]
    assert memory > 50e6 and 0 < seconds <= sum(os.times()[:2]) + 0.1
    took.look([2**30])
    assert took.memory == memory and sum(took.core_s.values()) == seconds
