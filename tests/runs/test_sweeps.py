"""Sweeps: the cells of each paper artefact, what they share, budgets, manifests."""

import csv
from concurrent.futures import ThreadPoolExecutor

import pytest

from mvar import shipped
from mvar.cli import parse
from mvar.config import RunConfig, identity, override
from mvar.config.parsing import parse_overrides
from mvar.cost import num_params
from mvar.errors import UserError
from mvar.files import digest
from mvar.presets import PRESETS
from mvar.runs.documents import read_document
from mvar.runs.experiment import BUDGET, STEPS, experiment_names, find_experiment, paper_rows, training_flops
from mvar.runs.request import Request, unique, write_manifest
from mvar.runs.store import Store

MIXERS = find_experiment("mixers")
PAPER = shipped.folder("experiments") / "paper"

DIGITS = PRESETS["digits"]


def labels(name: str, config: RunConfig = DIGITS) -> dict[str, RunConfig]:
    return {cell.label: cell.config for cell in find_experiment(name).cells(config)}


def test_every_preset_is_covered_by_every_sweep():
    for name, config in PRESETS.items():
        for sweep in map(find_experiment, experiment_names()):
            if config.model.depth % 4 and sweep.name == "parameters":
                with pytest.raises(UserError, match="multiples of 4"):
                    sweep.cells(config)
            else:
                assert len(sweep.cells(config)) >= 4, name


def test_three_sweeps_share_runs():
    names = ("mixers", "layers", "parameters")
    runs = {name: {c.run_id for c in labels(name).values()} for name in names}
    assert sum(map(len, runs.values())) == 4 + 5 + 4
    assert len(set.union(*runs.values())) == 9
    var, mvar = labels("mixers")["VAR"].run_id, labels("mixers")["M-VAR"].run_id
    assert all({var, mvar} <= ids for ids in runs.values())
    assert len(unique([c for name in names for c in labels(name).values()])) == 9


def test_spellings_of_one_model_are_one_run():
    a = override(DIGITS, {"model.pattern": "intra+mamba"})
    b = override(DIGITS, {"model.replace": "all"})
    c = override(DIGITS, {"model.pattern": "8*intra+mamba"})
    assert len({a.run_id, b.run_id}) == 1
    assert c.run_id == a.run_id


def test_mixers_are_those_of_the_printed_table():
    assert {label: config.model.pattern for label, config in labels("mixers").items()} == {
        "VAR": "global",
        "1 (intra-only)": "intra",
        "2 (Mamba-only)": "mamba",
        "M-VAR": "intra+mamba",
    }


def test_layers_replace_quarters_of_the_depth():
    cells = find_experiment("layers").cells(DIGITS)
    assert [cell.axes["layers_replaced"] for cell in cells] == [0, 2, 4, 6, 8]
    for cell in cells:
        assert cell.config.model.layers.count("intra+mamba") == cell.axes["layers_replaced"]
    assert [dict(cell.printed) for cell in cells] == [{"fid": 3.55}, {}, {}, {}, {"fid": 3.07}]  # as the paper states


def test_parameters_at_the_papers_size():
    """M-VAR-W and M-VAR-D at depth 16, width 1024 are the paper's models: 263 M and 350 M parameters."""
    cells = {cell.label: cell for cell in find_experiment("parameters").cells(PRESETS["imagenet256-d16"])}
    model = cells["M-VAR-W"].config.model
    assert (model.depth, model.width, model.num_heads) == (16, 768, 12)
    model = cells["M-VAR-D"].config.model
    assert (model.depth, model.width, model.num_heads) == (12, 1024, 16)
    assert model.drop_path == pytest.approx(0.1 * 12 / 24)
    assert cells["M-VAR-W"].printed == {
        "params": "260M",
        "fid": 3.20,
        "relative_training_cost": 0.9,
        "relative_inference_time": 0.9,
    }
    space = PRESETS["imagenet256-d16"].token_space
    millions = {label: num_params(cell.config.model, space) / 1e6 for label, cell in cells.items()}
    assert millions["VAR"] == pytest.approx(310, abs=1)
    assert millions["M-VAR-W"] == pytest.approx(263, abs=1)
    assert millions["M-VAR-D"] == pytest.approx(350, abs=1)
    assert millions["M-VAR"] == pytest.approx(464, abs=1)


