"""Differences paired by seed, what sampling seeds are worth, and the tables and laws that rest on them."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mvar import shipped
from mvar.analysis.compare import (
    Difference,
    check_comparable,
    difference,
    heldout_images,
    new_images_interval,
    sampling_sd,
)
from mvar.analysis.differences import differences_table
from mvar.analysis.power_law import MIN_POINTS, fit_law
from mvar.analysis.records import load_records
from mvar.analysis.summary import _at_chance, _blind
from mvar.analysis.tables import _copies_line, sweep_table
from mvar.errors import UserError
from mvar.presets import DIGITS
from mvar.runs.experiment import find_experiment
from mvar.runs.request import Request, with_seeds, write_manifest

SCRIPT = shipped.load(shipped.find("analysis", "scaling"))
curves, scaling_table, scaling_figure = SCRIPT.curves, SCRIPT.scaling_table, SCRIPT.scaling_figure


def rows(values, **columns):
    """Rows of a records table: {training seed: value, or a list of one a sampling seed}."""
    flat = [(s, v) for s, value in values.items() for v in np.atleast_1d(value)]
    table = pd.DataFrame(flat, columns=["seed", "eval/fid"])
    return table.assign(run_id=[f"r-s{s}" for s, _ in flat], settings="{}", **columns)


# Differences --------------------------------------------------------------------------------------------------------


def test_the_interval_is_students_over_pairs():
    own, base = rows({0: 1.0, 1: 1.3, 2: 0.9, 3: 7.0}), rows({0: 2.0, 1: 2.1, 2: 2.2, 5: 0.0})
    found = difference(own, base, "eval/fid")
    pairs = np.array([-1.0, -0.8, -1.3])  # the seeds that both have
    low, high = stats.t.interval(0.95, 2, pairs.mean(), stats.sem(pairs))
    assert (found.mean, found.n) == (pytest.approx(pairs.mean()), 3)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.high < 0 or found.low > 0
    expected = stats.ttest_rel([1.0, 1.3, 0.9], [2.0, 2.1, 2.2]).confidence_interval()
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_pairing_takes_away_what_seeds_share():
    seeds = {s: 5.0 * s for s in range(4)}
    shifted = {s: value + 0.1 + 0.001 * s for s, value in seeds.items()}
    found = difference(rows(shifted), rows(seeds), "eval/fid")
    assert found.high - found.low < 0.01


def test_one_pair_has_no_interval():
    found = difference(rows({0: 1.0, 1: 2.0}), rows({1: 1.5}), "eval/fid")
    assert found == Difference(0.5, None, None, 1, ("r-s0", "r-s1"))
    assert found.low is None and found.text(2) == "+0.50"
    assert difference(rows({0: 1.0}), rows({1: 1.0}), "eval/fid") is None


def test_sampling_seeds_are_averaged_before_pairing_and_have_a_deviation_of_their_own():
    own, base = rows({0: [1.0, 1.2], 1: [2.0, 2.4]}), rows({0: 0.1, 1: 1.2})
    found = difference(own, base, "eval/fid")
    assert (found.mean, found.n) == (pytest.approx(1.0), 2)
    pooled = np.sqrt((np.var([1.0, 1.2], ddof=1) + np.var([2.0, 2.4], ddof=1)) / 2)
    assert sampling_sd(own, "eval/fid") == pytest.approx(pooled)
    assert sampling_sd(base, "eval/fid") is None


def test_rejection_is_no_sampling_seed():
    table = rows({0: [1.0, 1.2]})
    table["settings"] = ['{"sample.candidates": 1}', '{"sample.candidates": 4}']
    assert sampling_sd(table, "eval/fid") is None
    check_comparable(table, ignore=("sample.candidates",))
    with pytest.raises(UserError, match=r"differ in sample.candidates"):
        check_comparable(table)


def test_differences_of_a_sweep(results):
    results.sweep("mixers", seeds=(0, 1, 2))
    records = load_records(results.root)
    table = differences_table(records, records.manifests[0])
    assert [row["label"] for row in table.rows] == ["1 (intra-only)", "2 (Mamba-only)", "M-VAR"]
    found = table.rows[2]["fid"]
    assert found.mean == pytest.approx(-0.6) and found.n == 3 and found.high < 0
    assert len(table.run_ids[2]) == 6
    text = " ".join(table.reading)
    assert "95% interval by Student's t" in text
    assert "FID, against the baseline: better: 1 (intra-only), 2 (Mamba-only), M-VAR." in text
    assert "If all rows scattered equally, a difference of FID would have an interval of ±" in text
    assert "a difference of held-out NLL would have an interval of ±" in text
    assert text.count("(pooled over all rows, 6 degrees of freedom, 3 seeds)") == 2
    assert all(row["fid_verdict"] == "better (p below 0.001)" for row in table.rows)
    keys = {column.key for column in table.columns}
    assert {"fid_needed", "nll_needed"} <= keys and all("nll_needed" in row for row in table.rows)
    whole = sweep_table(records, records.manifests[0])
    family = next(line for line in whole.reading if line.startswith("Better and worse"))
    assert family in table.reading[0] and "of all 9 comparisons" in family  # six FIDs of pairs, three NLLs


def test_rejection_is_compared_with_every_image_of_the_same_model(results):
    _, configs = results.sweep("rejection", seeds=(0, 1))
    for config in configs:
        if config.sample.candidates > 1:
            results.run(config, fid=0.5 + 0.1 * config.seed)
    records = load_records(results.root)
    (manifest,) = records.manifests
    table = sweep_table(records, manifest)
    assert [row["acceptance_rate"] for row in table.rows] == [1, 0.25, 1, 0.25]
    assert [row["fid"].mean for row in table.rows] == pytest.approx([1.65, 0.55, 1.05, 0.55])
    assert [row["paper_fid"] for row in table.rows] == [1.97, 1.80, 1.78, 1.67]
    assert any("neither is an independent judge of picked images" in line for line in table.reading)
    found = differences_table(records, manifest)
    assert [(row["label"], row["baseline"]) for row in found.rows] == [
        ("VAR, best of 4", "VAR, every image"),
        ("M-VAR, best of 4", "M-VAR, every image"),
    ]
    assert [row["fid"].mean for row in found.rows] == pytest.approx([-1.1, -0.5])
    assert any('"VAR, best of 4", "M-VAR, best of 4"' in line for line in found.reading)  # they have commas themselves


def test_sampling_seeds_of_a_request_are_one_row(results):
    request = Request(find_experiment("mixers"), "digits", DIGITS, (0, 1), sample_seeds=(0, 7))
    write_manifest(results.store, request, ["run", "mixers"])
    for cell in request.cells():
        for config in with_seeds(cell.config, (0, 1), (0, 7)):
            results.run(config) if config.sample.seed == 0 else None
            record = results.evaluation(config)
            record["metrics"]["eval/fid"] += 0.2 * (config.sample.seed == 7)
            results.store.run(config.run_id).add_evaluation(config.evaluation_id, record)
    records = load_records(results.root)
    table = sweep_table(records, records.manifests[0])
    assert table.rows[0]["fid"].mean == pytest.approx(1.6 + 0.05 + 0.1) and table.rows[0]["n"] == 2
    (line,) = [line for line in table.reading if "Up to 2 sets of images a run" in line]
    assert "0.14" in line and "Over training seeds it has one of" in line and "Not varied: tokenizer, feature" in line
    one = table_of_seed(records, 0)
    (line,) = [line for line in one.reading if "Up to 2 sets of images a run" in line]
    assert "Over training seeds" not in line and "Not varied: training seed, tokenizer, feature extractor" in line
    records.table = records.table[records.table["sample_seed"] == 0]
    reading = " ".join(sweep_table(records, records.manifests[0]).reading)
    assert "One set of images a run: what drawing other images is worth is not known." in reading
    assert "Not varied: sampling seed, training seed, tokenizer, feature extractor, split of the data;" in reading


def table_of_seed(records, seed):
    """The first request's table, of one training seed."""
    records.table = records.table[records.table["seed"] == seed]
    return sweep_table(records, records.manifests[0])


