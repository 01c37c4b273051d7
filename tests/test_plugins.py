"""Plug-ins: loaded before any config is read, in every process, by their digests; each mistake is one clear line."""

import json
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest
import tiny_runs

import mvar
from mvar import layout, plugin_records, plugins
from mvar.cli import main
from mvar.cluster import snapshot
from mvar.config import RunConfig, override
from mvar.errors import FAILURE, OK, USER_ERROR, UserError
from mvar.files import file_digest
from mvar.presets import PRESETS
from mvar.registries import KINDS
from mvar.runs.grid import Grid, read_grid
from mvar.runs.request import Request, write_manifest
from mvar.runs.store import Store

MIXER = """
import mvar
from mvar.mixers.global_attention import GlobalAttention

@mvar.register("mixer", "again")
class Again(GlobalAttention):
    pass
"""
SWEEP = (
    MIXER
    + """
def build(config):
    return [mvar.Cell("again", mvar.override(config, {"model.pattern": "again"}))]

EXPERIMENT = mvar.Experiment("mine", "My table", "one row", build)
"""
)
FORM = """
import mvar

@mvar.register("guidance", "mine")
class Mine(mvar.Guidance):
    def weight(self, scale, num_scales, cfg_scale, settings):
        return cfg_scale
"""
SOURCE = """
@mvar.register("source", "stripes")
class Stripes(mvar.DataSource):
    class Settings(mvar.Config):
        width: int = 2

    def check(self, config, stored=False, order_is_asked=False):
        pass

    def open(self, config, split=None):
        raise KeyError("stripe")
"""
TINY = [f"{name}={value}" for name, value in tiny_runs.TINY.items()]


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def run(root: Path, *words: str) -> int:
    return main(["run", *words, "--preset", "smoke", "--results", str(root), "--workers", "1", "--set", *TINY])


@pytest.mark.slow
def test_one_file_is_a_mixer_and_its_sweep_in_workers_too(tmp_path, capsys):
    """From the command to the table: a finished run, the record of its plug-in, and what is said without it."""
    mine = write(tmp_path / "mine_sweep.py", SWEEP)
    assert run(tmp_path / "results", mine) == OK
    (made,) = Store(tmp_path / "results").runs()
    assert "-again-" in made.name
    (recorded,) = json.loads((made.path / layout.PLUGINS).read_text())["plugins"]
    named = {"name": "mine_sweep", "path": mine, "sha256": file_digest(Path(mine)), "entry": ""}
    assert recorded == {**named, "gives": {"mixer": ["again"]}}
    capsys.readouterr()
    assert run(tmp_path / "results", mine) == OK and "1 of 1 runs done" in capsys.readouterr().out

    for command in (["status"], ["report"], ["report", "--plugin", mine]):  # the run is shown all the same
        assert main([*command, "--results", str(tmp_path / "results")]) == OK, command
        shown = capsys.readouterr()
        assert "unknown" not in shown.err and "damaged" not in shown.err
        assert ("plug-ins: mine_sweep" in shown.out) == ("--plugin" in command)
    assert "again" in (tmp_path / "results/report/report.md").read_text()

    sample = ["sample", made.name, "--results", str(tmp_path / "results"), "--out", str(tmp_path / "g.png")]
    assert main([*sample, "--per-class", "1"]) == USER_ERROR
    said = capsys.readouterr().err
    assert f"run {made.name}: needs mixer 'again' of a plug-in (the run was made with mine_sweep ({mine}" in said
    assert f"allowed: --plugin {mine}" in said and said.count("\n") == 1
    assert main([*sample, "--per-class", "1", "--plugin", mine]) == OK
    assert capsys.readouterr().out.startswith(f"plug-ins: mine_sweep ({mine}, sha256 {recorded['sha256'][:12]})\n")

    write(Path(mine), SWEEP + "\n# another\n")  # changed since: finished weights are used, with a word
    assert main([*sample, "--per-class", "1", "--plugin", mine]) == OK
    assert "is another than the run was begun with" in capsys.readouterr().err


