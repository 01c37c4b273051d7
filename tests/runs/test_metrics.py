"""Metrics of finished runs: each is recorded by itself, a new one is added without an image or a step of training."""

import json
import math
import shutil
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, create_model
from tiny_runs import CONFIG, arguments

from mvar import plugins
from mvar.cli import main
from mvar.config import Config, identity, override
from mvar.errors import FAILURE, OK, USER_ERROR, UserError
from mvar.evaluation.metrics.contract import Metric, every_metric
from mvar.registries import EXTRACTORS, METRICS
from mvar.runs.launch.evaluation import evaluation_of
from mvar.runs.measured import lacking, measured, settings_of, to_measure, versions
from mvar.runs.pipeline import execute
from mvar.runs.plan import tasks_of
from mvar.runs.stages.evaluate import MetricsFailed
from mvar.runs.states import DONE, STOPPED
from mvar.runs.store import Store

EXAMPLE = Path(__file__).parents[2] / "examples" / "metric.py"
OURS = ["fid", "is", "kid", "kid_error", "precision_recall", "nll", "copies", "label_accuracy"]


@pytest.fixture
def store(made, tmp_path):
    shutil.copytree(made, tmp_path / "results")
    return Store(tmp_path / "results")


@pytest.fixture(autouse=True)
def _nothing_stays():
    yield
    plugins.forget_all()
    METRICS.own.clear()
    EXTRACTORS.own.clear()


def register(name="mine", value=1.5, **members):
    """Register a metric, in place of one of that name; what a test leaves out is as simple as can be."""

    def compute(self, inputs):
        assert len(inputs.samples) == CONFIG.evaluation.num_images
        return {f"eval/{name}": value}

    members = {"__doc__": "Of mine.", "needs": ("samples",), "keys": (f"eval/{name}",), "compute": compute} | members
    METRICS.own[name] = kind = type("Mine", (Metric,), members)
    return kind


def record(store):
    return store.run(CONFIG.run_id).evaluations()[CONFIG.evaluation_id]


def test_a_record_names_each_metric(made):
    found = record(Store(made))
    assert list(found["measured"]) == OURS
    assert {key for entry in found["measured"].values() for key in entry["keys"]} == set(found["metrics"])
    assert all(entry["version"] == 1 for entry in found["measured"].values()) and versions(found) == {}


def test_a_record_of_the_first_version_has_ours_in_version_1(made):
    found = {name: value for name, value in record(Store(made)).items() if name != "measured"}
    assert measured(found) == record(Store(made))["measured"] and lacking(found, CONFIG) == []
    del found["metrics"]["eval/fid"]
    assert lacking(found, CONFIG) == ["fid"]


def test_a_new_metric_is_added_to_a_finished_run(store, monkeypatch):
    """No image is drawn, nothing is trained, and a metric of samples loads no model, extractor or tokens."""
    run, before = store.run(CONFIG.run_id), record(store)
    files = (path for path in store.root.rglob("*") if path.is_file() and path.name not in (".lock", "eval.json"))
    times = {path: path.stat().st_mtime_ns for path in files}
    kind = register()
    assert lacking(before, CONFIG) == ["mine"] and store.is_done(CONFIG)
    (task,) = tasks_of([CONFIG], store)
    assert (task.kind, task.flops, task.needs, task.name) == ("metrics", 0.0, (), run.name)
    for path in (*store.root.glob("stages/*/*.safetensors"), *store.root.glob("stages/tokens-*/heldout/*")):
        path.rename(path.with_name(f"{path.name}.away"))
    loads = []
    monkeypatch.setattr("mvar.runs.stages.train.TrainStage.generator", property(lambda self: loads.append(1)))
    assert execute(CONFIG, store) == DONE and not loads
    after = record(store)
    assert after["metrics"] == before["metrics"] | {"eval/mine": 1.5}
    entry = {"version": 1, "keys": ["eval/mine"], "about": "Of mine.", "lower": [], "higher": []}
    assert after["measured"] == before["measured"] | {"mine": entry}
    assert {k: v for k, v in after.items() if k not in ("metrics", "measured")} == {
        k: v for k, v in before.items() if k not in ("metrics", "measured")
    }
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path.is_file())
    assert tasks_of([CONFIG], store) == [] and kind.gives("eval/mine")


