"""Tables: the numbers in the cells, dashes, footnotes, refusals, and what is said about the numbers."""

import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mvar import shipped
from mvar.analysis.compare import Measured
from mvar.analysis.family import Family, order_pairs, trend_pairs
from mvar.analysis.manifests import in_common
from mvar.analysis.reading import order_reading, trend_reading
from mvar.analysis.records import load_records
from mvar.analysis.render import Note, Table, si, to_csv, to_latex, to_markdown
from mvar.analysis.report import write_report
from mvar.analysis.tables import sweep_table
from mvar.config import TokenSpace
from mvar.cost import attention_cost, num_params
from mvar.errors import UserError
from mvar.presets import DIGITS, model_size
from mvar.probes.attention_mass import uniform_share
from mvar.runs.columns import Column
from mvar.runs.experiment import COUNTS, paper_rows
from mvar.scales import PATCH_SIDES, ScaleSchedule

PAPER = shipped.folder("experiments") / "paper"
SCRIPT = shipped.load(shipped.find("analysis", "attention_cost"))
scored_models, table1, other_layers = SCRIPT.scored_models, SCRIPT.table1, SCRIPT.other_layers


def table_of(made, sweep, mode="steps"):
    records = load_records(made.root)
    (manifest,) = [m for m in records.sweeps(sweep) if m.mode == mode]
    return sweep_table(records, manifest)


def markdown(table):
    return to_markdown(table, "../runs/{}/".format)


def cells(table, row):
    lines = markdown(table).splitlines()
    headings = [h.strip().split("<")[0].strip() for h in lines[0].strip("| ").split(" | ")]
    values = [c.strip() for c in lines[2 + row].strip("| ").split(" | ")]
    assert len(headings) == len(values)
    return list(zip(headings, values, strict=True))


# Table 6 ------------------------------------------------------------------------------------------------------------


def test_table6_has_measured_and_printed_values_apart(everything):
    table = table_of(everything, "mixers")
    row = cells(table, 0)
    assert row[0] == ("method", "VAR") and ("FID ↓", "1.70 ± 0.10") in row and ("FID ↓", "3.55") in row
    assert ("NLL ↓ (bits/token)", "2.40 ± 0.10") in row and ("near-copies (%)", "12.5 ± 0.0") in row
    assert ("seeds", "3") in row and ("steps", str(DIGITS.train.steps)) in row
    with (PAPER / "table6_mixers.csv").open(newline="") as file:
        printed = {r["method"]: float(r["fid"]) for r in csv.DictReader(file)}
    assert {r["label"]: r["paper_fid"] for r in table.rows} == printed
    header = markdown(table).splitlines()[0]
    assert "FID ↓<br>*measured*" in header and "FID ↓<br>*paper (ImageNet 256)*" in header


def test_every_row_links_its_runs(everything):
    table = table_of(everything, "mixers")
    runs = dict(cells(table, 1))["runs"]
    assert len(table.run_ids[1]) == 3
    assert all(f"(../runs/{run_id}/)" in runs for run_id in table.run_ids[1])


def test_a_missing_run_is_a_row_of_dashes_beside_the_printed_value(results):
    _, configs = results.sweep("mixers")
    shutil.rmtree(results.store.run(configs[2].run_id).path)
    row = cells(table_of(results, "mixers"), 2)
    assert row[:2] == [("method", "2 (Mamba-only)"), ("layers", "mamba")]
    assert [value for _, value in row[2:]] == ["—", "4.12<sup>a</sup>", *["—"] * (len(row) - 4)]


def test_equal_steps_and_equal_budget_are_separate_tables(results):
    results.sweep("mixers")
    results.sweep("mixers", mode="budget")
    steps, budget = table_of(results, "mixers"), table_of(results, "mixers", "budget")
    assert steps.name == "mixers-digits-steps" and budget.name == "mixers-digits-budget"
    assert {r["steps"] for r in steps.rows} == {DIGITS.train.steps} and len({r["steps"] for r in budget.rows}) > 1
    flops = [r["train_flops"] for r in budget.rows]
    assert max(flops) / min(flops) < 1.01
    assert any("same training FLOPs" in line for line in budget.reading)
    assert not any("same training FLOPs" in line for line in steps.reading)