def test_an_unfinished_run_is_not_trained_on_with_another_file(tmp_path):
    mine = write(tmp_path / "mine.py", MIXER)
    plugins.begin([mine])
    config, store = override(tiny_runs.CONFIG, {"model.pattern": "again"}), Store(tmp_path / "results")
    tiny_runs.interrupt(config, store, 4)
    plugins.begin([write(Path(mine), MIXER + "\n# another\n")])
    with pytest.raises(UserError, match=r"is another than the run was begun with .*allowed: that file, or remove"):
        tiny_runs.execute(config, store)
    plugins.forget_all()
    with pytest.raises(UserError, match=r"needs mixer 'again' of a plug-in .*allowed: --plugin"):
        tiny_runs.execute(store.runs()[0].config(), store)


def test_a_renamed_changed_file_is_known_by_what_it_gives(tmp_path):
    """An unfinished run is not trained on with it; records of before, which do not say what files gave, count too."""
    plugins.begin([write(tmp_path / "mine.py", MIXER)])
    config, run = override(tiny_runs.CONFIG, {"model.pattern": "again"}), tmp_path / "run"
    run.mkdir()
    plugin_records.record(config, run)
    told = (
        r"plug-in other \(.*other.py, sha256 \w+\) is another than the run was begun with \(mine \(.*allowed: that file"
    )
    plugins.begin([write(tmp_path / "other.py", MIXER + "# another")])
    with pytest.raises(UserError, match=told):
        plugin_records.check(config, run)
    record = json.loads((run / layout.PLUGINS).read_text())
    del record["plugins"][0]["gives"]
    (run / layout.PLUGINS).write_text(json.dumps(record))
    with pytest.raises(UserError, match=told):
        plugin_records.check(config, run)
    plugins.begin([write(tmp_path / "same.py", MIXER)])  # another name alone is nothing
    plugin_records.check(config, run)


@pytest.mark.parametrize(
    "damaged", [3, "a", {"a": 1}, [3], [{"name": 1}], [{**asdict(plugins.Plugin("a", "b", "c")), "sha256": 3}]]
)
def test_a_record_that_is_damaged_says_nothing(damaged):
    assert plugin_records.Record.of_document(damaged) == plugin_records.Record()


def test_one_file_is_advised_for_each_name(tmp_path):
    """Of one that was changed after the training, that of the training."""
    mine, changed = write(tmp_path / "mine.py", MIXER), write(tmp_path / "chg.py", MIXER + "# another")
    plugins.begin([mine])
    config, run = override(tiny_runs.CONFIG, {"model.pattern": "again"}), tmp_path / "run"
    run.mkdir()
    plugin_records.record(config, run)
    (run / layout.MODEL).write_bytes(b"")
    plugins.begin([changed])
    plugin_records.record(config, run)
    plugins.forget_all()
    with pytest.raises(UserError, match=rf"the run was made with mine \([^()]*\)\); allowed: --plugin {mine}$"):
        plugin_records.check(config, run)


@pytest.mark.parametrize("words", [["run"], ["plan"], ["evaluate"], ["submit", "--cluster", "local"]])
def test_every_command_says_which_plug_in_a_run_in_config_needs(tmp_path, capsys, words):
    """Of a mixer, and of a data source with settings of its own."""
    mine, results = write(tmp_path / "mine.py", MIXER + SOURCE), tmp_path / "results"
    plugins.begin([mine])
    values = {"model.pattern": "again", "data.name": "stripes", "data.stripes.width": 3}
    config = override(tiny_runs.CONFIG, values)
    run = Store(results).run_of(config)
    run.write_config(config)
    plugin_records.record(config, run.path)
    assert main([*words, "--config", str(run.path), "--results", str(results)]) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    needs = f"run {run.name}: needs data.name 'stripes', mixer 'again' of a plug-in (the run was made with mine ({mine}"
    assert needs in line and line.endswith(f"; allowed: --plugin {mine}"), line
    if words == ["run"]:
        run.weights.write_bytes(b"weights")
        with pytest.raises(
            UserError, match=rf"allowed: --plugin .*; in Python: from mvar import plugins; plugins.load\('{mine}'\)$"
        ):
            mvar.load(run.path)


