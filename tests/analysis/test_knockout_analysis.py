"""Table 1b: rows of whole parts, verdicts over seeds, sentences no stronger than their intervals."""

import csv
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from mvar import analysis as kit
from mvar import shipped
from mvar.analysis import style
from mvar.analysis.records import load_records
from mvar.analysis.render import to_csv
from mvar.config import override
from mvar.presets import PRESETS
from mvar.probes.interval import t_factor

knockout = shipped.load(shipped.find("analysis", "knockout"))


def models(results):
    found, problems = kit.cut_models(load_records(results.root))
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
        ({"own": 0.4, "coarser": 0.02}, {"own": "more harm than random", "coarser": "less harm than random"}),
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


def test_what_has_no_random_control_is_judged_against_no_cut_in_the_same_family(results):
    cut_runs(results, (0, 1, 2), alone={"state": 0.2, "branch:global": 0.0})
    (model,) = models(results)
    table = knockout.table1b([model])
    rows, said = {row["label"]: row for row in table.rows}, "\n".join(table.reading)
    assert rows["state"]["verdict"].startswith("harm (p ") and not rows["state"]["control"]
    assert rows["branch:global"]["verdict"].startswith("inconclusive (p ")
    assert "`state` taken away costs +0.201 bits a token, with no random control beside it" in said
    assert (
        "Against no cut: harm (p " in said and "Holm's method over all 6 of them" in said
    )  # two are rank correlations
    family = {label: (row["change"], row["control"] or knockout.nothing(row["change"])) for label, row in rows.items()}
    alone = kit.judge(family)
    assert float(rows["state"]["verdict"].split()[-1].rstrip(")")) >= alone["state"].p


def test_fid_of_a_cut_where_it_was_asked_for_alike(results):
    cut_runs(results, (0, 1), fid=(1.5, 100))
    (model,) = models(results)
    assert model.fid("own", "fid_change").mean == 1.5 and model.fid("own", "fid_change").n == 2
    results.cut(results.store.run(model.run_ids[1]), fid=(1.5, 200))  # of another number of images
    assert knockout.by_fid(models(results)) is None
    results.cut(results.store.run(model.run_ids[1]))
    assert models(results)[0].fid("own", "fid_change").n == 1


def test_fid_stands_beside_random_cuts_and_what_has_none_is_judged_by_no_word(results):
    cut_runs(results, (0, 1, 2), alone={"state": 0.2}, fid=(1.5, 100, 0.4, 0.6))
    found = models(results)
    rows = {row["label"]: row for row in knockout.by_fid(found).rows}
    assert set(rows) == {"own", "coarser", "state"} and (rows["own"]["draws"], rows["own"]["images"]) == (2, 100)
    assert rows["own"]["control"].mean == 0.5 and rows["own"]["beyond"].mean == 1.0
    assert rows["own"]["half_width"] == pytest.approx(12.7062 * 0.1, rel=1e-4)  # t of two draws
    assert rows["own"]["verdict"].startswith("more harm than random") and rows["state"]["verdict"].startswith("harm")
    cut_runs(results, (0, 1, 2), fid=(1.5, 100))  # of a time before random cuts of FID
    (row, *_) = knockout.by_fid(models(results)).rows
    assert row["control"] is None and row["verdict"] == kit.DASH


def test_fid_of_what_stands_in_is_in_its_table_and_in_that_of_all_cuts(results):
    cut_runs(results, (0,), alone={"state,kind=resample": 0.2, "state,layer=0": 0.1}, fid=(1.5, 100, 0.4, 0.6))
    found = models(results)
    assert [row["label"] for row in knockout.by_fid(found).rows] == ["own", "coarser", "state,kind=resample"]
    rows = {row["label"]: row for row in csv.DictReader(to_csv(knockout.every_cut(found)).splitlines())}
    assert [rows["own"][name] for name in ("fid", "fid_change", "fid_control")] == ["1.5", "1.5", "0.5"]
    assert rows["state,layer=0"]["fid_change"] == "1.5" and rows["state,layer=0"]["fid_control"] == ""
    cut_runs(results, (0,))
    assert "fid" not in to_csv(knockout.every_cut(models(results)))


