"""Files x damages x commands: one damaged document is one line, the others go on, and the remedy mends it."""

import random
import shutil
from pathlib import Path

import pytest
from damages import DAMAGES
from tiny_runs import CONFIG, TINY

from mvar.analysis.cache import ReadCache
from mvar.analysis.records import load_records
from mvar.cli import main
from mvar.errors import FAILURE, OK
from mvar.runs.pipeline import execute
from mvar.runs.states import DONE, STOPPED
from mvar.runs.store import Store

SETTINGS = [f"{name}={value}" for name, value in TINY.items()]
FILES = {
    "run status": "runs/{run}/status.json",
    "config": "runs/{run}/config.json",
    "evaluations": "runs/{run}/eval.json",
    "metrics": "runs/{run}/metrics.jsonl",
    "tokenizer of a run": "runs/{run}/tokenizer.json",
    "execution": "runs/{run}/execution.json",
    "environment": "runs/{run}/env.json",
    "timing": "runs/{run}/samples/*/timing.json",
    "manifest": "sweeps/*.json",
    "tokenizer status": "stages/tokenizer-*/status.json",
    "tokens status": "stages/tokens-*/status.json",
    "extractor status": "stages/extractor-*/status.json",
    "tokenizer origin": "stages/tokenizer-*/config.json",
    "quality": "stages/tokenizer-*/quality.json",
    "floors": "stages/extractor-*/floors.json",
    "extractor": "stages/extractor-*/extractor.json",
    "tokens": "stages/tokens-*/heldout/meta.json",
}
HARMLESS = {("environment", "keys missing"), ("environment", "deep and closed"), ("metrics", "empty")}
MENDED_BY_COMMAND = ("run status", "config", "evaluations", "manifest")
MENDED_BY_COMMAND += (
    "tokenizer status",
    "tokens status",
    "extractor status",
)  # of others nobody reads of finished runs
PRODUCT = [(f, d) for f in FILES for d in DAMAGES if (f, d) not in HARMLESS]
SAMPLE = random.Random(13).sample(PRODUCT, 40)


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """The results of a sweep, made in this process."""
    root = tmp_path_factory.mktemp("whole") / "results"
    assert main(command(root)) == OK
    return root


def command(root: Path) -> list[str]:
    """The command that makes it."""
    words = ["submit", "mixers", "--preset", "smoke", "--cluster", "inprocess", "--results", str(root)]
    return [*words, "--set", *SETTINGS]


def bytes_of(root: Path) -> dict[str, bytes]:
    """What must come back to the bit."""
    patterns = ("runs/*/config.json", "runs/*/*.safetensors", "runs/*/samples/*/samples.npz", "stages/*/*.safetensors")
    more = ("stages/*/*/*.bin", "stages/*/*/meta.json", "stages/*/quality.json", "stages/*/floors.json")
    paths = [path for pattern in (*patterns, *more) for path in sorted(root.glob(pattern))]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def metrics_of(root: Path) -> dict[str, object]:
    return {
        f"{run.name}/{name}": (record["metrics"], record["cost"], record["sample"])
        for run in Store(root).runs()
        for name, record in run.evaluations().items()
    }


def asked_of(root: Path) -> list[object]:
    return [(m["sweep"], m["mode"], m["seeds"], m["sample_seeds"], m["cells"]) for m in Store(root).manifests()]


def damaged(whole: Path, root: Path, file: str, damage: str) -> tuple[Path, str]:
    """A copy with one damaged file; that file, and the run whose files are meant."""
    shutil.copytree(whole, root)
    run = Store(root).runs()[1].name
    (path, *_) = sorted(root.glob(FILES[file].format(run=run)))
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    return path, run


def said(capfd, words: list[str]) -> tuple[int, str, str]:
    code = main(words)
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return code, out, err


