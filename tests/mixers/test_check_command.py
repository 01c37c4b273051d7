"""`mvar check`: the example is sound, what is wrong with a user's mixer is said in words, mistakes are one line."""

from pathlib import Path

import pytest

from mvar import plugins
from mvar.checking.mixer import CHECKS
from mvar.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "mixer.py"


@pytest.fixture(autouse=True)
def forgotten():
    plugins.forget_all()
    yield
    plugins.forget_all()


def test_the_example_is_sound(capsys):
    assert main(["check", str(EXAMPLE)]) == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith("plug-ins: mixer (")
    assert lines == [f"{text}: {check}: ok" for text in ("recent", "recent:1", "recent:3") for check in CHECKS]
    assert last.startswith(f"recent: nothing is wrong ({3 * len(CHECKS)} checks, ")


def test_what_is_wrong_is_said_in_words(tmp_path, capsys):
    """The example with a window that is one scale longer than it says, and a state that keeps everything."""
    text = EXAMPLE.read_text()
    wrong = text.replace("seen = known[max(0, end - self.settings.w) : end]", "seen = known[:end]")
    wrong = wrong.replace("known[max(0, len(known) - self.settings.w + 1) :]", "known").replace('"1", "3"', "()")
    (tmp_path / "mine.py").write_text(wrong)
    assert main(["check", str(tmp_path / "mine.py"), "--settings", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("recent:1: visible: WRONG")
    assert lines[at + 1].startswith(
        "    sides 1 2 3 4, span [0,4): token 1 of scale 1 sees token 0 of scale 0, which visible does not say ("
    )
    at = lines.index("recent:1: state bytes: WRONG")
    assert lines[at + 1].startswith(
        "    sides 1 2 3 4, fp32, 1 image: state_bytes says 0 at most; the state keeps 7,168"
    )
    assert lines[lines.index("recent:1: FLOPs: WRONG") + 1].startswith("    sides 1 2 3 4, span [1,2): flops says ")
    assert lines[-1].startswith("recent: ") and " of them failed (" in lines[-1]
    assert "recent:1: gradients: ok" in lines


@pytest.mark.slow
def test_one_that_is_there_is_checked_by_its_name(capsys):
    assert main(["check", "conv", "--width", "32"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("conv: ")] == [f"conv: {check}: ok" for check in CHECKS]
    assert last.startswith("conv: nothing is wrong (")
    assert main(["check", "convv"]) == 2
    assert "'convv' is unknown (did you mean 'conv'?); allowed: " in (said := capsys.readouterr().err)
    assert "intra" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "options", "said"),
    [
        (None, [], "plugin: no Python file"),
        ("x = 1", [], "mine.py registers no mixer; allowed: one with @mvar.register('mixer', NAME)"),
        ("1 / 0", [], "cannot be loaded (ZeroDivisionError: division by zero)"),
        ("example", ["--settings", "0"], "model.pattern: 'recent:0': recent.w: '0': Input should be greater than"),
        ("example", ["--settings", "2,3"], "mixer: 'recent:2,3': '3' has no name, and is not the first"),
        ("example", ["--settings", "size=3"], "field of recent: 'size' is unknown; allowed: w"),
        ('example:"1", "0"', [], "mixer 'recent': examples: 'recent:0': recent.w: '0': Input should be greater"),
        ('example:"1"', [], "mixer 'recent': examples: '1'; allowed: a tuple of texts, e.g. ('2',)"),
        ("example", ["--width", "30"], "model.num_heads: 4 does not divide model.width 30"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, code, options, said):
    path = tmp_path / "mine.py"
    if code:
        name, _, examples = code.partition(":")
        text = EXAMPLE.read_text().replace('"1", "3"', examples or '"1", "3"')
        path.write_text(text if name == "example" else code)
    assert main(["check", str(path), *options]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and "ok" not in out