def test_mixed_evaluators_are_refused(results):
    _, configs = results.sweep("mixers")
    path = results.store.run(configs[0].run_id).path / "eval.json"
    values = json.loads(path.read_text())
    values["evaluations"][configs[0].evaluation_id]["extractor_id"] = "another"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"evaluations differ in extractor_id .*not compared in one table; groups:"):
        table_of(results, "mixers")


# Table 5 ------------------------------------------------------------------------------------------------------------


def test_table5_relative_cost_and_time(everything):
    table = table_of(everything, "parameters")
    rows = {row["label"]: row for row in table.rows}
    assert rows["VAR"]["train_cost"].mean == pytest.approx(0.5)  # 50 ms against 100 ms a step
    assert rows["VAR"]["inference"].mean == pytest.approx(0.5)
    for name in ("train_cost_analytic", "inference_analytic"):
        assert rows["M-VAR"][name] == 1 and rows["M-VAR-D"][name] == pytest.approx(0.75, abs=0.01)
    printed = {r["model"]: r for r in paper_rows("table5_similar_parameters")}
    for label, row in rows.items():
        assert row["paper_params"] == printed[label]["params"]
        assert row["paper_relative_inference_time"] == printed[label]["relative_inference_time"]
    assert rows["M-VAR-W"]["width"] == 48 and rows["M-VAR-D"]["depth"] == 6


def test_without_the_reference_row_nothing_is_relative(results):
    _, configs = results.sweep("parameters")
    shutil.rmtree(results.store.run(configs[3].run_id).path)
    rows = table_of(results, "parameters").rows
    assert all(row.get(name) is None for row in rows for name in ("train_cost", "inference", "train_cost_analytic"))
    assert rows[0]["fid"].mean == 1.6


# Figure 5 and Table 1 -----------------------------------------------------------------------------------------------


def test_figure5_prints_the_two_stated_points_only(everything):
    table = table_of(everything, "layers")
    assert [row["label"] for row in table.rows] == [f"{n} of 8" for n in (0, 2, 4, 6, 8)]
    assert [row.get("paper_fid") for row in table.rows] == [3.55, None, None, None, 3.07]
    assert [row["fid"].mean for row in table.rows] == pytest.approx([1.6, 1.45, 1.3, 1.15, 1.0])


def test_the_same_run_stands_in_three_tables(everything):
    var = set(table_of(everything, "layers").run_ids[0])
    assert var == set(table_of(everything, "parameters").run_ids[0]) <= set(table_of(everything, "mixers").run_ids[0])


def test_table1_cost_is_exact_and_score_is_measured(everything):
    models, problems = scored_models(load_records(everything.root))
    assert problems == [] and len(models) == 1
    table = table1(models)
    rows = [cells(table, i) for i in range(len(table.rows))]
    of = lambda i, *names: [v for h, v in rows[i] if h in names]  # noqa: E731
    assert of(0, "cells, dense (%)", "cells, kept (%)") == ["23.89", "38.57"]
    assert of(1, "cells, dense (%)", "cells, kept (%)") == ["76.11", "61.43"]
    assert of(3, "cells, dense (%)", "cells, kept (%)") == ["30.34", "46.55"]
    assert of(4, "cells, dense (%)", "cells, kept (%)") == ["69.66", "53.45"]
    assert of(0, "cost (%)") == ["23.9"] and of(0, "score (%)") == ["—", "79.6"]  # measured, paper
    assert of(4, "cost (%)") == ["69.7"] and of(4, "score (%)") == ["—", "22.9"]
    # digits, seeds 0, 1, 2: own scale 60, 61, 62 % for all but the first scale's single token
    expected = [(1 + 29 * own) / 30 for own in (0.60, 0.61, 0.62)]
    score = table.rows[6]["score"]
    assert score.mean == pytest.approx(sum(expected) / 3) and score.n == 3
    assert table.rows[7]["score"].mean == pytest.approx(1 - score.mean)
    for number, mean in ((6, "1.00"), (7, "1.00"), (8, "—"), (0, "—")):  # entropy, as it was made up
        assert of(number, "attention's entropy (nats)")[0].startswith(mean)
    assert len(table.run_ids[6]) == 3 and table.run_ids[0] == []
    for first in (0, 3, 6):
        assert sum(row["layer"] for row in table.rows[first : first + 3]) == pytest.approx(1)