def check(whole: Path, tmp_path: Path, capfd, file: str, damage: str, by_repair: bool) -> None:
    root = tmp_path / "results"
    path, run = damaged(whole, root, file, damage)
    others = [other.name for other in Store(root).runs() if other.name != run]
    place = ["--results", str(root)]

    code, out, err = said(capfd, ["status", *place])
    assert code == (FAILURE if file == "manifest" else OK), err
    assert all(f"{name} │ done" in " ".join(out.split()) for name in others), out
    assert sum(str(path) in line for line in err.splitlines()) <= 1

    code, out, err = said(capfd, ["evaluate", others[0], *place])
    assert code == OK, err

    if by_repair:
        before = {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        code, out, err = said(capfd, ["repair", *place])
        assert code == FAILURE and sum(str(path) in line for line in out.splitlines()) == 1, out + err
        assert before == {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        code, out, err = said(capfd, ["repair", "--yes", *place])
        assert code == OK, out + err
    code, out, err = said(capfd, command(root))
    assert code == OK and "4 of 4 runs done" in out, out + err
    if not by_repair and file not in MENDED_BY_COMMAND:
        return
    code, out, err = said(capfd, ["repair", *place])
    assert code == OK, out + err
    code, out, err = said(capfd, ["status", *place])
    assert code == OK and str(root) not in err and out.count(" done ") >= 4 + 3, out + err
    assert bytes_of(root) == bytes_of(whole) and metrics_of(root) == metrics_of(whole)
    assert asked_of(root) == asked_of(whole)
    assert all(one.state() == DONE for one in (*Store(root).runs(), *Store(root).stages()))


@pytest.mark.parametrize(("file", "damage"), SAMPLE)
def test_some(whole, tmp_path, capfd, file, damage):
    """A sample of them, mended by `mvar repair --yes`."""
    check(whole, tmp_path, capfd, file, damage, by_repair=True)


@pytest.mark.slow
@pytest.mark.parametrize("by_repair", [True, False], ids=["repair", "command"])
@pytest.mark.parametrize(("file", "damage"), PRODUCT)
def test_all(whole, tmp_path, capfd, file, damage, by_repair):
    """All of them, mended by `mvar repair --yes` or by the command that made the results."""
    check(whole, tmp_path, capfd, file, damage, by_repair)


REPORTED = ["run status", "config", "evaluations", "manifest", "quality", "floors", "environment"]
ONE = ("evaluations", "wrong types")
CASES = [(f, d) for f in REPORTED for d in ("deep", "wrong types") if (f, d) != ONE]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("file", "damage"), [ONE, *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES)])
def test_a_report_lists_it(whole, tmp_path, capfd, file, damage):
    """Under Problems, once; the report is written with all that can be read."""
    path, run = damaged(whole, root := tmp_path / "results", file, damage)
    code, _, err = said(capfd, ["report", "--results", str(root)])
    assert code == OK
    text = (root / "report/report.md").read_text()
    problems = text[text.rindex("## Problems") :].replace("\\", "")
    name = str(path.relative_to(root))
    assert sum(name in line for line in problems.splitlines()) == 1, problems
    assert sum(name in line for line in err.splitlines()) == 1, err
    if file != "manifest":  # which says what the tables are of
        assert all(other.name in text for other in Store(root).runs() if other.name != run)


ORIGINS = ("tokenizer", "tokens", "extractor")
KINDS = ["empty", "cut", "not UTF-8", "a list", "wrong types"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("damage", ["wrong types", *(pytest.param(d, marks=pytest.mark.slow) for d in KINDS[:-1])])
def test_a_report_lists_what_stages_are_of_and_how_long_drawing_took(whole, tmp_path, capfd, damage):
    """`config.json` of each kind of stage and `timing.json`: a line each, with what mends it; then none."""
    shutil.copytree(whole, root := tmp_path / "results")
    cache = ReadCache(root / "report/cache.json")  # what was read is kept: later damage is seen all the same
    assert load_records(root, cache).problems == []
    cache.save()
    paths = [next(root.glob(f"stages/{kind}-*/config.json")) for kind in ORIGINS]
    paths.append(next(root.glob("runs/*/samples/*/timing.json")))
    for path in paths:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))

    code, _, err = said(capfd, ["report", "--results", str(root)])
    assert code == OK
    problems = (root / "report/report.md").read_text().partition("## Problems")[2].replace("\\", "").splitlines()
    for path in paths:
        (line,) = [line for line in problems if str(path.relative_to(root)) in line]
        assert "mvar repair --yes" in line
        assert sum(str(path) in line for line in err.splitlines()) == 1, err

    assert said(capfd, ["repair", "--yes", "--results", str(root)])[0] == OK
    assert load_records(root, ReadCache(root / "report/cache.json")).problems == []


UNFINISHED = ["run status", "config", "metrics", "tokenizer of a run", "execution", "environment"]


@pytest.mark.parametrize("file", UNFINISHED)
@pytest.mark.parametrize("damage", ["empty", "wrong types"])
def test_an_unfinished_run_goes_on(store, made, file, damage):
    """From its last checkpoint, to the same bytes: a job that is queued again with an empty status does not fail."""
    steps: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "train":
            steps.append(done)

    run = store.run(CONFIG.run_id)
    shutil.rmtree(run.path)
    assert execute(CONFIG, store, progress, lambda: max(steps, default=0) >= 6) == STOPPED
    path = store.root / FILES[file].format(run=run.name)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    steps.clear()
    assert execute(CONFIG, Store(store.root), progress) == DONE
    assert min(steps) > 4  # not anew
    other = Store(made).run(CONFIG.run_id)
    assert run.weights.read_bytes() == other.weights.read_bytes()
    assert run.config_path.read_bytes() == other.config_path.read_bytes()
    (ours,), (theirs,) = run.evaluations().values(), other.evaluations().values()
    assert ours["metrics"] == theirs["metrics"] and run.state() == DONE
    assert main(["repair", "--results", str(store.root)]) == OK