def test_each_scale_stands_beside_its_own_random_cuts(results):
    cut_runs(results, (0, 1, 2), own=0.4, by_scale=[(0.4, 0.1, 0.4, 0.1), (0.4, 0.3, 0.4, 0.1)])
    table = knockout.by_scale(models(results))
    own = {row["scale"]: row for row in table.rows if row["label"] == "own"}
    assert [row["control"].mean for row in own.values()] == pytest.approx([0.4, 0.2, 0.4, 0.1])
    assert own["2×2"]["beyond"].mean == pytest.approx(0.2) and own["2×2"]["half_width"] > 0
    assert own["2×2"]["verdict"].startswith("more harm than random") and own["1×1"]["verdict"] == "the same"
    assert "Holm's method over the 6 of this table" in table.reading[1]  # twice two scales are the same, of `own`
    cut_runs(results, (0, 1, 2))
    assert knockout.by_scale(models(results)) is None  # of a time before


def test_what_stands_in_has_a_table_beside_the_plain_cut(results):
    cut_runs(results, (0, 1, 2), alone={"own,kind=mean": 0.2, "state": 0.2, "own,kind=mean,layer=0": 0.3})
    table = knockout.by_kind(models(results))
    rows = [(row["label"], row["kind"], row["change"].mean) for row in table.rows]
    assert rows == [("own", "nothing", pytest.approx(0.401)), ("own", "its mean over images", pytest.approx(0.201))]
    assert table.rows[0]["verdict"].startswith("more harm than") and table.rows[1]["verdict"].startswith("harm (p ")


@pytest.mark.parametrize(
    ("pattern", "panels", "figures"),
    [
        ("markov:2", ["effect of the cut"], ["matrices", "heads"]),
        ("intra+global", ["mass in the global layers", "effect of the cut"], ["matrices", "heads"]),
        ("global mamba", ["mass", "effect of the cut"], ["matrices", "heads", "scatter"]),
    ],
)
def test_effects_are_drawn_of_any_mixer_and_mass_where_it_is_known(
    results, tmp_path, monkeypatch, pattern, panels, figures
):
    run = results.run(override(PRESETS["digits"], {"model.pattern": pattern, "model.depth": 2}))
    if "global" in pattern:
        results.attention(run)
    results.cut(run)
    shown, titles, drawn, written, entropies = {}, [], [], [], []
    page = SimpleNamespace(records=load_records(results.root), problems=[], figures=tmp_path)
    page.section = page.table = page.csv = lambda _: None
    page.figure = lambda what, *call: shown.update({what.split()[0]: call})
    knockout.draw(page)
    assert page.problems == [] and list(shown) == figures

    @contextmanager
    def unwritten(directory, name, height, **layout):
        with style.page(height, **layout) as (figure, axes):
            yield figure, axes
        titles.extend(ax.get_title("left") for ax in axes.flat)
        drawn.append(axes.flat[-1].collections[0].get_array())
        written.append({text.get_text() for text in axes.flat[-1].texts})
        entropies.extend(text.get_text() for a in axes.flat[0].child_axes for text in a.get_yticklabels())

    monkeypatch.setattr(kit, "canvas", unwritten)
    make, *arguments = shown["matrices"]
    assert ("mass" in make(*arguments).caption) == (len(panels) > 1) and titles == panels
    make, *arguments = shown["heads"]
    assert ("Mass: what" in make(*arguments).caption) == (len(panels) > 1)
    assert titles[len(panels) :] == [*["mass, own scale", "entropy"][: 2 * len(panels) - 2], "own cut", "coarser cut"]
    assert entropies == ["1.00"] * 4 * (len(panels) - 1)  # as they were made up
    by_scale, by_head = drawn
    assert by_scale.count() == 10 and by_scale[3, 3] == pytest.approx(1000 * (0.01 + 0.001 * 3))  # of 4 scales
    assert by_head.shape == (2, run.config().model.num_heads) and by_head[1, 0] == pytest.approx(1)
    assert written == [{"0", "1", "2", "10", "11", "12", "13"}, {"0.0", "1.0"}]  # small ones with a decimal
    masses = knockout.table1b(models(results)).rows[0]["mass"]
    assert (masses is not None) == ("scatter" in figures)  # of all that is cut, or none