def test_uniform_share_by_hand():
    assert uniform_share(ScaleSchedule((1, 2))) == pytest.approx((1 + 4 * 4 / 5) / 5)


def test_table1_without_a_global_run_says_so(results):
    results.run(load_preset_pattern("intra"))
    """Below the table: a grid of other layers is no fault, and no problem of the report."""
    records = load_records(results.root)
    assert scored_models(records) == ([], [])
    (line,) = [line for line in table1([], other_layers(records)).reading if "score is not measured" in line]
    assert "`intra` (1)" in line and "`mvar run mixers`" in line
    results.run(load_preset_pattern("global"))
    assert other_layers(load_records(results.root)) == ""


def load_preset_pattern(pattern):
    from mvar.config import override
    from mvar.presets import PRESETS

    return override(PRESETS["digits"], {"model.pattern": pattern})


# Footnotes ----------------------------------------------------------------------------------------------------------


def test_contradictions_stand_on_their_cells(everything):
    table = table_of(everything, "parameters")
    marked = {(table.rows[n.row]["label"], n.column): n.text for n in table.notes}
    assert set(marked) == {(label, "paper_params") for label in ("M-VAR", "M-VAR-D", "M-VAR-W")}
    text = markdown(table)
    assert "450M<sup>c</sup>" in text and "<sup>c</sup> Printed 450M" in text
    headings = markdown(table_of(everything, "layers")).splitlines()[0]
    assert "layers replaced<sup>b</sup>" in headings and "FID ↓<sup>a</sup><br>*paper" in headings


def test_contradictions_are_true():
    notes = {(r["artefact"], r["row"]): r["note"] for r in paper_rows("contradictions")}
    space = TokenSpace(PATCH_SIDES["256"], 4096, 32, 1000)

    def millions(depth, width, heads):
        model = model_size(depth, width=width, num_heads=heads, pattern="intra+mamba", attn_l2_norm=False)
        return num_params(model, space) / 1e6

    for resolution in ("256", "512"):
        kept = attention_cost(ScaleSchedule(PATCH_SIDES[resolution]))["kept"]["intra"]
        assert f"{kept:.2%} at {resolution} px".replace("%", " %") in notes["Table 1", "*"]
    assert f"{millions(16, 1024, 16):.1f} M" in notes["Table 5", "M-VAR"]
    assert f"{millions(12, 1024, 16):.0f} M" in notes["Table 5", "M-VAR-D"]
    assert f"{millions(16, 768, 12):.0f} M" in notes["Table 5", "M-VAR-W"]
    assert f"depth 30 has {millions(30, 1920, 30):,.0f} M" in notes["Table 2", "M-VAR-d32"]
    assert f"depth 32 has {millions(32, 2048, 32):,.0f} M" in notes["Table 2", "M-VAR-d32"]
    times = {r["model"]: r["relative_time"] for r in paper_rows("table2_imagenet256") if "relative_time" in r}
    assert f"{times['VAR-d30'] / times['M-VAR-d24']:.2f}x" in notes["Table 2", "M-VAR-d24"]
    fid = {r["model"]: r["fid"] for r in paper_rows("table3_rejection_sampling")}
    assert f"({fid['VAR-d30'] - fid['M-VAR-d32']:.2f} and" in notes["Table 3", "M-VAR-d32"]


