"""The tables of probes: rows over seeds, sentences no stronger than their intervals."""

import pandas as pd
import pytest

from mvar import Shown, shipped
from mvar.analysis.compare import Measured
from mvar.analysis.records import load_records
from mvar.config import override

probes = shipped.load(shipped.find("analysis", "probes"))


SAID = {
    0.2: "above 0 beyond its interval over images in 3 of 3 rows, below in 0, inconclusive in 0.",
    -0.2: "above 0 beyond its interval over images in 0 of 3 rows, below in 3, inconclusive in 0.",
    0.02: "above 0 beyond its interval over images in 0 of 3 rows, below in 0, inconclusive in 3.",
}


def test_rows_are_over_seeds_and_sentences_no_stronger_than_intervals(results):
    _, configs = results.sweep("mixers", seeds=(0, 1))
    runs = [results.store.run(c.run_id) for c in configs if c.model.pattern in ("global", "intra")]
    for change, said in SAID.items():
        for run in runs:
            results.probe(run, change=change)
        models, problems = probes.probed_models(load_records(results.root))
        assert problems == [] and list(models) == ["state"]
        table = probes.table("state", *models["state"])
        assert [row["model"].partition(",")[0] for row in table.rows] == ["global"] * 3 + ["intra"] * 3
        first = table.rows[0]
        assert first["change"].mean == pytest.approx(change + 0.005) and first["n"] == 2
        assert {row["case_precision"] for row in table.rows} == {"whole", "bf16"} and "case_limit" not in first
        assert sum(line.endswith(said) for line in table.reading) == 2
    for run in runs:  # a damaged file is none
        (run.path / "probes/state.json").write_text("{")
    assert probes.probed_models(load_records(results.root)) == ({}, [])


def test_what_is_measured_on_another_number_of_images_is_a_table_of_its_own(results):
    _, configs = results.sweep("mixers", seeds=(0, 1))
    runs = {(c.model.pattern, c.seed): results.store.run(c.run_id) for c in configs}
    results.probe(runs["global", 0], change=0.2)
    for at, images in ((("global", 0), 32), (("global", 1), 32), (("intra", 0), 32), (("intra", 1), 64)):
        results.probe(runs[at], change=0.3, images=images)
    models, problems = probes.probed_models(load_records(results.root))
    assert problems == []
    found = {tag: {(m.config.model.pattern, *m.rows) for m in each} for tag, (_, each) in models.items()}
    assert found == {
        "state": {("global", 0)},
        "state-images-32": {("global", 0, 1), ("intra", 0)},
        "state-images-64": {("intra", 1)},
    }
    tables = {tag: probes.table(tag, *each) for tag, each in models.items()}
    assert [table.name for table in tables.values()] == [f"probe-{tag}" for tag in tables]
    assert "at most 32 images" in tables["state-images-32"].caption and "1,000 images" in tables["state"].caption
    assert tables["state"].rows[0]["change"].mean == pytest.approx(0.2)
    assert tables["state-images-32"].rows[0]["change"].mean == pytest.approx(0.305)


def compared(results):
    models, problems = probes.probed_models(load_records(results.root))
    assert problems == []
    return probes.models_table("state", *models["state"])


def test_models_are_compared_over_seeds_and_verdicts_are_corrected_over_the_table(results):
    _, configs = results.sweep("mixers", seeds=(0, 1, 2))
    runs = {(c.model.pattern, c.seed): results.store.run(c.run_id) for c in configs}
    for (pattern, seed), run in runs.items():
        if pattern in ("global", "mamba", "intra"):  # intra is as global but for noise
            shift = {"global": 0.0, "mamba": -0.1 + 1e-4 * seed, "intra": 0.01 * (-1) ** seed}[pattern]
            results.probe(run, change=0.2 + shift)
    table = compared(results)
    rows = [row for row in table.rows if row["model"].startswith("mamba")]
    assert all(row["minus"].startswith("global") and row["n"] == 3 for row in table.rows) and len(table.rows) == 6
    assert all(row["change"].mean == pytest.approx(-0.0999) and row["change"].high < 0 for row in rows)
    assert all(row["change_verdict"].startswith("better (p") for row in rows)
    noise = [row for row in table.rows if row["model"].startswith("intra")]
    assert all(row["change_verdict"].startswith("inconclusive (p") for row in noise)
    # 6 rows of three values; likelihood and FID are the same in all runs, the change in all cases of a run
    assert "this table's 2 comparisons that have two pairs or more (2)" in table.reading[0]
    assert any(line.endswith("better in 3, worse in 0, inconclusive in 0 of 3 rows.") for line in table.reading)