def test_printed_numbers_are_the_csv_files():
    for sweep, table in (("mixers", "table6_mixers"), ("parameters", "table5_similar_parameters")):
        with (PAPER / f"{table}.csv").open(newline="") as file:
            printed = [float(row["fid"]) for row in csv.DictReader(file)]
        assert [cell.printed["fid"] for cell in find_experiment(sweep).cells(DIGITS)] == printed


def test_missing_printed_values_stay_missing():
    gan = paper_rows("table2_imagenet256")[0]
    assert gan["model"] == "BigGAN" and "relative_time" not in gan


@pytest.mark.parametrize("name", experiment_names())
def test_budget_spends_equal_flops(name):
    cells = find_experiment(name).cells(DIGITS, BUDGET)
    target = training_flops(override(DIGITS, {"model.pattern": "global"}))
    for cell in cells:
        per_step = training_flops(cell.config) / cell.config.train.steps
        assert abs(training_flops(cell.config) - target) <= per_step / 2
    assert DIGITS.run_id in {cell.config.run_id for cell in cells}  # the baseline is the same run in both modes
    assert min(cell.config.train.steps for cell in cells) < DIGITS.train.steps


def test_rejection_is_an_evaluation_of_the_same_training():
    cells = find_experiment("rejection").cells(DIGITS)
    assert [cell.label for cell in cells] == [
        "VAR, every image",
        "VAR, best of 4",
        "M-VAR, every image",
        "M-VAR, best of 4",
    ]
    plain, best = cells[0].config, cells[1].config
    assert plain.run_id == best.run_id == DIGITS.run_id and plain.evaluation_id == DIGITS.evaluation_id
    assert best.evaluation_id != plain.evaluation_id and best.sample.acceptance_rate == 0.25
    assert [cell.printed["fid"] for cell in cells] == [1.97, 1.80, 1.78, 1.67]
    more = find_experiment("rejection").cells(override(DIGITS, {"sample.candidates": 8}))
    assert [cell.config.sample.candidates for cell in more] == [1, 8, 1, 8]


def test_plain_sampling_keeps_the_id_that_it_had_before_rejection():
    """And before every later field of sampling and evaluation."""
    sections = DIGITS.model_dump(mode="json", include={"schema_version", "sample", "evaluation"})
    for name, kind in (("sample", "SampleConfig"), ("evaluation", "EvaluationConfig")):
        sections[name] = {field: sections[name][field] for field in identity.FIRST[kind]}
    assert DIGITS.evaluation_id == digest([sections, DIGITS.extractor_id])


