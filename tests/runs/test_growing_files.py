"""Files that grow while a run works, damaged or gone: what `mvar status` says, and what `mvar repair` does about it."""

import json
import os
import shutil

import pytest
from damages import DAMAGES
from tiny_runs import CONFIG

from mvar.analysis.records import load_records, training_curve
from mvar.cli import main
from mvar.config import override
from mvar.errors import FAILURE, OK
from mvar.runs.pipeline import execute
from mvar.runs.states import DONE, STOPPED
from mvar.runs.store import Store

STEPS = CONFIG.train.steps


def said(capfd, store: Store, *words: str) -> tuple[int, str, str]:
    code = main([*words, "--results", str(store.root)])
    out, err = capfd.readouterr()
    return code, out, err


def files(store: Store) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in store.root.rglob("*") if path.is_file()}


def lines(text: bytes) -> list[bytes]:
    return text.splitlines(keepends=True)


ENDS = {
    **{name: damage for name, damage in DAMAGES.items() if name not in ("empty", "cut")},
    "empty": lambda text: b"",
    "last line cut": lambda text: text[:-20],
    "last line": lambda text: text + b'{"step": 9}\n',
    "first line": lambda text: b"\x00" * 50 + b"\n" + text,
    "one long line": lambda text: text + b'"' + b"x" * 100_000 + b'"\n',
}


@pytest.mark.parametrize("damage", ENDS)
def test_status_names_damaged_metrics(damage, store, capfd):
    """One line with the path; what it says to do ends it, and the other rows stay."""
    run = store.run(CONFIG.run_id)
    text = run.metrics.read_bytes()
    run.metrics.write_bytes(ENDS[damage](text))
    code, out, err = said(capfd, store, "status")
    (line,) = err.splitlines()
    assert code == OK and line.startswith(f"mvar: warning: {run.metrics}: ") and "`mvar repair --yes`" in line
    assert f"{run.name} │ done" in " ".join(out.split())
    said(capfd, store, "repair", "--yes")
    assert said(capfd, store, "status")[::2] == (OK, "")
    assert said(capfd, store, "repair")[0] == OK
    whole = {"last line cut": lines(text)[:-1], "not UTF-8": lines(text)[1:]}
    assert lines(run.metrics.read_bytes()) == whole.get(damage, lines(text) if "line" in damage else [])


def test_status_is_silent_about_rows_that_are_being_written(store, capfd):
    """No row yet, or half of one: the run is not finished."""
    run = store.run(CONFIG.run_id)
    text = run.metrics.read_bytes()
    run.write_status(STOPPED, "train")
    for content in (b"", text[:30], text[:-20]):
        run.metrics.write_bytes(content)
        assert said(capfd, store, "status")[::2] == (OK, "")
    run.metrics.write_bytes(b"[1]\n" + text)
    assert str(run.metrics) in said(capfd, store, "status")[2]


def test_status_reads_little_of_metrics(store, monkeypatch):
    """Of a long file two lines are parsed."""
    from mvar.runs import derived

    run, parsed = store.run(CONFIG.run_id), []
    run.metrics.write_bytes(run.metrics.read_bytes() * 200)
    row = derived.metrics_row
    monkeypatch.setattr(derived, "metrics_row", lambda line: parsed.append(line) or row(line))
    assert derived.metrics_problem(run.metrics, lambda: pytest.fail("asked without need")) == ""
    assert [json.loads(line)["step"] for line in parsed] == [1, STEPS]


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "empty"])
def test_repair_says_that_the_training_curve_is_lost(removed, store, capfd):
    """It cannot be derived: that is noted with --yes, and the report has it."""
    run = store.run(CONFIG.run_id)
    run.metrics.unlink() if removed else run.metrics.write_bytes(b"")
    before = files(store)
    code, out, _ = said(capfd, store, "repair")
    (line,) = [line for line in out.splitlines() if str(run.metrics) in line]
    assert code == FAILURE and f"no row of {STEPS} finished steps is there: is lost" in line
    assert files(store) == before
    assert said(capfd, store, "repair", "--yes")[0] == OK
    assert said(capfd, store, "repair")[0] == OK and before.items() <= files(store).items()
    training_curve(run, "train/loss", problems := [])
    assert f"runs/{run.name}: metrics.jsonl: all rows up to step {STEPS} are missing: removed or damaged" in problems
    assert load_records(store.root).table["state"].tolist() == [DONE]