def test_a_grid_that_is_kept_says_which_plug_in_it_needs(tmp_path, capsys):
    """Older requests, which do not record theirs, are read as before."""
    mine, results = write(tmp_path / "mine.py", MIXER), ["--results", str(tmp_path / "results")]
    plugins.begin([mine])
    config, store = PRESETS["smoke"], Store(tmp_path / "results")
    grid = Grid("kept", read_grid(["model.pattern=again,global"], config)).experiment()
    path = write_manifest(store, Request(grid, "smoke", config), ["run"])
    for words in (["run"], ["plan"], ["evaluate"]):
        assert main([*words, *results, "--name", "kept"]) == USER_ERROR
        (line,) = capsys.readouterr().err.splitlines()
        assert "name: 'kept': needs mixer 'again' of a plug-in (it was asked for with mine (" in line
        assert line.endswith(f"; allowed: --plugin {mine}")
    assert main(["plan", *results, "--name", "kept", "--plugin", mine]) == OK
    capsys.readouterr()
    kept = json.loads(path.read_text())
    assert kept.pop("plugins")[0]["gives"] == {"mixer": ["again"]}
    path.write_text(json.dumps(kept))
    assert main(["plan", *results, "--name", "kept"]) == USER_ERROR
    assert "mixer: 'again' is unknown" in capsys.readouterr().err


def test_a_sweep_s_file_is_named_on_the_first_line(tmp_path, capsys):
    mine = write(tmp_path / "mine_sweep.py", SWEEP)
    for command in (["run", "--dry-run"], ["plan"]):
        assert main([*command, mine, "--preset", "smoke", "--results", str(tmp_path / "r"), "--set", *TINY]) == OK
        assert capsys.readouterr().out.startswith(f"plug-ins: mine_sweep ({mine}, sha256 ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("EXPERIMENT = 3", "EXPERIMENT is 3; allowed: EXPERIMENT = mvar.experiment(...)"),
        ("ANALYSIS = 3", "ANALYSIS is 3; allowed: ANALYSIS = mvar.analysis.Analysis(...)"),
        (
            SWEEP.replace('"mine"', '"mixers"').replace(MIXER, "import mvar"),
            "its EXPERIMENT is called 'mixers', as one",
        ),
        (SWEEP.replace(MIXER, "import mvar"), "its EXPERIMENT is called 'mine', as that of first ("),
        (
            "import mvar.analysis as a\nANALYSIS = a.Analysis('layers', 'x', lambda page: None)",
            "its ANALYSIS is called 'layers', as one of ours; allowed: a name of its own",
        ),
    ],
)
def test_what_a_file_sets_is_one_and_has_a_name_of_its_own(tmp_path, text, said):
    first = write(tmp_path / "first.py", SWEEP)
    with pytest.raises(UserError) as caught:
        plugins.begin([first, write(tmp_path / "p.py", text)])
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"plugin {tmp_path}/p.py: ")


def test_first_line_and_order_of_flags_and_toml(tmp_path, monkeypatch, capsys):
    write(tmp_path / "plug/a.py", MIXER)
    write(tmp_path / "mvar.toml", 'plugins = ["plug/a.py"]')
    monkeypatch.chdir(tmp_path)
    assert main(["run", "mixers", "--preset", "smoke", "--dry-run", "--set", *TINY, "model.pattern=again"]) == OK
    assert capsys.readouterr().out.startswith(f"plug-ins: a ({tmp_path}/plug/a.py, sha256 ")
    assert main(["status"]) in (OK, FAILURE, USER_ERROR)  # runs no code of mvar.toml
    write(tmp_path / "plug/a.py", "raise SystemExit('ran')")
    assert main(["report"]) in (OK, FAILURE, USER_ERROR)
    assert "ran" not in capsys.readouterr().err
    assert main(["run", "mixers", "--preset", "smoke", "--dry-run"]) == USER_ERROR
    assert "plugin " in (said := capsys.readouterr().err) and "cannot be loaded (SystemExit: ran)" in said