def test_the_caption_of_the_scatter_says_no_more_than_is_drawn(results, tmp_path, monkeypatch):
    for seed in (0, 1):
        run = results.run(override(PRESETS["digits"], {"model.pattern": "global", "model.depth": 2, "seed": seed}))
        results.attention(run)
        results.cut(run)
    (model,) = models(results)
    shown = kit.ranks.points_of(model)
    monkeypatch.setattr(kit, "canvas", lambda *_, ncols: style.page(2, ncols=ncols))

    def caption(panels):
        monkeypatch.setattr(kit.ranks, "points_of", lambda model: panels)
        return knockout.scatter_figure(model, "x", tmp_path).caption

    both = caption(shown)
    assert ". Left: keys of a scale for" in both and "Right: keys of the own" in both and "Brackets: " in both
    alone = caption({kit.ranks.HEADS: {0: shown[kit.ranks.HEADS][0]}})
    what = "keys of the own or of the coarser scales in one layer or head."
    assert alone == f"A cut's cost against the mass that it takes away: {what}"


def points_by_seed(effect, seeds=3):
    rng = np.random.default_rng(0)
    return {s: {m: (m, effect(m) + 0.01 * rng.normal()) for m in np.linspace(0.1, 0.9, 23)} for s in range(seeds)}


@pytest.mark.parametrize(
    ("effect", "word"),
    [
        (lambda mass: mass**3, "more mass, more effect (p "),
        (lambda mass: -mass, "more mass, less effect (p "),
        (lambda mass: 0.0, "inconclusive (p "),
    ],
)
def test_a_rank_correlation_says_no_more_than_its_verdict(effect, word):
    rho = kit.ranks.rank_correlation(points_by_seed(effect))
    verdict = kit.judge({0: (rho, knockout.nothing(rho))}, higher_is_better=[0])[0]
    assert knockout.told(verdict, knockout.RANKS).startswith(word)
    one = kit.ranks.rank_correlation(points_by_seed(effect, seeds=1))
    assert "[" not in kit.ranks.interval_text(one) and "[" in kit.ranks.interval_text(rho)


def test_points_that_tell_nothing_new_do_not_narrow_the_interval():
    """Each point twice, as own and coarser masses of a head are one number: nothing more is known."""
    by_seed = points_by_seed(lambda mass: (mass * 17) % 1)
    twice = {s: {(key, n): p for key, p in points.items() for n in (0, 1)} for s, points in by_seed.items()}
    once = kit.ranks.interval_text(kit.ranks.rank_correlation(by_seed))
    assert once == kit.ranks.interval_text(kit.ranks.rank_correlation(twice))


def test_an_interval_over_seeds_holds_what_dependent_points_only_scatter_about():
    """Heads whose effects have nothing to do with their masses: at most about 5 % of intervals leave out 0."""
    rng, misses = np.random.default_rng(1), 0
    for _ in range(200):
        by_seed = {}
        for seed in range(3):
            shares, effects = rng.random((2, 6))
            own = {("own", h): (shares[h], effects[h]) for h in range(6)}
            by_seed[seed] = own | {("coarser", h): (1 - shares[h], 1 - effects[h]) for h in range(6)}
        low, high = kit.ranks.interval_text(kit.ranks.rank_correlation(by_seed)).split("[")[1].rstrip("]").split(", ")
        misses += float(low) > 0 or float(high) < 0
    assert misses <= 20