# What is said -------------------------------------------------------------------------------------------------------


def row(label, fid, paper=None, sd=None, nll=None):
    """A row of five seeds whose values scatter by `sd` around the mean, each row in its own way; None: one seed."""
    n = 1 if sd is None else 5
    noise = np.random.default_rng(list(label.encode())).normal(size=n)
    noise = np.zeros(1) if sd is None else sd * (noise - noise.mean()) / noise.std(ddof=1)
    found = {"label": label, "fid": Measured.of(pd.Series(fid + noise)), "paper_fid": paper, "n": n}
    return found | ({} if nll is None else {"nll": Measured.of(pd.Series(nll + noise))})


def order(*rows, counts=COUNTS):
    """What is said of an order."""
    return " ".join(order_reading(rows, Family.of(rows, order_pairs(rows), counts)))


def trend(*rows, counts=COUNTS):
    """What is said of a trend."""
    return " ".join(trend_reading(rows, Family.of(rows, trend_pairs(rows), counts)))


def test_order_agrees():
    text = order(row("A", 1.0, 3.0, 0.1), row("B", 2.0, 4.0, 0.1), row("C", 3.0, 5.0, 0.1))
    assert "3 are ordered as in the paper, 0 the other way, 0 inconclusive: the order agrees with the paper's." in text
    assert "Those that are ordered: A / B (p below 0.001); A / C (p below 0.001); B / C (p below 0.001)." in text
    assert "left out" not in text


def test_a_seed_without_a_partner_is_left_out_and_that_is_said():
    one, other = row("A", 1.0, 3.0, 0.1), row("B", 2.0, 4.0, 0.1)
    other["fid"] = Measured.of(pd.Series(dict(other["fid"].by_seed[:-1])))
    text = order(one, other)
    assert "Seeds that only one of two rows has are left out of their comparison." in text
    assert "Seeds that only one of two rows has are left out" in trend(one, other)


def test_one_seed_orders_nothing():
    text = order(row("A", 1.0, 3.0), row("B", 2.0, 4.0), row("C", 3.0, 5.0))
    assert "0 are ordered as in the paper, 0 the other way, 3 inconclusive: the order is inconclusive." in text
    assert "With one seed, or none in common, a pair is inconclusive: --seeds 3 trains three." in text


def test_order_does_not_agree_and_names_the_pairs():
    text = order(row("A", 3.0, 3.0, 0.1), row("B", 2.0, 4.0, 0.1), row("C", 4.0, 5.0, 0.1))
    assert "2 are ordered as in the paper, 1 the other way (A / B), 0 inconclusive: the order does not agree" in text
    assert "With one seed" not in text and "here B, A, C; in the paper A, B, C" in text


def test_one_is_ordered():
    text = order(row("A", 1.0, 3.0, 0.1), row("B", 2.0, 4.0, 0.1))
    assert "Of 1 pair of FIDs (paired by seed, Holm's correction), 1 is ordered as in the paper, 0 the other" in text
    assert "The one that is ordered: A / B (p below 0.001)." in text


def test_a_difference_within_the_scatter_is_inconclusive():
    text = order(row("A", 1.0, 3.0, 0.5), row("B", 1.1, 4.0, 0.5))
    assert "0 are ordered as in the paper, 0 the other way, 1 inconclusive: the order is inconclusive" in text
    assert "seeds to be found in 80 % of trials" in text


def test_order_of_likelihood_is_told_apart():
    text = order(row("A", 1.0, 3.0, 0.1, 2.5), row("B", 2.0, 4.0, 0.1, 2.0))
    assert "Held-out NLL, lowest mean first: B, A." in text and "These are orders of means, and no verdicts" in text