@pytest.mark.slow
def test_where_the_mixer_is_a_missing_plug_in(store, tmp_path):
    """A metric of samples is computed all the same; one of weights says which file it lacks, and what is done stays."""
    mixer = "import mvar\nfrom mvar.mixers.global_attention import GlobalAttention\n\n"
    mixer += '@mvar.register("mixer", "again")\nclass Again(GlobalAttention):\n    pass\n'
    (tmp_path / "again.py").write_text(mixer)
    plugins.begin([str(tmp_path / "again.py")])
    config = override(CONFIG, {"model.pattern": "again"})
    assert execute(config, store) == DONE
    run = store.run_of(config)
    plugins.forget_all()
    config = evaluation_of(store, run, {})  # as `mvar evaluate` has it
    register("mine")
    assert execute(config, store) == DONE
    assert (before := run.evaluations()[config.evaluation_id])["metrics"]["eval/mine"] == 1.5
    register("heavy", needs=("weights",))
    with pytest.raises(UserError, match=r"needs mixer 'again' of a plug-in .*allowed: --plugin .*again.py"):
        execute(config, store)
    assert run.evaluations()[config.evaluation_id] == before and run.is_done(config.evaluation_id)


def test_a_newer_version_is_kept_beside_the_old_value(store):
    register(value=1.0)
    execute(CONFIG, store)
    register(value=2.0, version=2)
    assert to_measure(store.run(CONFIG.run_id), CONFIG) == ["mine"]
    execute(CONFIG, store)
    found = record(store)
    assert found["metrics"]["eval/mine"] == 2.0 and versions(found) == {"eval/mine": "2"}
    assert found["measured"]["mine"]["earlier"] == [{"version": 1, "metrics": {"eval/mine": 1.0}}]
    register(value=3.0)  # code of the older version leaves the newer value
    assert to_measure(store.run(CONFIG.run_id), CONFIG) == []


def test_of_other_settings_it_is_computed_anew_and_what_was_is_not_forgotten(store):
    plugins.load(str(EXAMPLE))
    more = override(CONFIG, {"evaluation.gaussian_mmd.bandwidth": 3.0})
    assert more.evaluation_id == CONFIG.evaluation_id and more.run_id == CONFIG.run_id
    execute(CONFIG, store)
    first = record(store)
    assert first["measured"]["gaussian_mmd"]["keys"] == ["eval/gaussian_mmd"]
    assert first["metrics"]["eval/gaussian_mmd"] > 0
    plugin = first["measured"]["gaussian_mmd"]["plugin"]
    assert plugin["name"] == "metric" and len(plugin["sha256"]) == 64
    execute(more, store)
    second = record(store)
    entry = second["measured"]["gaussian_mmd"]
    assert (entry["settings"], entry["defaults"]) == ({"bandwidth": 3.0}, {"bandwidth": 10.0})
    assert versions(second) == {"eval/gaussian_mmd": "1 (bandwidth=3.0)"}
    METRICS.own["gaussian_mmd"].compute = None  # not called again: its values of these settings are known
    assert to_measure(store.run(CONFIG.run_id), CONFIG) == [] and tasks_of([CONFIG], store) == []  # 3 stays
    assert to_measure(store.run(CONFIG.run_id), more) == []
    execute(override(CONFIG, {"evaluation.gaussian_mmd.bandwidth": 10.0}), store)
    third = record(store)
    assert third["metrics"] == first["metrics"] and len(third["measured"]["gaussian_mmd"]["earlier"]) == 1


def test_a_newer_version_is_computed_in_the_settings_of_before(store):
    plugins.load(str(EXAMPLE))
    execute(override(CONFIG, {"evaluation.gaussian_mmd.bandwidth": 3.0}), store)
    before, kind = record(store), METRICS.own["gaussian_mmd"]
    kind.version = 2
    assert to_measure(store.run(CONFIG.run_id), CONFIG) == ["gaussian_mmd"]
    execute(CONFIG, store)
    after = record(store)
    assert versions(after) == {"eval/gaussian_mmd": "2 (bandwidth=3.0)"}
    assert after["metrics"] == before["metrics"]
    kind.Settings = create_model("Settings", __base__=Config, bandwidth=(Annotated[float, Field(le=2)], 2.0))
    assert settings_of(after, "gaussian_mmd", CONFIG).bandwidth == 2  # what is no longer allowed is its default


