"""Plug-ins that raise, or give what nobody can use: one line that names what it is, its file and the line in it."""

from pathlib import Path

import numpy as np
import pytest
import tiny_runs

from mvar import plugins
from mvar.cli import main
from mvar.config import override
from mvar.errors import OK, USER_ERROR
from mvar.presets import PRESETS
from mvar.runs.store import one_line
from mvar.transformer import ScaleTransformer

TINY = [f"{name}={value}" for name, value in tiny_runs.TINY.items()]
MIXER = """
import mvar
from mvar.mixers.global_attention import GlobalAttention

@mvar.register("mixer", "mine")
class Mine(GlobalAttention):
"""
RAISES = "    {head}:\n        raise ValueError('of mine')\n"
EXECUTOR = """
import mvar

@mvar.register("executor", "mine")
class Mine(mvar.Executor):
    def uses(self, field):
        {uses}

    def check_results(self, results):
        {check}

    def execute(self, requests, store, dry_run=False):
        {execute}
"""
SOURCE = """
import numpy as np
import mvar

@mvar.register("source", "mine")
class Mine(mvar.DataSource):
    def check(self, config, stored=False, order_is_asked=False):
        {check}

    def open(self, config, split=None):
        labels, names = {labels}, {names}
        return mvar.OpenedSource(mvar.ArrayPictures(np.zeros((len(labels), 8, 8), np.uint8), labels, names))
"""
SWEEP = """
import mvar

def build(config):
    {build}

EXPERIMENT = mvar.Experiment("mine", "Mine", "one row", build)
"""


def said(capsys, *words: object) -> str:
    """The one line that a command ends with."""
    assert main([str(word) for word in words]) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    return line


def write(path: Path, text: str) -> tuple[Path, int]:
    """A plug-in, and the number of the line of it that raises."""
    path.write_text(text)
    raising = [number for number, line in enumerate(text.splitlines(), 1) if "raise " in line or "1 / 0" in line]
    return path, (raising or [0])[0]


@pytest.mark.parametrize("where", ["uses", "check", "execute"])
def test_an_executor_that_raises(tmp_path, capsys, where):
    bodies = {"uses": "return False", "check": "pass", "execute": "return None", where: "raise ValueError('of mine')"}
    file, line = write(tmp_path / "p.py", EXECUTOR.format(**bodies))
    (tmp_path / "c.toml").write_text('executor = "mine"')
    words = ["submit", "layers", "--preset", "smoke", "--plugin", file, "--cluster", tmp_path / "c.toml"]
    told = said(capsys, *words, "--results", tmp_path / "r", "--set", *TINY)
    assert told.endswith(f"executor 'mine' raises ValueError: of mine ({file}, line {line})"), told


def test_an_executor_that_gives_no_summary(tmp_path, capsys):
    file, _ = write(tmp_path / "p.py", EXECUTOR.format(uses="return False", check="pass", execute="return 3"))
    (tmp_path / "c.toml").write_text('executor = "mine"')
    words = ["submit", "layers", "--preset", "smoke", "--plugin", file, "--cluster", tmp_path / "c.toml"]
    told = said(capsys, *words, "--results", tmp_path / "r", "--set", *TINY)
    assert told.endswith("executor 'mine': execute gives 3; allowed: a mvar.Summary, or None of a queue")


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ("1 / 0", "['a', 'b']", "data.name 'mine' raises ZeroDivisionError: division by zero ({file}, line {line})"),
        ("np.zeros(9, int)", "['a']", "data.name: data source 'mine' has one class only ('a'); allowed: two or more"),
        ("np.zeros(9, int)", "['a', 'b']", "data.name: data source 'mine' has one class only ('a'); allowed: two"),
        (
            "np.arange(9) % 3 + 1",
            "['a', 'b', 'c']",
            "data source 'mine': its labels are 1 to 3, of 3 classes; allowed: 0 to 2",
        ),
        ("np.zeros((3, 3), int)", "['a', 'b']", "its labels are int64 of shape (3, 3); allowed: whole numbers of"),
        ("np.arange(9) % 3", "3", "data.name 'mine' raises TypeError: 'int' object is not iterable ({file}, line "),
    ],
)
def test_a_source_that_raises_or_gives_what_nobody_can_use(tmp_path, capsys, labels, names, expected):
    """Told by the look at the data, and before a run is launched."""
    file, line = write(tmp_path / "p.py", SOURCE.format(check="pass", labels=labels, names=names))
    expected = expected.format(file=file, line=line)
    told = said(capsys, "data", "check", "mine", "--plugin", file, "--results", tmp_path / "r")
    assert expected in told, told
    words = ["run", "mixers", "--plugin", file, "--preset", "smoke", "--results", tmp_path / "r"]
    assert expected in said(capsys, *words, "--set", *TINY, "data.name=mine", "data.num_classes=3")
    assert not (tmp_path / "r/runs").exists()