def test_differences_of_fid_that_are_too_small_to_count_order_nothing():
    """B is surely above A, by 1 %: less than counts by default, and enough where an experiment says so."""
    rows = [row("A", 1.0, 3.0, 0.001), row("B", 1.01, 4.0, 0.001), row("C", 2.0, 5.0, 0.001)]
    text = order(*rows)
    assert "2 are ordered as in the paper, 0 the other way, 1 differs by less than counts, 1.3% (A / B), 0 inc" in text
    assert "the order agrees with the paper's, as far as differences count." in text
    assert "Those that are ordered: A / C (p below 0.001); B / C (p below 0.001)." in text
    assert "3 are ordered as in the paper" in order(*rows, counts=0.005)


def test_a_trend_that_is_too_small_to_count_agrees_with_nothing():
    rows = [row("0", 2.0, 3.55, 1e-3, 3.0), row("4", 1.99, None, 1e-3), row("8", 1.98, 3.07, 1e-3, 3.5)]
    text = trend(*rows)
    assert " is better (p below 0.001), too small to count." in text
    assert "here it changes by less than 0.026, the smallest difference that counts." in text
    assert "Step by step (2): 0 better, 0 worse, 2 too small to count, 0 inconclusive" in text
    assert "Samples come closer" not in text and "direction" not in text
    text = trend(*rows, counts=1e-4)
    assert "the direction agrees" in text and "2 better, 0 worse, 0 incon" in text and "Samples come closer" in text


@pytest.mark.parametrize(("end", "verdict"), [(1.0, "the direction agrees"), (3.0, "the direction does not agree")])
def test_trend(end, verdict):
    text = trend(row("0", 2.0, 3.55, 0.1), row("4", 1.5, None, 0.1), row("8", end, 3.07, 0.1))
    assert f"In the paper it falls from 3.55 to 3.07: {verdict}." in text
    steps = "2 better, 0 worse" if end == 1.0 else "1 better, 1 worse"
    assert f"Step by step (2): {steps}, 0 inconclusive" in text and "of all 3 comparisons" in text


def test_trend_with_one_seed_is_not_claimed():
    text = trend(row("0", 2.0, 3.55), row("8", 1.0, 3.07))
    assert " is inconclusive: one seed, two or more are needed." in text
    assert "whether it does here is inconclusive" in text and "agrees" not in text


def test_trend_without_an_end_point_is_not_compared():
    rows = [{"label": "0", "paper_fid": 3.55}, row("4", 1.5), row("8", 1.0, 3.07)]
    assert "an end point is not measured here" in trend(*rows)
    assert trend(*rows[:2]) == "Fewer than two points are measured: there is no trend to state."


def test_no_mixer_wins(everything):
    for sweep in ("mixers", "parameters", "layers"):
        text = " ".join(table_of(everything, sweep).reading).lower()
        assert "not which mixer is better" in text
        assert not {"wins", "winner", "best", "superior", "outperforms"} & set(text.replace(".", " ").split())


def test_one_seed_is_said(everything):
    assert table_of(everything, "layers").reading[0].startswith("One seed a row: there is no standard deviation")
    assert "over 3 training seeds" in table_of(everything, "mixers").reading[0]


def test_rows_with_fewer_seeds_say_so(results):
    _, configs = results.sweep("mixers", seeds=(0, 1))
    shutil.rmtree(results.store.run(configs[1].run_id).path)  # VAR, seed 1
    table = table_of(results, "mixers")
    assert [row["n"] for row in table.rows] == [1, 2, 2, 2]
    assert table.reading[0].endswith("over 1 to 2 training seeds. A row with one seed has none.")
    assert ("FID ↓", "1.60") in cells(table, 0)


# Forms --------------------------------------------------------------------------------------------------------------

SMALL = Table(
    "small",
    "50% of R&D: x_1 ± 2",
    (Column("label", "a_b"), Column("fid", "FID ↓", "measured"), Column("num", "count", "analytic", None)),
    [{"label": "x & y", "fid": Measured(1.25, None, 1), "num": 482_528}, {"label": "z", "fid": Measured(2.0, 0.5, 2)}],
    [["d-s0-aaaa0000"], []],
    [Note(0, "fid", "100 % true"), Note(None, "num", "exact")],
)