def test_the_number_of_images_and_the_bias_are_said(everything):
    records = load_records(everything.root)
    table = sweep_table(records, records.sweeps("mixers")[0])
    assert table.caption.endswith(
        f"All metrics: {DIGITS.evaluation.num_images:,} images a set against 450 held-out images of digits, by "
        "features of classifier. VAR's printed FID and IS: 50,000 images against the reference statistics that ADM has "
        "of ImageNet, by Inception's features. M-VAR's: none of the three is published."
    )
    assert any("its bias is upwards" in line for line in table.reading)


# Scaling laws -------------------------------------------------------------------------------------------------------

SIZES = np.array([1e6, 4e6, 1e7, 3e7, 1e8])


def test_an_exact_law_is_found_exactly():
    law = fit_law(SIZES, 2.0 + 1.2 * (SIZES / 1e6) ** -0.4)
    assert (law.offset, law.factor, law.exponent) == pytest.approx((2.0, 1.2, 0.4), rel=1e-5)
    assert law.low == pytest.approx(0.4, rel=0.02) and law.high == pytest.approx(0.4, rel=0.02)
    assert law(np.array([1e6])) == pytest.approx(3.2)


def test_without_an_offset_the_logs_are_a_line():
    law = fit_law(SIZES, 5 * SIZES**-0.1)
    assert law.offset == pytest.approx(0, abs=0.01) and law.exponent == pytest.approx(0.1, rel=0.02)
    assert law.correlation == pytest.approx(-1)


