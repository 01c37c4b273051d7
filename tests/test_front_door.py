"""The command line as one meets it: help with examples, near misses named, answers for programs, a status that fits."""

import io
import json
import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_runs import CONFIG
from untrained_runs import finish_tokenizer, save_untrained

from mvar import layout
from mvar.cli import COMMANDS, GROUPS, main, parse
from mvar.commands.logged_rows import show_rows
from mvar.commands.narrow import in_parts, print_in_parts
from mvar.commands.overview import EXAMPLES, overview
from mvar.commands.refused import options_of
from mvar.commands.report import Report
from mvar.commands.run_tables import PlannedRun, plan_table
from mvar.commands.status_table import Row, ago, evaluations, shortened, status_table
from mvar.config import override
from mvar.errors import OK, USER_ERROR
from mvar.evaluation.metrics.contract import every_metric
from mvar.runs.documents import write_document
from mvar.runs.states import DONE, FAILED, MISSING, RUNNING
from mvar.runs.store import Store

DEMO = [
    "digits-d8-w64-global-s0-0a1b2c3d",
    "digits-d8-w64-intra+mamba-s0-4e5f6a7b",
    "digits-d8-w64-4xintra+mamba_4xglobal-s0-582afe36",
    "digits-d6-w64-intra+mamba-s0-d4231fdc",
]


def example_of(name: str) -> str:
    """The command line in the help of a command."""
    found = re.search(r"Example: `(mvar .*)`", COMMANDS[name].__doc__ or "")
    assert found, f"{name} has no example"
    return found[1]


def words(line: str) -> list[str]:
    return [word.strip("'") for word in line.split()[1:]]


def test_mvar_alone_is_a_page_with_five_examples(capsys):
    assert main([]) == OK
    text = capsys.readouterr().out
    assert main(["--help"]) == OK and capsys.readouterr().out == text
    assert max(map(len, text.splitlines())) <= 80
    assert len(EXAMPLES) == 5 and all(f"  {line}\n      {what}\n" in text for line, what in EXAMPLES)
    assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in COMMANDS)
    assert text == overview(GROUPS) + "\n"


@pytest.mark.parametrize("line", [line for line, _ in EXAMPLES] + [example_of(name) for name in COMMANDS])
def test_examples_are_commands(line):
    assert type(parse(words(line))).__name__ in {command.__name__ for command in COMMANDS.values()}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_no_default_that_says_nothing(name, capsys):
    with pytest.raises(SystemExit) as leave:
        parse([name, "--help"])
    assert leave.value.code == 0
    text = capsys.readouterr().out
    assert "Example: `mvar " in text
    suggested = set(options_of(COMMANDS[name]))
    assert suggested == set(re.findall(r"^\W (?:-h, )?(--[\w-]+)", text, re.MULTILINE)) - {"--help"}
    assert not re.search(r"\(default:\s+(│\s+│\s+)?(''|-1|None)?\)", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["statu"], "command: 'statu' is unknown (did you mean 'status'?); allowed: run, plan,"),
        (
            ["run", "mixers", "--presett", "digits"],
            "option: '--presett' is unknown (did you mean '--preset'?); allowed: --",
        ),
        (["status", "--sate=failed"], "option: '--sate' is unknown (did you mean '--state'?); allowed: --"),
        (
            ["status", "--jsn"],
            "option: '--jsn' is unknown (did you mean '--json'?); allowed: --json, --results, --state",
        ),
        (["status", "--runs", "x"], "option: '--runs' is unknown; allowed: mvar status x; --json, --results"),
        (["probe", "--name"], "option: '--name' is unknown; allowed: mvar probe NAME; --json"),
        (
            ["evaluate-tokenizer", "--tokenizer=x"],
            "option: '--tokenizer' is unknown; allowed: mvar evaluate-tokenizer x;",
        ),
        (["probe", "prefix", "--cfg-scale", "1"], "option: '--cfg-scale' is unknown; allowed: --json"),
        (["report", "--json=1"], "option: '--json=1' has a value; allowed: --json"),
        (["sample", "a", "b"], "argument: 'b' is unknown; allowed: --results, --plugin"),
        (["status", "-x"], "option: '-x' is unknown; allowed: --json"),
        (
            ["sample", "digits", "--cfg-scale", "3"],
            "option: '--cfg-scale' is unknown; allowed: --set sample.cfg_scale=3",
        ),
        (["run", "mixers", "--steps=9"], "option: '--steps' is unknown; allowed: --set train.steps=9"),
        (["run", "mixers", "--seed", "3"], "option: '--seed' is unknown (did you mean '--seeds'?); allowed: --"),
        (["--verison"], "option: '--verison' is unknown (did you mean '--version'?); allowed: --help, --version"),
        (["status", "--state", "faild"], "state: 'faild' is unknown (did you mean 'failed'?); allowed: done,"),
        (["status", "--watch", "0"], "watch: 0; allowed: 1 or more seconds"),
        (["status", "--watch", "5", "--json"], "watch: 5 with --json; allowed: 1 or more seconds, without --json"),
        (["logs", "x", "--lines", "-2"], "lines: -2; allowed: 1 or more, 0 for all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_near_miss_is_named(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MVAR_RESULTS", str(tmp_path))
    assert main(arguments) == USER_ERROR
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"mvar: error: {message}" in err