@pytest.mark.parametrize("check", ["pass", "mvar.UserError and config.num_classes != 3 and wrong(config)"])
def test_the_look_at_a_source_of_ones_own_takes_its_number_of_classes(tmp_path, capsys, check):
    text = SOURCE.format(check=check, labels="np.arange(9) % 3", names="'abc'")
    file, _ = write(tmp_path / "p.py", text + "\ndef wrong(config):\n    raise mvar.UserError('num_classes')\n")
    assert main(["data", "check", "mine", "--plugin", str(file), "--results", str(tmp_path / "r")]) == OK
    assert "train: 9 images of 3 classes, 3 to 3 of each" in capsys.readouterr().out


def test_the_look_at_arrays_takes_their_number_of_classes(tmp_path, capsys):
    """And says which labels there are where some of them have no image."""
    np.save(tmp_path / "images.npy", np.zeros((6, 8, 8), np.uint8))
    words = ["data", "check", "npy", "--results", str(tmp_path / "r"), "--set", f"data.root={tmp_path}"]
    np.save(tmp_path / "labels.npy", np.arange(6) % 3)
    assert main(words) == OK
    assert "train: 6 images of 3 classes, 2 to 2 of each" in capsys.readouterr().out
    np.save(tmp_path / "labels.npy", np.array([0, 0, 1, 1, 3, 3]))
    assert "no image of 1 class ('2'), labels are 0 to 3; allowed: one or more of each" in said(capsys, *words)


@pytest.mark.parametrize("head", ["num_params(cls, config, settings)", "flops(cls, config, settings, span)"])
def test_a_mixer_whose_counts_raise(tmp_path, capsys, head):
    file, line = write(tmp_path / "p.py", MIXER + "    @classmethod\n" + RAISES.format(head=f"def {head}"))
    words = ["plan", "mixers", "--plugin", file, "--preset", "smoke", "--results", tmp_path / "r"]
    told = said(capsys, *words, "--set", *TINY, "model.pattern=mine")
    assert told.endswith(f"mixer 'mine' raises ValueError: of mine ({file}, line {line})"), told


def test_a_mixer_whose_counts_are_none(tmp_path, capsys):
    body = "    @classmethod\n    def flops(cls, config, settings, span):\n        return None\n"
    file, _ = write(tmp_path / "p.py", MIXER + body)
    words = ["plan", "mixers", "--plugin", file, "--preset", "smoke", "--results", tmp_path / "r"]
    told = said(capsys, *words, "--set", *TINY, "model.pattern=mine")
    assert told.endswith("mixer 'mine': flops gives None; allowed: a whole number"), told


def test_a_forward_that_raises_is_the_mixer_s(tmp_path):
    """As a run's status has it: also where it is our own code that does not take what it is given."""
    import torch

    texts = {
        "raise ValueError('of mine')": "mixer 'mine' raises ValueError: of mine ({file}, line {line})",
        "return super().forward(x[..., 1:], span, state)": "mixer 'mine' raises RuntimeError: ",
    }
    for number, (body, expected) in enumerate(texts.items()):
        head = "    def forward(self, x, span, state=None):\n"
        file, line = write(tmp_path / f"p{number}.py", f"{MIXER}{head}        {body}\n")
        plugins.begin([str(file)])
        config = override(tiny_runs.CONFIG, {"model.pattern": "mine"})
        space = config.token_space
        model = ScaleTransformer(config.model, space, config.runtime)
        inputs = torch.zeros(1, space.schedule.num_tokens - space.schedule.lengths[0], space.code_channels)
        with pytest.raises(Exception) as caught:
            model(torch.zeros(1, dtype=torch.int64), inputs)
        told = one_line(caught.value)
        assert expected.format(file=file, line=line) in told, told
        assert "super()" not in body or f"({file}, line {len(file.read_text().splitlines())}; raised in " in told
        plugins.forget_all()
        assert not one_line(caught.value).startswith("mixer")


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        ("return [mvar.Cell('a', 3)]", "experiment mine: cell 'a': its config is 3; allowed: a RunConfig"),
        (
            "return [mvar.Cell('a', config.model_copy(update={'seed': -1}))]",
            "experiment mine: cell 'a': seed: -1: Input should be greater than or equal to 0",
        ),
        ("return [mvar.Cell('a', mvar.override(config, {'seed': -1}))]", "experiment mine: seed: -1: Input should be"),
        ("1 / 0", "experiment mine: no cells (plug-in p raises ZeroDivisionError: division by zero ({file}, line 5))"),
    ],
)
def test_an_experiment_of_wrong_cells(tmp_path, capsys, build, expected):
    file, _ = write(tmp_path / "p.py", SWEEP.format(build=build))
    told = said(capsys, "plan", file, "--preset", "smoke", "--results", tmp_path / "r")
    assert expected.format(file=file) in told, told
    assert PRESETS["smoke"].seed == 0