def test_with_little_noise_and_many_sizes_the_bootstrap_range_holds_the_truth():
    rng, sizes, hits = np.random.default_rng(0), np.geomspace(1e5, 1e9, 9), 0
    for number in range(40):
        noisy = (2 + 3 * (sizes / 1e5) ** -0.3) * np.exp(rng.normal(0, 0.01, len(sizes)))
        law = fit_law(sizes, noisy, seed=number, resamples=200)
        hits += law.low <= 0.3 <= law.high
    assert 32 <= hits <= 40


@pytest.mark.slow
@pytest.mark.parametrize("exponent, offset, noise", [(0.3, 0.0, 0.02), (0.3, 0.5, 0.01), (0.1, 0.0, 0.005)])
def test_with_few_sizes_it_holds_the_truth_less_often_than_an_interval_would(exponent, offset, noise):
    """What the report says of it: 71 to 88 % (here to within three errors of the simulation), and so no 95 %."""
    rng, hits, trials = np.random.default_rng(0), 0, 60
    for _ in range(trials):
        ys = (offset + (SIZES / SIZES[0]) ** -exponent) * np.exp(rng.normal(0, noise, len(SIZES)))
        law = fit_law(SIZES, ys)
        hits += law.low <= exponent <= law.high
    errors = [3 * (share * (1 - share) / trials) ** 0.5 for share in (0.71, 0.88)]
    assert 0.71 - errors[0] <= hits / trials <= min(0.95, 0.88 + errors[1])


def test_what_does_not_fall_has_no_exponent():
    law = fit_law(SIZES, np.array([1.0, 1.1, 1.2, 1.3, 1.4]))
    assert law.exponent == 0 and law.correlation > 0.9 and not law.resolved