def test_an_option_of_before_is_that_of_today():
    assert parse(["evaluate", "x", "--guidance", "0,1"]) == parse(["evaluate", "x", "--cfg-scale=0,1"])
    assert parse(["evaluate", "x", "--guidance=0,1"]) == parse(["evaluate", "x", "--cfg-scale", "0,1"])
    assert "--guidance" not in options_of(COMMANDS["evaluate"])


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """Two runs, one finished and one failed, in the directory that $MVAR_RESULTS names."""
    store = Store(tmp_path / "kept")
    monkeypatch.setenv("MVAR_RESULTS", str(store.root))
    monkeypatch.chdir(tmp_path)
    run, _ = save_untrained(store, CONFIG)
    run.write_status(DONE, "evaluate")
    failed = override(CONFIG, {"model.pattern": "mamba"})
    store.run(failed.run_id).write_config(failed)
    store.run(failed.run_id).write_status(FAILED, "train", reason="ValueError: odd")
    (store.run(failed.run_id).path / "error.txt").write_text("Traceback\nValueError: odd\n")
    return store


def answer(capsys, *arguments: str) -> object:
    """What a command with --json answers."""
    main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_status_for_programs_and_what_is_asked_of_it(store, capsys):
    found = answer(capsys, "status")
    assert found["counts"] == {"done": 1, "failed": 1}
    assert [row["state"] for row in found["runs"] if not row["is_stage"]] == ["done", "failed"]
    assert [row["reason"] for row in answer(capsys, "status", "--state", "failed")["runs"]] == ["ValueError: odd"]
    assert [row["name"] for row in answer(capsys, "status", "*mamba-s0*")["runs"]] == [
        override(CONFIG, {"model.pattern": "mamba"}).run_id
    ]
    assert answer(capsys, "status", "nothing-like-it")["runs"] == []
    assert main(["status", "nothing-like-it"]) == OK
    assert capsys.readouterr().out == "no such runs\n"
    assert main(["status", "--watch", "1"]) == OK  # nothing runs: it ends by itself
    assert "failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["plan", "mixers", "--preset", "smoke"], {"runs", "workers", "training_flops", "estimated_s"}),
        (["inspect", "weights", "--num-heads", "2"], {"generator"}),
        (["report"], {"report", "page", "problems"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_one_document_is_all_that_stdout_gets(arguments, keys, store, capsys):
    weights = store.run(CONFIG.run_id).weights
    found = answer(capsys, *[str(weights) if word == "weights" else word for word in arguments])
    assert keys <= found.keys()


def test_evaluate_for_programs(store, capsys):
    """Of a run, and of several; what is kept already, so nothing is drawn."""
    run = store.run(CONFIG.run_id)
    finish_tokenizer(store, CONFIG)
    metrics = {key: float(n) for n, key in enumerate(key for m in every_metric().values() for key in m.keys)}
    evaluation = {"sample": CONFIG.sample.plain(), "evaluation": CONFIG.evaluation.plain()}
    run.add_evaluation(CONFIG.evaluation_id, {"metrics": metrics, **evaluation})
    found = answer(capsys, "evaluate", CONFIG.run_id)
    assert found["run"] == CONFIG.run_id and found["evaluation_id"] == CONFIG.evaluation_id
    assert found["metrics"] == metrics
    rows = answer(capsys, "evaluate", CONFIG.run_id, "--grid", f"sample.cfg_scale={CONFIG.sample.cfg_scale}")
    assert [row["metrics"] for row in rows] == [metrics]
    assert [row["evaluation_id"] for row in rows] == [CONFIG.evaluation_id]


def test_attention_for_programs(store, capsys):
    """What attention.json has."""
    finish_tokenizer(store, CONFIG)
    drawn = ["--source", "self", "--images", "4", "--out", str(store.root / "there")]
    found = answer(capsys, "attention", CONFIG.run_id, *drawn)
    assert found == json.loads((store.root / "there/attention.json").read_text())
    assert found["num_images"] == 4 and found["measured"]["source"] == "self"


def test_doctor_for_programs(store, capsys):
    assert {"what", "state", "found", "advice"} == answer(capsys, "doctor")[0].keys()


def test_logs_of_runs_of_this_machine(store, capsys):
    failed = override(CONFIG, {"model.pattern": "mamba"}).run_id
    assert main(["logs", failed]) == OK
    out = capsys.readouterr().out
    assert out.startswith(f"{failed}: failed, train, ") and "ValueError: odd" in out
    assert f"==> {store.run(failed).path / 'error.txt'} <==\nTraceback\nValueError: odd\n" in out
    assert main(["logs", "nope"]) == USER_ERROR
    assert "run: 'nope' is unknown" in capsys.readouterr().err


LOGGED = (
    '{"step": 1, "train/loss": 4.565237522125244, "train/loss_scale_00": 4.5, "train/lr": 1.5e-05}',
    '{"step": 10, "train/loss": 4.25, "heldout/nll_bits_per_token": 5.125, "train/lr": 0.003, "train/codes_used": 0.5}',
    '{"step": 20, "train/lo',
)


def test_logged_rows_are_a_table(store, capsys):
    """What tells most comes first; a line that is no row stands as it is."""
    run = store.run(CONFIG.run_id)
    run.metrics.write_text("\n".join(LOGGED))
    assert main(["logs", CONFIG.run_id, "--lines", "0"]) == OK
    out = capsys.readouterr().out
    words = [line.split() for line in out.splitlines()]
    assert ["1", "4.565", "1.5e-05"] in words and ["10", "4.25", "5.125", "0.003", "0.5"] in words
    assert LOGGED[2] in out and out.endswith("(values by scale left out; the file has everything)\n")
    assert main(["logs", CONFIG.run_id, "--lines", "2"]) == OK
    assert "4.565" not in capsys.readouterr().out


def test_a_narrow_terminal_gets_the_first_columns():
    text = io.StringIO()
    assert show_rows(LOGGED[:2], Console(width=34, file=text)) == "2 columns and values by scale"
    text = text.getvalue()
    assert "bits/token" in text and "learning" not in text and max(map(len, text.splitlines())) <= 34


def rows(*states: str, reason: str = "") -> list[Row]:
    hour_ago = (datetime.now(UTC) - timedelta(hours=2)).isoformat(timespec="seconds")
    return [Row("tokenizer-a755a815", True, DONE)] + [
        Row(
            name,
            False,
            state,
            "train",
            120,
            240,
            3.21,
            95.0 if state == RUNNING else None,
            updated=hour_ago,
            reason=reason,
        )
        for name, state in zip(DEMO, states, strict=True)
    ]


def drawn(found: list[Row], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(status_table(found, console))
    return console.export_text()


@pytest.mark.parametrize("reason", ["", "RuntimeError: a reason that is longer than what is left of the line, by far"])
def test_status_tells_runs_apart_at_80_columns(reason):
    text = drawn(rows(RUNNING, DONE, FAILED, MISSING, reason=reason), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "names are shortened" in text
    if not reason:
        for name in ("d8-global", "d8-intra+mamba", "d6-intra+mamba", "d8-4xintra+mamba_4xglobal"):
            assert f"│ {name} " in text
        assert "1 min 35 s" in text and "loss is left out" in text
    wide = drawn(rows(RUNNING, DONE, FAILED, MISSING, reason=reason), 200)
    assert all(name in wide for name in DEMO) and "names are shortened" not in wide


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_plan_tells_runs_apart_at_every_width(width):
    cells = ("Table 6: 1 (intra-only)", "Figure 5: 0 of 8")
    runs = [PlannedRun(name, cells, "3*intra+mamba 5*global", "to do", 240, 805_376, 10**12, 3, 75.0) for name in DEMO]
    file = io.StringIO()
    console = Console(width=width, file=file)
    console.print(plan_table(runs, console))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "…" not in file.getvalue()
    names = DEMO if width == 200 else ["d8-global", "d8-intra+mamba", "d8-4xintra+mamba_4xglobal", "d6-intra+mamba"]
    assert all(any(name in line.split() for line in lines) for name in names)
    assert sum("1 min 15 s" in line for line in lines) == len(DEMO)


def test_a_table_that_is_too_wide_stands_in_parts():
    """Every number is there, at every width that two columns fit, and the first column beside each."""
    titles = ("layer", "own scale", "±", "entropy (nats)", "10×10", "±")
    columns = [(title, [f"{number}.{row}" for row in range(3)]) for number, title in enumerate(titles)]
    for width in (20, 30, 80):
        file = io.StringIO()
        print_in_parts(columns, Console(width=width, file=file), section=1)
        lines = file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        parts = "\n".join(lines).count("0.1 ")
        assert parts == len(in_parts(columns, width)) and (parts == 1) == (width == 80)
        assert all(f"{number}.{row}" in file.getvalue() for number in range(6) for row in range(3))
    assert len(in_parts(columns, 1)) == len(titles) - 1  # a column is never lost


def test_what_has_become_of_each_evaluation_of_a_run(tmp_path, capsys):
    """Of those that were asked for and of those that were begun; one alone is as its run, and has no column."""
    run = Store(tmp_path).run(CONFIG.run_id)
    run.write_config(CONFIG)
    write_document(run.path / layout.EVAL, {"evaluations": {"aa": {}, "ee": {}}})
    for name, file in (("aa", layout.SAMPLES_NPZ), ("bb", layout.SAMPLES_NPZ), ("cc", layout.SAMPLES_PARTIAL)):
        run.samples(name).mkdir(parents=True)
        (run.samples(name) / file).touch()
    found = evaluations(run, ("aa", "dd"))
    assert found == {"aa": DONE, "dd": MISSING, "bb": "drawn", "cc": "begun", "ee": DONE}
    assert evaluations(Store(tmp_path).run("none"), ()) == {}
    assert "│ 2 done, 1 drawn, 1 begun, 1 missing " in drawn([Row("x", False, RUNNING, evaluations=found)], 200)
    assert "evaluations" not in drawn([Row("x", False, DONE, evaluations={"aa": DONE})], 200)
    assert main(["status", "--json", "--results", str(tmp_path)]) == OK
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert row["evaluations"] == {name: state for name, state in found.items() if name != "dd"}


def test_columns_that_hold_nothing_are_hidden():
    text = drawn([Row(DEMO[0], False, MISSING)], 80)
    assert "state" in text and not re.search("loss|left|job|updated|why", text)


def test_names_are_cut_to_what_tells_them_apart():
    same = [Row(f"digits-d8-w64-global-s0-{digest}", False, DONE) for digest in ("aa", "bb")]
    assert shortened(same) == ["aa", "bb"]
    assert shortened([Row(name, False, DONE) for name in DEMO])[2] == "d8-4xintra+mamba_4xglobal"
    assert shortened([Row(DEMO[0], False, DONE)]) == [DEMO[0]]


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s ago"), (119, "119 s ago"), (180, "3 min ago"), (7200, "2 h ago"), (-9, "just now")]
)
def test_times_are_relative(seconds, text):
    now = datetime.now(UTC)
    assert ago((now - timedelta(seconds=seconds)).isoformat(), now) == text
    assert ago("long ago", now) == "long ago" and ago("", now) == ""


def torch_says(kind, text):
    raise kind(text)


FULL = {
    "GPU": (
        lambda: torch_says(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        "memory: CUDA out of memory. Tried to allocate 2.00 GiB; allowed: ",
    ),
    "driver": (
        lambda: torch_says(RuntimeError, "CUDA error: out of memory\nCUDA kernel errors might be ..."),
        "memory: out of memory CUDA kernel errors might be",
    ),
    "cuBLAS": (
        lambda: torch_says(RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        "memory: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`; allowed: ",
    ),
    "torch": (lambda: torch.empty(2**58), "memory: can't allocate memory: you tried to allocate 1152921504606846976 "),
    "NumPy": (lambda: np.empty(2**55), "memory: Unable to allocate 256. PiB for an array"),
    "Python": (lambda: bytes(2**62), "memory: no memory is left; allowed: "),
}


@pytest.mark.parametrize(("full", "told"), FULL.values(), ids=FULL.keys())
def test_memory_that_gets_full_is_one_line_of_any_command(full, told, monkeypatch, capsys):
    monkeypatch.setattr(Report, "execute", lambda self, arguments: full())
    assert main(["report"]) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mvar: error: {told}") and "fewer images at once" in line


def test_another_fault_of_any_command_has_its_traceback(monkeypatch):
    monkeypatch.setattr(Report, "execute", lambda self, arguments: torch_says(RuntimeError, "odd shapes"))
    with pytest.raises(RuntimeError, match="odd shapes"):
        main(["report"])