def test_the_example_is_what_its_paper_says():
    import numpy as np
    import torch

    from mvar.config import EvaluationConfig
    from mvar.evaluation.metrics.inputs import Features, Inputs, Parts

    plugins.load(str(EXAMPLE))
    kind = METRICS.find("gaussian_mmd")
    rng = np.random.default_rng(0)
    real, fake = (torch.from_numpy(rng.normal(size=(n, 3))) for n in (40, 30))
    inputs = Inputs(EvaluationConfig(), Parts())
    inputs._features = Features(fake, fake, real, real)
    found = kind(kind.Settings(bandwidth=2.0)).compute(inputs)

    def mean(first, second):
        pairs = [(a, b) for a in first.tolist() for b in second.tolist() if a != b]
        return sum(math.exp(-(math.dist(a, b) ** 2) / 8) for a, b in pairs) / len(pairs)

    expected = 1000 * (mean(fake, fake) + mean(real, real) - 2 * mean(fake, real))
    assert found["eval/gaussian_mmd"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.usefixtures("undrawn")
def test_a_later_metric_of_ours_is_measured_where_it_is_asked_for(store):
    """Runs that were finished without it stay finished, with the same ids and documents."""
    asked = override(CONFIG, {"evaluation.also": "density_coverage,fd_infinity"})
    assert (asked.evaluation_id, asked.floors_id, asked.key) == (CONFIG.evaluation_id, CONFIG.floors_id, CONFIG.key)
    assert identity.as_document(asked) == identity.as_document(CONFIG)
    before = record(store)
    assert lacking(before, CONFIG) == [] and lacking(before, asked) == ["density_coverage", "fd_infinity"]
    assert execute(asked, store) == DONE
    after = record(store)
    assert after["metrics"].keys() - before["metrics"] == {"eval/density", "eval/coverage", "eval/fd_infinity"}
    assert {name: after["metrics"][name] for name in before["metrics"]} == before["metrics"]
    assert lacking(after, CONFIG) == lacking(after, asked) == [] and versions(after) == {}
    assert main(["report", "--results", str(store.root)]) in (OK, USER_ERROR)
    report = (store.root / "report" / "report.md").read_text()
    assert "Further metrics" in report and "density ↑" in report and "fd_infinity ↓" in report


@pytest.mark.parametrize("name", ["fids", "density_coverage,none"])
def test_an_unknown_metric_that_is_asked_for_is_refused(name):
    with pytest.raises(UserError, match=rf"metric: '{name.split(',')[-1]}' is unknown.*; allowed: fid, "):
        override(CONFIG, {"evaluation.also": name})


def test_a_metric_that_a_config_cannot_have_is_refused(store):
    means = override(CONFIG, {"evaluation.extractor": "inception", "evaluation.also": ["label_accuracy"]})
    with pytest.raises(UserError, match=r"evaluation.also: label_accuracy cannot be had of inception"):
        lacking(None, means)


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda self, inputs: {"eval/mine": math.nan}, "metric mine: eval/mine is nan; allowed: a finite number"),
        (lambda self, inputs: {"eval/mine": "many"}, "metric mine: eval/mine is 'many'; allowed: a finite number"),
        (lambda self, inputs: {"eval/mine": True}, "metric mine: eval/mine is True; allowed: a finite number"),
        (lambda self, inputs: 3.0, "metric mine: gave 3.0; allowed: a dict of its keys"),
        (lambda self, inputs: {}, "metric mine: gave no eval/mine; allowed: all of its keys"),
        (lambda self, inputs: {"eval/mine": 1.0, "eval/fid": 0.0}, "metric mine: gave 'eval/fid', which is not among"),
        (lambda self, inputs: 1 / 0, "metric mine: ZeroDivisionError: division by zero"),
        (
            lambda self, inputs: inputs.model,
            "metric mine: reads weights, which its `needs` do not name; allowed: samples",
        ),
    ],
)
def test_one_that_fails_leaves_the_others(store, compute, reason):
    register(compute=compute)
    register("other", 7.0)
    with pytest.raises(MetricsFailed) as error:
        execute(CONFIG, store)
    assert str(error.value).startswith(reason) and "\n" not in str(error.value)
    assert record(store)["metrics"]["eval/other"] == 7.0 and "mine" not in record(store)["measured"]
    run = store.run(CONFIG.run_id)
    assert run.state() == DONE and store.is_done(CONFIG)  # what is finished stays finished
    assert (run.path / "error.txt").is_file() == ("ZeroDivision" in reason)