@pytest.mark.slow
def test_the_sweep_is_fitted_for_both_models_and_both_costs(results, tmp_path):
    _, configs = results.sweep("scaling", seeds=(0, 1))
    for config in configs:
        bits = 3 + 2 * (config.model.depth / 2) ** -1.0 + 0.01 * config.seed
        metrics = {"nll_bits_per_token": bits, "nll_bits_scale_03": bits, "error": bits / 6, "error_scale_03": bits / 6}
        results.run(config, **metrics)
    records = load_records(results.root)
    (manifest,) = records.manifests
    found = curves(records, manifest)
    table, laws = scaling_table(found, manifest)
    assert len(found) == len(laws) == 2 * 4 * 2 and {len(curve.xs) for curve in found} == {5}
    assert {row["metric"] for row in table.rows} >= {"token error, last scale", "NLL (bits/token), all scales"}
    assert all(law.correlation < -0.9 and law.exponent > 0 for law in laws.values())
    assert all(len(run_ids) == 10 for run_ids in table.run_ids)
    drawn = scaling_figure(found, laws, manifest, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {f"{drawn.name}.png", f"{drawn.name}.pdf"}


def test_too_few_sizes_say_how_many_are_there_and_how_to_make_more(results):
    _, configs = results.sweep("scaling", make=False)
    for config in configs[: MIN_POINTS - 1]:
        results.run(config, error=0.5)
    records = load_records(results.root)
    (manifest,) = records.manifests
    table, laws = scaling_table(curves(records, manifest), manifest)
    assert not laws
    (line,) = [line for line in table.reading if "not fitted" in line]
    assert f"needs {MIN_POINTS} sizes, {MIN_POINTS - 1} are there" in line and "`mvar run scaling" in line


@pytest.mark.parametrize("heldout, count", [(450, 1000), (100, 1000), (450, 3000)])
def test_new_images_are_in_the_interval_as_often_as_it_says(heldout, count):
    """Simulated with the threshold: few held-out images set it, and what is new is held to it."""
    rng, below = np.random.default_rng(0), round(0.05 * heldout)
    thresholds = np.sort(rng.exponential(size=(4000, heldout)))[:, below - 1]
    shares = (rng.exponential(size=(4000, count)) <= thresholds[:, None]).mean(1)
    low, high = new_images_interval(below / heldout, heldout, count)
    assert 0.94 <= ((low <= shares) & (shares <= high)).mean() <= 0.975


def test_a_file_of_reference_does_not_tell_how_many_heldout_images_there_are():
    """Its number of images is another one than the threshold of near-copies rests on: no interval is made of it."""
    found = rows({0: 1.0}, **{"eval/copy_rate_heldout": 0.05, "num_images": 1000})
    for reference, count in (({}, 450), ({"reference.sha256": "a"}, 0)):
        found["settings"] = json.dumps({"reference.num_images": 450} | reference)
        assert heldout_images(found) == count
        assert ("beta-binomial" in _copies_line(found)) == bool(count)
    assert _copies_line(found).endswith("than the nearest 5.0% of held-out images do.")


@pytest.mark.parametrize("first", [False, True, None])
def test_images_in_both_sets_are_said_as_the_threshold_has_them(first):
    """Left out of it, or counted in it by the first reading of data: so is the number that its interval rests on."""
    found = rows({0: 1.0, 1: 2.0}, **{"eval/copy_rate_heldout": 0.1, "num_images": 1000})
    found["settings"] = json.dumps({"reference.num_images": 100})
    assert heldout_images(found) == 100 and "training images too" not in _copies_line(found)
    found["eval/heldout_in_training"] = [40.0, np.nan]
    if first is not None:  # an older row does not say
        found["first_reading"] = [first or np.nan, np.nan]
    counted, number = (" 40, counted, as in the first reading of data, in", 100) if first else (" 40, left out of", 60)
    assert heldout_images(found) == number
    low, high = new_images_interval(0.1, number, 1000)
    line = _copies_line(found)
    assert f"would be {low:.1%} to {high:.1%}" in line
    assert line.endswith(f" Held-out images that are training images too:{counted} that threshold.")


def test_where_reciting_is_not_seen_the_report_says_so():
    def floors(reciting):
        values = {"train": reciting, "heldout": 0.05}
        return [{"data": "d", "key": f"floor/copy_rate_reconstruction_{k}", "value": v} for k, v in values.items()]

    assert _blind(floors(0.9)) == []
    (line,) = _blind(floors(0.0))
    assert line.startswith("Near-copies on d say nothing: ") and "score 0.0%, new ones 5.0%" in line


def test_a_model_at_chance_is_named():
    done = pd.DataFrame({"run_id": ["a", "b"], "eval/nll_bits_per_token": [math.log2(96), 4.0]})
    records = SimpleNamespace(configs={"a": DIGITS, "b": DIGITS})
    assert _at_chance(done, records) == ["At chance: the held-out NLL of `a` is that of drawing all codes alike."]
    assert DIGITS.tokenizer.vocab_size == 96