def test_one_seed_or_other_data_decide_nothing(results):
    _, configs = results.sweep("mixers", seeds=(0,))
    for config in configs[:2]:
        results.probe(results.store.run(config.run_id), change=0.1 + 0.1 * (config.model.pattern == "global"))
    table = compared(results)
    assert {row["change_verdict"] for row in table.rows} == {"inconclusive: one seed, two or more are needed"}
    first, second = (results.store.run(config.run_id).config() for config in configs[:2])
    assert probes.compared_with(first) == probes.compared_with(second)
    assert probes.compared_with(first) != probes.compared_with(override(second, {"train.steps": 7}))
    assert probes.compared_with(first) != probes.compared_with(override(second, {"evaluation.reference": "x.npz"}))


def test_a_value_of_which_neither_is_good_is_lower_or_higher():
    compared = probes.Compared()
    low, high = (pd.Series({seed: value + 1e-3 * seed * value for seed in range(4)}) for value in (1.0, 2.0))
    for model, ours, theirs in (("a", low, high), ("b", high, low), ("c", low, low)):
        pair = Measured.of(ours), Measured.of(theirs)
        compared.add({"model": model, "minus": "base"}, {"share": pair, "bits": pair})
    words = compared.judge({"share": Shown("share", "share"), "bits": Shown("bits", "bits", better="lower")})
    assert words == {(0, "share"): "lower", (1, "share"): "higher", (0, "bits"): "better", (1, "bits"): "worse"}
    assert compared.rows[2]["share_verdict"] == "the same" and compared.tested == len(compared.pairs) == 4
    assert compared.rows[0]["share_verdict"].startswith("lower (p ")


@pytest.mark.parametrize(("before", "word"), [(8.0, "too small to count"), (7.0, "better")])
def test_a_change_of_fid_counts_from_a_share_of_the_fid_before_it(before, word):
    """0.1 less of a change, surely: below 1.3 % of 8, above that of 7, however large the change itself is."""
    for change in (0.5, 4.0, -2.0):
        theirs, fid = (Measured.of(pd.Series([mean] * 3)) for mean in (change, before + change))
        ours = Measured.of(pd.Series([change - 0.1, change - 0.0999, change - 0.1001]))
        found = probes.Compared()
        found.add({"model": "m", "minus": "g"}, {"fid_change": (ours, theirs)}, fid)
        assert found.judge({"fid_change": Shown("fid_change", "change of FID", 2, better="lower")}) == {
            (0, "fid_change"): word
        }


def test_a_difference_of_fid_that_is_too_small_to_count_is_said():
    """1 % lower, surely: as a count of rows it is neither better nor inconclusive; of another value it counts."""
    ours, theirs = (Measured.of(pd.Series([fid, fid + 1e-3, fid - 1e-3, fid + 2e-3])) for fid in (0.99, 1.0))
    fewer = Measured.of(pd.Series([1.0, 1.001, 0.999]))
    found = probes.Compared()
    found.add({"model": "m", "minus": "g"}, {"fid": (ours, theirs), "change": (ours, fewer)})
    shown = [Shown("fid", "FID", 2, better="lower"), Shown("change", "change", 2, better="lower")]
    words = found.judge({one.name: one for one in shown})
    assert found.rows[0]["fid_verdict"] == "better (p below 0.001), too small to count"
    assert words == {(0, "fid"): "too small to count", (0, "change"): "better"}
    text = " ".join(probes.models_reading(shown, found, words))
    assert "FID: better in 0, worse in 0, too small to count in 1, inconclusive in 0 of 1 rows." in text
    assert "change: better in 1, worse in 0, inconclusive in 0 of 1 rows." in text and "are left out" in text