@pytest.mark.parametrize(
    "text, said",
    [
        ("plugins = 3", r"mvar.toml: plugins: 3; allowed: a list of files"),
        ("plugin = []", r"mvar.toml: field: 'plugin' is unknown \(did you mean 'plugins'\?\); allowed: plugins"),
        ("plugins = [", r"mvar.toml: .*allowed: TOML"),
        ("plugins = ['nowhere.py']", r"plugin: no Python file 'nowhere.py'; allowed: the path of a .py file"),
    ],
)
def test_mistakes_in_mvar_toml(text, said, tmp_path, monkeypatch):
    write(tmp_path / "mvar.toml", text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        plugins.begin([])


@pytest.mark.parametrize(
    "text, said",
    [
        ("1 / 0", r"plugin \S*/p.py: cannot be loaded \(ZeroDivisionError: division by zero\)"),
        ("def", r"plugin \S*/p.py: cannot be loaded \(SyntaxError: "),
        ("import no_such_package", r"plugin \S*/p.py: needs the package 'no_such_package', which is not installed"),
        (MIXER.replace('"again"', '"global"'), r"plugin \S*/p.py: mixer: 'global' is taken; allowed: another name"),
        (MIXER.replace('"again"', '"A-b"'), r"mixer: 'A-b' is no name; allowed: up to 32 small letters"),
        (MIXER.replace('"mixer"', '"mixr"'), r"kind: 'mixr' is unknown \(did you mean 'mixer'\?\); allowed: mixer, so"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_one_line_and_leaves_nothing(text, said, tmp_path):
    before = {kind: registry.names() for kind, registry in KINDS.items()}
    with pytest.raises(UserError, match=said) as caught:
        plugins.begin([write(tmp_path / "p.py", MIXER.replace('"again"', '"first"') + text)])
    assert "\n" not in str(caught.value) and plugins.loaded() == []
    assert {kind: registry.names() for kind, registry in KINDS.items()} == before


def test_two_of_one_name(tmp_path):
    one, other = write(tmp_path / "a/p.py", MIXER), write(tmp_path / "b/p.py", MIXER + "#")
    with pytest.raises(UserError, match=r"plugin: p \(.*a/p.py.*\) and p \(.*b/p.py.*\) have one name; allowed"):
        plugins.begin([one, other])
    plugins.begin([one, one, write(tmp_path / "c/p.py", MIXER)])  # the very same file is no other one
    assert len(plugins.loaded()) == 1
    with pytest.raises(UserError, match=rf"mixer: 'again' is taken by p \({one}\); allowed: another name"):
        plugins.begin([one, write(tmp_path / "q.py", MIXER)])


@pytest.mark.slow
def test_a_worker_loads_the_files_of_its_command_and_no_other_ones(tmp_path, monkeypatch):
    mine = write(tmp_path / "p.py", MIXER)
    plugins.begin([mine])
    code = "from mvar import plugins; plugins.begin_child(); print([p.name for p in plugins.loaded()])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "['p']\n"
    write(Path(mine), MIXER + "# changed")
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "has changed since the command began; allowed: start the command again" in failed.stderr


def test_a_job_loads_the_files_of_its_snapshot(tmp_path, monkeypatch):
    mine = write(tmp_path / "p.py", MIXER)
    plugins.begin([mine])
    plain, code = snapshot.take(tmp_path / "code"), snapshot.take(tmp_path / "code", plugins.loaded())
    assert plain != code == snapshot.take(tmp_path / "code", plugins.loaded())
    assert (code / "plugins/p.py").read_text() == MIXER and not (plain / "plugins").exists()
    write(Path(mine), "raise SystemExit")  # changed or gone while the job waits
    plugins.forget_all()
    plugins.begin_job(code)
    (plugin,) = plugins.loaded()
    assert plugin.path == str(code / "plugins/p.py") and "again" in KINDS["mixer"]
    plugins.forget_all()
    plugins.begin_job(plain)
    assert plugins.loaded() == []


def test_an_installed_package_may_bring_some(tmp_path, monkeypatch, capsys):
    write(tmp_path / "my_package_of_mixers.py", MIXER)
    monkeypatch.syspath_prepend(str(tmp_path))
    point = metadata.EntryPoint("theirs", "my_package_of_mixers", plugins.GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == plugins.GROUP else [])
    (plugin,) = plugins.begin([])
    assert plugin.entry == "my_package_of_mixers" and plugin.sha256 == file_digest(Path(plugin.path))
    assert "again" in KINDS["mixer"] and plugins.begin([], everything=False) == []
    assert "again" not in KINDS["mixer"]
    plugins._load_again(plugin)  # as a worker does; the module is imported already
    assert "again" in KINDS["mixer"] and asdict(plugins.loaded()[0]) == asdict(plugin)


def test_what_uses_no_plug_in_records_none(tmp_path):
    plugins.begin([write(tmp_path / "p.py", MIXER)])
    assert plugin_records.used_by([RunConfig()]) == {}
    plugin_records.record(RunConfig(), tmp_path)
    assert not (tmp_path / layout.PLUGINS).exists()
    ((key, plugin),) = plugin_records.used_by([override(RunConfig(), {"model.pattern": "again"})]).items()
    assert key == ("mixer", "again") and plugin.name == "p"


def test_what_samples_finished_weights_is_added_to_their_record(tmp_path):
    """And what they were trained with stays, whatever the file is now."""
    trained = override(RunConfig(), {"model.pattern": "global"})
    plugins.begin([write(tmp_path / "m.py", MIXER), write(tmp_path / "g.py", FORM)])
    plugin_records.record(override(trained, {"model.pattern": "again"}), tmp_path)
    (tmp_path / layout.MODEL).write_bytes(b"")
    before = json.loads((tmp_path / layout.PLUGINS).read_text())["plugins"]
    plugins.begin([write(tmp_path / "m.py", MIXER + "# another"), str(tmp_path / "g.py")])
    plugin_records.record(override(trained, {"model.pattern": "again", "sample.guidance": "mine"}), tmp_path)
    found = {p["name"]: p for p in json.loads((tmp_path / layout.PLUGINS).read_text())["plugins"]}
    assert set(found) == {"m", "g"} and [found["m"]] == before


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        (
            "metric",
            "(mvar.Metric): pass",
            "metric 'mine': lacks compute, keys, needs; allowed: a class that",
        ),
        (
            "metric",
            "(mvar.Metric):\n keys = ('eval/fid',)\n needs = ()\n def compute(self, inputs): return {}",
            "metric: 'mine' gives eval/fid, which metric 'fid' gives; allowed: another key",
        ),
        (
            "metric",
            "(mvar.Metric):\n keys = ('eval/x',)\n needs = ('pictures',)\n def compute(self, inputs): return {}",
            "metric 'mine': needs: 'pictures' is unknown (did you mean 'features'?); allowed: samples, re",
        ),
        ("mixer", "(mvar.Mixer): pass", "mixer 'mine': lacks flops, forward, init_weights, num_params, score_cells,"),
        (
            "source",
            "(mvar.DataSource): pass",
            "data.name 'mine': lacks check, open; allowed: a class that has",
        ),
        ("guidance", ": pass", "sample.guidance 'mine': is no subclass of mvar.Guidance; allowed: one"),
        ("filter", "(mvar.Guidance): pass", "sample.filter 'mine': is no subclass of mvar.Filter; allowed: one"),
        ("extractor", "(mvar.ExtractorKind): pass", "evaluation.extractor 'mine': lacks forward, network; allowed"),
        ("executor", "(mvar.Executor): pass", "executor 'mine': lacks execute, uses; allowed: a class that has all"),
        ("experiment", ": pass", "kind: 'experiment' is not registered, its file sets it; allowed: EXPERIMENT = mvar."),
        ("analysis", ": pass", "kind: 'analysis' is not registered, its file sets it; allowed: ANALYSIS = mvar.anal"),
        ("metrics", ": pass", "kind: 'metrics' is unknown (did you mean 'metric'?); allowed: mixer, source"),
    ],
)
def test_what_could_not_run_is_told_before_anything_does(tmp_path, capsys, kind, body, said):
    """By `mvar plan` too, and nothing of it stays."""
    file = write(tmp_path / "mine.py", f"import mvar\n@mvar.register('{kind}', 'mine')\nclass Mine{body}\n")
    assert main(["plan", "mixers", "--plugin", file, "--results", str(tmp_path / "r")]) == USER_ERROR
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"mvar: error: plugin {file}: {said}") and err.count("\n") == 1, err
    assert not any("mine" in registry for registry in KINDS.values())


def test_every_kind_has_a_contract_that_the_public_names_have():
    import mvar
    from mvar.registries import CONTRACTS
    from mvar.registry import loaded

    assert CONTRACTS.keys() == KINDS.keys()
    assert all(getattr(mvar, contract.__name__) is contract for contract in map(loaded, CONTRACTS.values()))


def test_a_file_that_gives_nothing_says_so(tmp_path, capsys):
    plugins.begin([write(tmp_path / "empty.py", "x = 1\n"), write(tmp_path / "form.py", FORM)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mvar: warning: plug-in empty (") and "gives nothing; it has no @mvar.register" in line
    plugins.begin([write(tmp_path / "sweep.py", SWEEP)])
    assert not capsys.readouterr().err