@pytest.mark.slow
def test_the_command_says_which_metric_of_which_run_and_ends_badly(store, tmp_path, capsys):
    file = tmp_path / "bad.py"
    file.write_text(
        "import mvar\n@mvar.register('metric', 'bad')\nclass Bad(mvar.Metric):\n    needs = ('samples',)\n"
        "    keys = ('eval/bad',)\n    def compute(self, inputs):\n        return {'eval/bad': float('nan')}\n"
    )
    words = ["evaluate", CONFIG.run_id, "--results", str(store.root), "--plugin", str(file)]
    assert main(words) == FAILURE
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if "error" in line]
    assert line == f"mvar: error: {CONFIG.run_id}: metric bad: eval/bad is nan; allowed: a finite number"
    assert "eval/fid" in out and "1 of 1 runs done" in out
    assert next(line for line in out.splitlines() if "runs done" in line).endswith("; not done: metric bad of 1")
    plugins.forget_all()
    assert main(["evaluate", CONFIG.run_id, "--results", str(store.root)]) == OK
    assert main(["status", "--results", str(store.root)]) == OK
    assert "metric bad: eval/bad is nan" in " ".join(capsys.readouterr().out.split())  # it is still not there
    other = tmp_path / "other.py"  # that is measured leaves what is said of the first
    other.write_text(file.read_text().replace("float('nan')", "1.0").replace("bad", "other"))
    assert main([*words[:-1], str(other)]) == OK
    main(["status", "--results", str(store.root)])
    assert "metric bad: eval/bad is nan" in " ".join(capsys.readouterr().out.split())
    file.write_text(file.read_text().replace("float('nan')", "0.5"))
    assert main(words) == OK
    main(["status", "--results", str(store.root)])
    assert "metric bad" not in capsys.readouterr().out


def test_a_run_with_deleted_images_keeps_what_it_has(store, capsys):
    shutil.rmtree(store.run(CONFIG.run_id).samples(CONFIG.evaluation_id))
    before = record(store)
    register()
    register("of_tokens", needs=("tokens",), compute=lambda self, inputs: {"eval/of_tokens": len(inputs.tokens)})
    assert execute(CONFIG, store) == DONE
    assert record(store)["metrics"] == before["metrics"] | {"eval/of_tokens": 450.0}
    told = [line for line in capsys.readouterr().err.splitlines() if "deleted" in line]
    assert len(set(told)) == 1 and "no mine of them; what is there stays" in told[0]
    assert tasks_of([CONFIG], store) == [] and not store.run(CONFIG.run_id).samples(CONFIG.evaluation_id).exists()


def test_interrupted_between_two_metrics_the_first_stays(store):
    asked = []
    register("a", compute=lambda self, inputs: asked.append("a") or {"eval/a": 1.0})
    register("b", compute=lambda self, inputs: asked.append("b") or {"eval/b": 2.0})
    assert execute(CONFIG, store, should_stop=lambda: bool(asked)) == STOPPED
    assert asked == ["a"] and record(store)["metrics"]["eval/a"] == 1.0 and "eval/b" not in record(store)["metrics"]
    assert execute(CONFIG, store) == DONE
    assert asked == ["a", "b"] and record(store)["metrics"]["eval/b"] == 2.0


def test_the_runner_does_it_too_and_a_plan_says_so(store, capsys):
    words = arguments(store.root, "--plugin", str(EXAMPLE), "--dry-run")
    assert main(words) == OK
    (line,) = [line for line in capsys.readouterr().out.splitlines() if CONFIG.run_id in line]
    assert "metrics" in line
    plugins.forget_all()
    assert main([word for word in words if word not in ("--plugin", str(EXAMPLE))]) == OK
    (line,) = [line for line in capsys.readouterr().out.splitlines() if CONFIG.run_id in line]
    assert "metrics" not in line and "done" in line


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"keys": ("eval/fid",)}, "metric: 'mine' gives eval/fid, which metric 'fid' gives; allowed: another key"),
        ({"keys": ("eval/error_scale_00",)}, "metric: 'mine' gives eval/error_scale_00, which metric 'nll' gives"),
        ({"also": ("eval/co*",)}, "metric: 'mine' gives eval/co\\*, which metric 'copies' gives"),
        ({"keys": ("mine",)}, "metric 'mine': key 'mine'; allowed: eval/ and small letters"),
        ({"keys": ()}, "metric 'mine': says no `needs` or no `keys`"),
        ({"needs": ("pictures",)}, "metric 'mine': needs: 'pictures' is unknown .*allowed: samples, reference"),
        ({"version": 0}, "metric 'mine': version 0; allowed: a whole number from 1 on"),
    ],
)
def test_what_is_no_metric_is_refused(members, reason):
    register(**members)
    with pytest.raises(UserError, match=reason):
        every_metric()


