"""`mvar forget`: a request is taken back and not missed; runs stay, and nothing is lost."""

import json
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from mvar.analysis.records import load_records
from mvar.cli import main
from mvar.commands.run import Run
from mvar.config import RunConfig
from mvar.errors import OK, USER_ERROR
from mvar.runs.request import write_manifest
from mvar.runs.states import DONE
from mvar.runs.store import Store

STEM = "mixers-smoke-steps"


def ask(store: Store, *sweeps: str, seeds: str = "1", settings: tuple[str, ...] = ()) -> list[RunConfig]:
    """Ask for sweeps of the smoke preset, as `mvar run` does; the runs."""
    requests = Run(sweeps=sweeps, preset="smoke", seeds=seeds, set=(settings,)).requests()
    for request in requests:
        command = ["run", request.sweep.name, "--preset", "smoke", "--seeds", seeds]
        write_manifest(store, request, [*command, *(["--set", *settings] if settings else [])])
    return [config for request in requests for config in request.configs()]


def make(store: Store, config: RunConfig) -> None:
    """A run that looks finished."""
    run = store.run(config.run_id)
    run.write_config(config)
    run.weights.write_bytes(b"weights")
    run.metrics.write_text('{"step": 1, "train/loss": 1.0}\n')
    settings = {name: getattr(config, name).plain() for name in ("sample", "evaluation")}
    measured = {"metrics": {"eval/fid": 1.0}, "cost": {}, "timing": {}, "reference": {"split": "heldout"}}
    run.add_evaluation(config.evaluation_id, {"extractor_id": config.extractor_id, **settings, **measured})
    run.write_status(DONE, "evaluate")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Results in which mixers was asked for, and one of its runs is made."""
    store = Store(tmp_path / "results")
    make(store, ask(store, "mixers", seeds="2")[0])
    return store


def forget(store: Store, name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert main(["forget", name, "--results", str(store.root)]) == OK
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def manifests(store: Store) -> list[str]:
    return sorted(path.stem for path in (store.root / "sweeps").glob("*.json"))


def files_of_runs(store: Store) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (store.root / "runs").rglob("*") if path.is_file()}


def test_nothing_of_it_is_missed_and_its_runs_stay(store, capsys):
    run, before = store.runs()[0].name, files_of_runs(store)
    manifest = store.manifest_path(STEM).read_bytes()
    asked = {run_id for cell in json.loads(manifest)["cells"] for run_id in cell["run_ids"]}
    assert {missing.run_id for missing in load_records(store.root).missing} == asked - {run}
    aside = store.root / "sweeps" / "forgotten" / f"{STEM}.json"
    assert forget(store, STEM, capsys) == [
        f"{STEM}: forgotten ({aside})",
        f"  of its runs ({len(asked)}, seeds 0, 1) 1 are there and stay",
        "  to ask again: mvar run mixers --preset smoke --seeds 2",
    ]
    assert aside.read_bytes() == manifest and files_of_runs(store) == before
    assert store.manifests() == []
    records = load_records(store.root)
    assert records.missing == [] and list(records.table["run_id"]) == [run] and records.problems == []
    assert main(["status", "--results", str(store.root)]) == OK
    status = capsys.readouterr()
    assert "1 done" in status.out and "missing" not in status.out and status.err == ""


def test_what_another_request_asks_for_is_missed_still(store, capsys):
    layers = {config.run_id for config in ask(store, "layers")}
    forget(store, STEM, capsys)
    assert {missing.run_id for missing in load_records(store.root).missing} == layers - {store.runs()[0].name}


def test_a_sweep_stands_for_all_its_requests(store, capsys):
    ask(store, "mixers", settings=("train.steps=30",))
    ask(store, "layers")
    mixers = [name for name in manifests(store) if name.startswith("mixers-")]
    assert len(mixers) == 2
    lines = forget(store, "mixers", capsys)
    assert sorted(line.partition(":")[0] for line in lines if not line.startswith(" ")) == mixers
    assert "  to ask again: mvar run mixers --preset smoke --seeds 1 --set train.steps=30" in lines
    assert manifests(store) == ["layers-smoke-steps"]


def test_one_request_of_a_sweep(store, capsys):
    ask(store, "mixers", settings=("train.steps=30",))
    forget(store, f"{STEM}.json", capsys)  # as its file is called
    (left,) = manifests(store)
    assert left.startswith(f"{STEM}-")


def test_forgotten_again_it_gets_a_number(store, capsys):
    contents = []
    for seeds in ("1", "3", "1,5"):
        ask(store, "mixers", seeds=seeds)
        contents.append(store.manifest_path(STEM).read_bytes())
        forget(store, STEM, capsys)
        assert manifests(store) == []
    folder = store.root / "sweeps" / "forgotten"
    names = [f"{STEM}.json", f"{STEM}-2.json", f"{STEM}-3.json"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert [(folder / name).read_bytes() for name in names] == contents
    assert json.loads(contents[2])["seeds"] == [1, 5]  # nothing of what was forgotten comes back


def test_a_damaged_request_can_be_forgotten_by_its_name(store, capsys):
    store.manifest_path(STEM).write_text("{")
    assert main(["forget", STEM, "--results", str(store.root)]) == OK
    out, err = capsys.readouterr()
    assert out.startswith(f"{STEM}: forgotten; what it asked for cannot be read") and "not valid JSON" in err
    assert manifests(store) == [] and load_records(store.root).problems == []


@pytest.mark.parametrize("name", ["mixer", "layers", "../runs/x", "forgotten", ""])
def test_an_unknown_one_lists_those_that_there_are(name, store, capsys):
    before = manifests(store)
    assert main(["forget", name, "--results", str(store.root)]) == USER_ERROR
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"mvar: error: sweep: {name!r} is unknown") and err.endswith(f"allowed: {STEM}\n")
    assert manifests(store) == before


def test_where_nothing_was_asked_for(tmp_path, capsys):
    assert main(["forget", "mixers", "--results", str(tmp_path)]) == USER_ERROR
    assert "sweep: nothing was asked for in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(["forget", "mixers", "--results", str(tmp_path / "no")]) == USER_ERROR
    assert "is no directory" in capsys.readouterr().err


def test_it_waits_for_whoever_writes_a_request(store):
    ended = threading.Thread(target=main, args=(["forget", STEM, "--results", str(store.root)],))
    with FileLock(store.root / "sweeps" / ".lock"):
        ended.start()
        ended.join(0.5)
        assert ended.is_alive() and manifests(store) == [STEM]
    ended.join(10)
    assert not ended.is_alive() and manifests(store) == []