def test_csv_is_plain_numbers():
    rows = list(csv.DictReader(io.StringIO(to_csv(SMALL))))
    assert list(rows[0]) == ["label", "fid", "fid_n", "fid_sd", "num", "run_ids"]
    first = {"label": "x & y", "fid": "1.25", "fid_n": "1", "fid_sd": "", "num": "482528", "run_ids": "d-s0-aaaa0000"}
    assert rows[0] == first
    assert (rows[1]["fid_sd"], rows[1]["num"], rows[1]["run_ids"]) == ("0.5", "", "")


def test_latex_is_booktabs_and_escaped():
    text = to_latex(SMALL)
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{table*}", r"\label{tab:small}"):
        assert part in text
    assert r"50\% of R\&D: x\_1 $\pm$ 2" in text and r"x \& y" in text and r"2.00 $\pm$ 0.50" in text
    assert r"1.25\textsuperscript{a}" in text and r"count\textsuperscript{b}" in text and r"100 \% true" in text
    assert "% x & y: d-s0-aaaa0000\n% z: no run\n" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 2 and all(line.count(" & ") == 2 and line.endswith(r"\\") for line in body)
    assert all(ord(character) < 128 for character in text)


def test_si_prefixes():
    assert [si(x) for x in (7, 482_528, 999_999, 464.2e6, 1.03e12)] == ["7", "483 k", "1 M", "464 M", "1.03 T"]


def later_version(results, configs, version, told=None, **values):
    """Some runs have a metric in a newer version, or with more told of it."""
    for config in configs:
        run = results.store.run(config.run_id)
        record = run.evaluations()[config.evaluation_id]
        for key, value in values.items():
            record["metrics"][f"eval/{key}"] = value
        record["measured"] = {"fid": {"version": version, "keys": [f"eval/{key}" for key in values], **(told or {})}}
        run.add_evaluation(config.evaluation_id, record)


def test_overfitting_is_a_table_and_a_sentence(everything, tmp_path):
    script = shipped.load(shipped.find("analysis", "overfitting"))
    records = load_records(everything.root)
    manifest = records.sweeps("mixers")[0]
    found = script.curves(records, manifest, [])
    table = script.overfitting_table(found, records, manifest)
    row = table.rows[0]
    assert (row["train"].mean, row["heldout"].mean) == pytest.approx((2.61, 4.82)) and row["n"] == 3
    assert row["gap"].mean == pytest.approx(2.21) and row["verdict"].startswith("worse (p ")
    assert (row["lowest"].mean, row["at"]) == (pytest.approx(4.02), 160) and len(table.run_ids[0]) == 3
    assert "lowest before the end of training for VAR, 1 (intra-only)" in table.reading[1]
    assert script.overfitting_figure(found, records, manifest, tmp_path).name == "overfitting-digits-steps"


def test_one_training_that_is_sampled_in_several_ways_is_one_row_and_one_line(everything, tmp_path):
    records = load_records(everything.root)
    manifest = records.sweeps("mixers")[0]
    cells = [replace(cell, label=f"{cell.label}, cfg {cfg}") for cell in manifest.cells for cfg in (0, 1.5)]
    names = [cell.label for cell in manifest.cells]
    several = replace(manifest, cells=tuple(cells))
    script = shipped.load(shipped.find("analysis", "overfitting"))
    found = script.curves(records, several, [])
    rows = script.overfitting_table(found, records, several).rows
    assert [row["label"] for row in rows] == names == list(several.trainings)
    assert rows == script.overfitting_table(script.curves(records, manifest, []), records, manifest).rows
    keys = ["eval/nll_bits_scale_00", "eval/nll_bits_scale_01"]
    script = shipped.load(shipped.find("analysis", "likelihood"))
    assert list(script._lines(records, several, keys)) == list(script._lines(records, manifest, keys)) == names
    assert in_common(["cfg 0", "cfg 1"]) == "cfg 0 and 1 more"  # nothing in common


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_runs_that_logged_no_likelihood_have_no_such_table(results):
    results.sweep("mixers")
    for path in results.root.glob("runs/*/metrics.jsonl"):
        path.write_text(json.dumps({"step": 240, "train/loss": 1.5}) + "\n")
    text = write_report(results.root).read_text()
    assert "Overfitting" not in text and "## Problems" not in text