def test_a_run_without_training_has_no_rows_to_lose(store, capfd):
    """One that is not finished has none either: it goes on from its checkpoint and says so itself."""
    run = store.run(CONFIG.run_id)
    run.metrics.unlink()
    run.write_status(STOPPED, "train")
    assert said(capfd, store, "repair")[0] == OK
    run.write_status(DONE, "evaluate")
    run.config_path.write_text(json.dumps(untrained(json.loads(run.config_path.read_text()))))
    for empty in (False, True):
        if empty:
            run.metrics.write_bytes(b"")
        assert str(run.metrics) not in said(capfd, store, "repair")[1] + said(capfd, store, "status")[2]


def untrained(document: dict) -> dict:
    """The document of a published checkpoint's run."""
    return {**document, "train": {**document["train"], "steps": 0, "init_from": "/g.pth"}}


CONFIG_OF_MORE = override(CONFIG, {"sample.seed": 1, "runtime.sample_batch": 10})
SIDE = CONFIG.data.image_size


def half_drawn(store: Store):
    """A run whose second evaluation was stopped after 20 of 40 images; the folder of its images."""
    drawn: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "sample":
            drawn.append(done)

    assert execute(CONFIG_OF_MORE, store, progress, lambda: max(drawn, default=0) >= 20) == STOPPED
    folder = store.run(CONFIG.run_id).samples(CONFIG_OF_MORE.evaluation_id)
    assert json.loads((folder / "partial.json").read_text())["done"] == 20
    return folder


@pytest.mark.parametrize("loss", ["missing", "shorter", "record"])
def test_repair_tells_images_that_are_gone(loss, store, tmp_path, capfd):
    """They are derivable: drawn again, to the same bytes."""
    folder = half_drawn(store)
    shutil.copytree(store.root, tmp_path / "other")
    record, rows = folder / "partial.json", folder / "partial.bin"
    assert said(capfd, store, "repair")[0] == OK  # whole: nothing to say
    size = 20 * SIDE * SIDE * CONFIG.data.channels
    if loss == "missing":
        rows.unlink()
        told = "partial.bin, whose 20 rows it tells of, is not there"
    elif loss == "shorter":
        os.truncate(rows, size - 1)
        told = f"partial.bin has {size - 1:,} bytes where its 20 rows have {size:,}"
    else:
        record.write_text('{"done": []}')
        told = "not as this version writes it"
    before = files(store)
    code, out, _ = said(capfd, store, "repair")
    (line,) = [line for line in out.splitlines() if str(record) in line]
    assert code == FAILURE and line.startswith(f"{record}: {told}: is deleted; its images are drawn again")
    assert files(store) == before
    assert said(capfd, store, "repair", "--yes")[0] == OK and not record.exists() and not rows.exists()
    assert said(capfd, store, "repair")[0] == OK
    other = Store(tmp_path / "other")
    assert execute(CONFIG_OF_MORE, store) == execute(CONFIG_OF_MORE, other) == DONE
    theirs = other.run(CONFIG.run_id).samples(CONFIG_OF_MORE.evaluation_id) / "samples.npz"
    assert (folder / "samples.npz").read_bytes() == theirs.read_bytes()


def test_a_record_that_a_kill_left_behind_finished_images(store, capfd):
    """Its rows are in the finished file: nothing is drawn."""
    folder = store.run(CONFIG.run_id).samples(CONFIG.evaluation_id)
    (folder / "partial.json").write_text(json.dumps({"plan": {}, "done": 40, "sha256": "0"}))
    code, out, _ = said(capfd, store, "repair", "--yes")
    assert code == OK and "is deleted; its images are finished" in out
    assert not (folder / "partial.json").exists() and (folder / "samples.npz").is_file()