def test_a_user_extractor_by_its_name(store):
    from torch import nn

    import mvar
    from mvar.evaluation.extractors.contract import ExtractorKind, kind_of

    class Means(ExtractorKind):
        """Means over rows and columns."""

        class Settings(Config):
            scale: float = Field(default=1.0, description="Of the features.")

        def network(self, directory):
            return nn.Identity(), None

        def forward(self, network, images):
            features = images.double().mean(1).flatten(1) * self.settings.scale
            return features, features

    with pytest.raises(UserError, match=r"evaluation.extractor: 'means' is unknown; allowed: classifier, inception"):
        override(CONFIG, {"evaluation.extractor": "means"})
    mvar.register("extractor", "means")(Means)
    plain = override(CONFIG, {"evaluation.extractor": "means"})
    scaled = override(plain, {"evaluation.means.scale": 2.0})
    default = override(plain, {"evaluation.means.scale": 1.0})
    assert default.extractor_id == plain.extractor_id != scaled.extractor_id != CONFIG.extractor_id
    assert default.evaluation_id == plain.evaluation_id != scaled.evaluation_id
    assert override(CONFIG, {"evaluation.means.scale": 2.0}).extractor_id == CONFIG.extractor_id
    extractor = kind_of(scaled).load(store.root)
    assert extractor.id == scaled.extractor_id and not extractor.knows_labels
    assert execute(plain, store) == DONE
    found = store.run(CONFIG.run_id).evaluations()[plain.evaluation_id]
    assert "eval/label_accuracy" not in found["metrics"] and found["metrics"]["eval/fid"] > 0
    assert json.loads((store.stage("extractor", plain.extractor_id).path / "extractor.json").read_text())["id"]


@pytest.mark.usefixtures("undrawn")
def test_status_needs_no_plug_in_and_says_done(store, tmp_path, capsys):
    register()
    execute(CONFIG, store)
    METRICS.own.clear()
    assert main(["status", "--results", str(store.root)]) == OK
    out = capsys.readouterr().out
    assert "1 done" in out
    assert main(["report", "--results", str(store.root)]) in (OK, USER_ERROR)
    report = (store.root / "report" / "report.md").read_text()
    assert "Further metrics" in report and "Of mine." in report and "1.5000" in report
    assert "eval/mine" in (store.root / "report" / "tables" / "runs.csv").read_text().splitlines()[0]


def test_what_depends_on_the_weights_alone_is_computed_once(store, monkeypatch):
    """Other images have the likelihood of the same weights; another evaluation, or another version, has its own."""
    first = record(store)
    nll = {key: first["metrics"][key] for key in measured(first)["nll"]["keys"]}

    def no_more(*_, **__):
        raise UserError("computed again")

    monkeypatch.setattr("mvar.evaluation.likelihood.heldout_nll", no_more)
    other = override(CONFIG, {"sample.seed": 1, "sample.cfg_scale": 0})
    assert execute(other, store) == DONE
    found = store.run_of(CONFIG).evaluations()[other.evaluation_id]
    assert {key: found["metrics"][key] for key in nll} == nll
    assert found["metrics"]["eval/fid"] != first["metrics"]["eval/fid"]
    with pytest.raises(MetricsFailed, match="nll: computed again"):
        execute(override(CONFIG, {"evaluation.num_images": 20}), store)
    monkeypatch.setattr(METRICS.find("nll"), "version", 2)
    with pytest.raises(MetricsFailed, match="nll: computed again"):
        execute(override(CONFIG, {"sample.seed": 2}), store)