def test_values_of_two_versions_are_not_compared(results):
    _, configs = results.sweep("mixers", seeds=(0, 1))
    later_version(results, configs[:2], 2, fid=7.0)  # both seeds of the first row
    records = load_records(results.root)
    table = sweep_table(records, records.manifests[0])
    assert [row["fid"].mean if row["fid"] else None for row in table.rows] == [7.0, None, None, None]
    assert all(row["nll"] for row in table.rows)  # another metric, of one version
    dashes = [note for note in table.notes if "not compared here" in note.text]
    assert [(note.row, note.column) for note in dashes] == [(1, "fid"), (2, "fid"), (3, "fid")]
    assert all("of version 1," in note.text for note in dashes)
    (line,) = [line for line in table.missing if "eval/fid" in line]
    assert line.startswith("eval/fid version 2 is missing for 6 runs") and "`mvar run mixers --preset digits`" in line


def test_of_two_settings_the_commoner_is_compared_and_the_other_is_named(results):
    """A table names the setting that differs, and the command that measures alike."""
    _, configs = results.sweep("mixers", seeds=(0, 1))
    told = {"settings": {"k": 10}, "defaults": {"k": 5}}
    later_version(results, configs[:2], 1, told, fid=7.0)  # both seeds of the first row
    records = load_records(results.root)
    table = sweep_table(records, records.manifests[0])
    assert [bool(row["fid"]) for row in table.rows] == [False, True, True, True]  # six of eight are of the default
    assert [(note.row, note.text) for note in table.notes if "not compared" in note.text] == [
        (0, "of version 1 (k=10), which is not compared here")
    ]
    (line,) = [line for line in table.missing if "eval/fid" in line]
    assert line.startswith("eval/fid is of k=10 and not 5 for 2 runs (") and "missing" not in line
    assert line.endswith("--set evaluation.fid.k=5` measures it alike.")
    later_version(results, configs[2:], 1, {"settings": {"k": 3}, "defaults": {"k": 5}}, fid=8.0)
    records = load_records(results.root)
    (line,) = [line for line in sweep_table(records, records.manifests[0]).missing if "eval/fid" in line]
    assert line.startswith("eval/fid is of k=10 and not 3 for 2 runs") and "--set evaluation.fid.k=3`" in line


def test_of_one_version_nothing_is_said(results):
    _, configs = results.sweep("mixers")
    later_version(results, configs, 2, fid=7.0)
    records = load_records(results.root)
    table = sweep_table(records, records.manifests[0])
    assert [row["fid"].mean for row in table.rows] == [7.0] * 4 and not table.missing
    assert not any("version" in note.text for note in table.notes)


def test_a_metric_of_ones_own_is_a_column_of_ones_own_experiment(results, monkeypatch):
    from dataclasses import replace

    from mvar.runs.columns import MEASURED, Column
    from mvar.runs.experiment import find_experiment

    _, configs = results.sweep("mixers")
    later_version(results, configs[:1], 1, mine=0.25)
    found = find_experiment("mixers")
    own = replace(found, columns=(*found.columns, Column("eval/mine", "mine ↓", MEASURED, 3)))
    monkeypatch.setattr("mvar.runs.grid.find_experiment", lambda name: own)
    records = load_records(results.root)
    table = sweep_table(records, records.manifests[0])
    assert [row["eval/mine"].mean if row["eval/mine"] else None for row in table.rows] == [0.25, None, None, None]
    assert any(line.startswith("eval/mine version 1 is missing for 3 runs") for line in table.missing)
