"""Table 1b: rows of whole parts, verdicts over seeds, sentences no stronger than their intervals."""

import numpy as np
import pytest

from mvar import shipped
from mvar.analysis.records import load_records

knockout = shipped.load(shipped.find("analysis", "knockout"))


def models(results):
    found, problems = knockout.cut_models(load_records(results.root))
    assert problems == []
    return found


def cut_runs(results, seeds, **changes):
    _, configs = results.sweep("mixers", seeds=seeds)
    for config in configs:
        if config.model.pattern == "global":
            results.cut(results.store.run(config.run_id), **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"own": 0.4, "coarser": 0.02}, {"own": "more harm", "coarser": "less harm"}),
        ({"own": 0.1 - 0.002, "coarser": 0.1 - 0.002}, {"own": "inconclusive", "coarser": "inconclusive"}),
    ],
)
def test_a_cut_is_judged_by_random_ones_over_seeds(results, changes, words):
    cut_runs(results, (0, 1, 2), **changes)
    table = knockout.table1b(models(results))
    rows = {row["label"]: row for row in table.rows}
    assert set(rows) == {"own", "coarser"}
    for label, word in words.items():
        assert rows[label]["verdict"].startswith(f"{word} (p ") and rows[label]["n"] == 3
    assert rows["own"]["entropy"].mean == rows["coarser"]["entropy"].mean == pytest.approx(1)  # as it was made up
    assert rows["own"]["mass"].mean == pytest.approx(1 - rows["coarser"]["mass"].mean)
    assert len(rows["own"]["change"].run_ids) == 3


def test_one_seed_is_inconclusive(results):
    cut_runs(results, (0,))
    table = knockout.table1b(models(results))
    assert all("inconclusive: one seed" in row["verdict"] for row in table.rows)


def test_no_cut_is_no_section(results):
    results.sweep("mixers")
    assert models(results) == []


@pytest.mark.parametrize(
    ("effect", "word"),
    [
        (lambda mass: mass**3, "more mass, more effect."),
        (lambda mass: -mass, "more mass, less effect."),
        (lambda mass: (mass * 17) % 1, "inconclusive."),
    ],
)
def test_a_rank_correlation_says_no_more_than_its_interval(effect, word):
    points = [(mass, effect(mass)) for mass in np.linspace(0.1, 0.9, 23)]
    rho, low, high = knockout.rank_correlation(points)
    assert low <= rho <= high and knockout.correlation_told(points).endswith(word)
    assert knockout.rank_correlation(points) == (rho, low, high)


def test_ranks_are_those_of_scipy():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(3)
    points = list(zip(rng.integers(0, 5, 20), rng.random(20), strict=True))  # with ties
    assert knockout.rank_correlation(points)[0] == pytest.approx(spearmanr(*zip(*points, strict=True)).statistic)