def test_scaling_keeps_the_aspect_ratio():
    cells = find_experiment("scaling").cells(DIGITS)
    assert [cell.config.model.depth for cell in cells] == [2, 4, 6, 8, 10] * 2
    assert {cell.config.model.width // cell.config.model.depth for cell in cells} == {8}
    assert cells[3].config.run_id == DIGITS.run_id  # shared with every other sweep
    sizes = [num_params(cell.config.model, cell.config.token_space) for cell in cells]
    assert sizes[:5] == sorted(sizes[:5]) and sizes[5:] == sorted(sizes[5:])
    with pytest.raises(UserError, match=r"model.width: 60 is no multiple of model.depth 8"):
        find_experiment("scaling").cells(override(DIGITS, {"model.width": 60}))


def test_explicit_budget_scales_steps():
    (cell, *_) = MIXERS.cells(DIGITS, BUDGET, training_flops(DIGITS) * 2)
    assert cell.config.train.steps == 2 * DIGITS.train.steps


def test_unknown_sweep():
    with pytest.raises(UserError, match=r"sweep: 'mixer' is unknown \(did you mean 'mixers'\?\)"):
        find_experiment("mixer")


def test_overrides_are_parsed():
    assert parse_overrides(["a.b=1", "c=x=y"]) == {"a.b": "1", "c": "x=y"}
    with pytest.raises(UserError, match="FIELD=VALUE"):
        parse_overrides(["a.b"])


def test_manifest_lists_runs_and_merges_seeds(tmp_path):
    store = Store(tmp_path)
    request = Request(MIXERS, "digits", DIGITS, (0, 2))
    path = write_manifest(store, request, ["run", "mixers"])
    assert path.name == "mixers-digits-steps.json"
    write_manifest(store, Request(MIXERS, "digits", DIGITS, (1,)), ["run", "mixers", "--seeds", "1,"])
    document = read_document(path)
    assert document["seeds"] == [0, 1, 2]
    assert document["command"] == "mvar run mixers --seeds 1,"
    assert [cell["label"] for cell in document["cells"]] == list(labels("mixers"))
    expected = [override(labels("mixers")["VAR"], {"seed": seed}).run_id for seed in (0, 1, 2)]
    assert document["cells"][0]["run_ids"] == expected
    assert document["cells"][0]["printed"] == {"fid": 3.55}


def test_sampling_seeds_are_sets_of_the_same_runs(tmp_path):
    request = Request(MIXERS, "digits", DIGITS, (0, 1), sample_seeds=(0, 3))
    assert len(unique(request.configs())) == 4 * 2 * 2
    cell = read_document(write_manifest(Store(tmp_path), request, []))["cells"][0]
    wanted = [override(DIGITS, {"sample.seed": seed}).evaluation_id for seed in (0, 3)]
    assert len(cell["run_ids"]) == 2 and cell["evaluation_ids"] == wanted


def test_manifests_of_different_requests_do_not_mix(tmp_path):
    names = {
        Request(MIXERS, "digits", override(DIGITS, overrides), (0,), overrides, mode, budget).name
        for overrides in ({}, {"train.steps": "5"})
        for mode, budget in ((STEPS, None), (BUDGET, None), (BUDGET, 1e12))
    }
    assert len(names) == 6
    path = write_manifest(Store(tmp_path), Request(find_experiment("layers"), "digits", DIGITS, mode=BUDGET), [])
    assert read_document(path)["budget_flops"] == training_flops(DIGITS)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"train.steps": "20"}, {"train.steps": "20.0"}, True),
        ({"model.pattern": "8*global"}, {}, True),
        ({"runtime.threads": "3", "train.accumulate": "2"}, {}, True),  # how it is executed is no request
        ({"model.replace": "[0,3]"}, {"model.replace": "3,0"}, True),
        ({"cfg_scale": "3"}, {"sample.cfg_scale": "3.0"}, True),
        ({"train.steps": "20"}, {"train.steps": "21"}, False),
        ({"sample.cfg_scale": "3"}, {}, False),
        ({"model.mamba.d_state": "8"}, {}, False),  # of cells that hold a Mamba, not of the base
    ],
)
def test_a_second_manifest_is_made_by_another_config_not_by_another_spelling(tmp_path, one, other, same):
    store = Store(tmp_path)
    paths = [
        write_manifest(store, Request(MIXERS, "digits", override(DIGITS, values), seeds, values), [])
        for values, seeds in ((one, (0,)), (other, (1,)))
    ]
    assert (paths[0] == paths[1]) == same
    assert read_document(paths[1])["seeds"] == ([0, 1] if same else [1])


def test_a_manifest_that_is_named_after_its_spelling_is_gone_on_with(tmp_path):
    """As the first version named them."""
    request = Request(MIXERS, "digits", override(DIGITS, {"train.steps": 20}), (0,), {"train.steps": "20"})
    first = write_manifest(Store(tmp_path), request, [])
    first.rename(first.with_name("mixers-digits-steps-0badcafe.json"))
    again = Request(MIXERS, "digits", override(DIGITS, {"train.steps": 20}), (2,), {"train.steps": "20.0"})
    assert write_manifest(Store(tmp_path), again, []).name == "mixers-digits-steps-0badcafe.json"


def test_requests_at_once_lose_no_seeds(tmp_path):
    def ask(seed: int) -> None:
        write_manifest(Store(tmp_path), Request(MIXERS, "digits", DIGITS, (seed,)), [])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(16)))
    path = Store(tmp_path).manifest_path("mixers-digits-steps")
    assert read_document(path)["seeds"] == list(range(16))


def test_an_own_pattern_is_one_row_more_of_table6():
    for config in PRESETS.values():
        assert len(MIXERS.cells(config)) == 4
    own = override(DIGITS, {"model.pattern": "global+mamba", "train.steps": 7})
    *paper, cell = MIXERS.cells(own)
    assert cell.config == own and cell.label == "global+mamba" and not cell.printed
    assert [c.label for c in paper] == [c.label for c in MIXERS.cells(DIGITS)]
    partly = override(DIGITS, {"model.replace": "first:2"})
    assert MIXERS.cells(partly)[-1].config == partly


@pytest.mark.parametrize("setting", ["model.pattern=global+mamba", "model.replace=first:4"])
def test_sweeps_that_set_the_pattern_refuse_another(setting):
    (request,) = parse(["run", "mixers", "--set", setting]).requests()
    assert len(request.cells()) == 5
    with pytest.raises(UserError, match=f"set: {setting.split('=')[0]}: sweep layers sets the pattern itself"):
        parse(["run", "mixers", "layers", "--set", setting]).requests()