def test_cuts_on_another_number_of_images_stand_apart(results):
    _, configs = results.sweep("mixers", seeds=(0, 1))
    runs = {(c.model.pattern, c.seed): results.store.run(c.run_id) for c in configs}
    results.cut(runs["global", 0], own=0.4)
    for at, images in ((("global", 0), 32), (("global", 1), 32), (("intra", 0), 64)):
        results.cut(runs[at], own=0.7, images=images)
    found = models(results)
    assert [(m.limit, m.config.model.pattern, *m.found) for m in found] == [
        (1000, "global", 0),
        (32, "global", 0, 1),
        (64, "intra", 0),
    ]
    page, told = drawn(results)
    names = ("table1b", "table1b-cuts", "table1b-images-32", "table1b-cuts-images-32", *told[4:])
    assert told == [*names] and told[4:] == ["table1b-images-64", "table1b-cuts-images-64"]
    assert page["table1b"].rows[0]["change"].mean == 0.4 and page["table1b"].rows[0]["n"] == 1
    assert page["table1b-images-32"].rows[0]["change"].mean == pytest.approx(0.7005)
    assert page["table1b-images-32"].title.endswith(", at most 32 images")
    (results.store.root / "knockout").rename(results.store.root / "gone")
    assert [m.limit for m in models(results)] == [1000]


def drawn(results):
    """All tables that a page gets, by name, and their names in order."""
    tables = []
    page = SimpleNamespace(records=load_records(results.root), problems=[], figures=None)
    page.section = page.figure = lambda *_: None
    page.table = page.csv = tables.append
    knockout.draw(page)
    assert page.problems == []
    return {table.name: table for table in tables}, [table.name for table in tables]


def test_every_cut_is_a_row_of_a_csv_and_of_pairs_alone_there_is_no_other_table(results):
    run = results.run(override(PRESETS["digits"], {"model.pattern": "markov:2"}))
    results.cut(run, only="scale", images=300)
    tables, names = drawn(results)
    assert names == ["table1b-cuts-images-300"]
    lines = list(csv.DictReader(to_csv(tables[names[0]]).splitlines()))
    pairs = [(line["label"], line["queries"], line["keys"]) for line in lines]
    assert pairs[:3] == [
        ("scale:0,queries=0", "1×1", "1×1"),
        ("scale:0,queries=1", "2×2", "1×1"),
        ("scale:1,queries=1", "2×2", "2×2"),
    ]
    half = 0.05 * t_factor(450)
    for line in lines:
        assert float(line["half_width"]) == pytest.approx(half) and float(line["control"]) == pytest.approx(0.1)
        assert float(line["beyond_half_width"]) > half and line["mass"] == line["entropy"] == ""  # no maps


def test_the_interval_over_images_is_the_mean_of_the_runs(results):
    cut_runs(results, (0, 1, 2))
    (row, _) = knockout.table1b(models(results)).rows
    assert row["half_width"] == pytest.approx(0.05 * t_factor(450))
    headings = {column.heading for column in knockout.COLUMNS}
    assert {"± over images", "± over images and draws"} < headings


def test_intervals_over_seeds_are_students_and_of_one_seed_none(results):
    from scipy.stats import t

    cut_runs(results, (0, 1, 2))
    (row, _) = knockout.table1b(models(results)).rows
    for name in ("change", "beyond"):
        values = [value for _, value in row[name].by_seed]
        low, high = t.interval(0.95, 2, np.mean(values), np.std(values, ddof=1) / 3**0.5)
        assert row[f"{name}_over_seeds"] == pytest.approx((high - low) / 2)
    assert row["draws"] == len(models(results)[0].found[0].effects["own"].controls)
    assert kit.Measured(1.0, None, 1).half_width is None


def test_ranks_are_those_of_scipy_and_a_seed_without_scatter_has_none():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(3)
    points = dict(enumerate(zip(rng.integers(0, 5, 20), rng.random(20), strict=True)))  # with ties
    rho = kit.ranks.rank_correlation({0: points, 1: dict.fromkeys(range(3), (0.5, 1.0))})
    assert rho.mean == pytest.approx(spearmanr(*zip(*points.values(), strict=True)).statistic) and rho.n == 1
    assert kit.ranks.rank_correlation({0: dict.fromkeys(range(3), (0.5, 1.0))}) is None
