"""Files x damages x commands: one damaged document is one line, the others go on, and the remedy mends it."""

import json
import random
import shutil
from pathlib import Path

import pytest
from tiny_runs import TINY

from experiments.store import DONE, Store
from mvar.cli import main
from mvar.errors import FAILURE, OK

SETTINGS = [f"{name}={value}" for name, value in TINY.items()]
WRONG = {"schema_version": 1}


def spoiled(value):
    """The same keys with values of other types, at every depth."""
    if isinstance(value, dict):
        return {k: v if k == "schema_version" else spoiled(v) for k, v in value.items()} or [1]
    return {"x": 1} if isinstance(value, list | str) else [value]


def deep_spoiled(text: bytes) -> bytes:
    lines = [json.dumps(spoiled(json.loads(line))) for line in text.splitlines()] if b"\n{" in text else None
    return ("\n".join(lines) + "\n" if lines else json.dumps(spoiled(json.loads(text)))).encode()


DAMAGES = {
    "empty": lambda text: b"",
    "cut": lambda text: text[: len(text) // 2],
    "not UTF-8": lambda text: b"\xff\xfe" + text,
    "a list": lambda text: b"[1, 2]",
    "a string": lambda text: b'"text"',
    "a number": lambda text: b"7",
    "null": lambda text: b"null",
    "deep": lambda text: b"[" * 100_000,
    "deep and closed": lambda text: b'{"schema_version": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}",
    "wrong types": deep_spoiled,
    "keys missing": lambda text: json.dumps(WRONG).encode(),
}
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
PRODUCT = [(f, d) for f in FILES for d in DAMAGES if (f, d) not in HARMLESS]
SAMPLE = random.Random(13).sample(PRODUCT, 12)


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
    if file in ("quality", "floors", "extractor", "tokens", "tokenizer origin", "metrics", "environment", "timing", "execution", "tokenizer of a run") and not by_repair:
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
