"""The numbers of docs/compare-two-mixers.md: they follow from each other, and are those of the demo's runs.

What the page says of three training seeds and of guidance is held against `docs/seen/compare-two-mixers.csv`: a row a
training, sampling seed and guidance, as `mvar.runs` had them after the page's commands.

`MVAR_DEMO_RESULTS=results pytest -m slow tests/test_compared.py` compares with runs, after `make demo`; what the page
says of three training seeds where these are there, after its own command too.
"""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mvar import shipped
from mvar.analysis.compare import Measured, aggregate, by_seed, half_width, sampling_sd, training_sd
from mvar.analysis.differences import differences_table
from mvar.analysis.records import load_records
from mvar.analysis.verdicts import judge, t_test
from mvar.presets import PRESETS
from mvar.runs.experiment import COUNTS, find_experiment

PAGE = (Path(__file__).parents[1] / "docs" / "compare-two-mixers.md").read_text()
README = (Path(__file__).parents[1] / "README.md").read_text()
SEEN = Path(__file__).parents[1] / "docs" / "seen" / "compare-two-mixers.csv"
FLAT = " ".join(PAGE.replace("\n> ", "\n").split())  # sentences are of one line
PATTERNS = {"VAR": "global", "1 (`intra`)": "intra", "M-VAR": "intra+mamba"}
RESULTS = os.environ.get("MVAR_DEMO_RESULTS")
of_the_demo = [pytest.mark.slow, pytest.mark.skipif(not RESULTS, reason="MVAR_DEMO_RESULTS names no demo's results")]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def said(pattern: str) -> list[float]:
    """The numbers of a sentence of the page, by a pattern that finds it once; `#` is one of them."""
    (found,) = re.finditer(pattern.replace("#", r"(-?\d+(?:\.\d+)?)"), FLAT)
    return [float(number) for number in found.groups()]


def rows(heading: str, page: str = PAGE) -> dict[str, list[str]]:
    """The table whose first row begins so: first cell -> the other ones."""
    table = page[page.index(f"| {heading} |".replace("|  |", "| |")) :].split("\n\n")[0].splitlines()[2:]
    return {first: cells for first, *cells in ([cell.strip() for cell in row.strip("| ").split("|")] for row in table)}


def of_seeds(column: int) -> Measured:
    """A column of the page's table of training seeds."""
    measured = Measured.of(
        pd.Series({int(seed): float(cells[column]) for seed, cells in rows("training seed").items()})
    )
    assert measured is not None
    return measured


# Of the page alone ----------------------------------------------------------------------------------------------------


def test_the_verdict_follows_from_the_table_of_seeds():
    """Mean, interval, p (the larger of two: Holm leaves it as it is) and the seeds that it needs."""
    var, mvar = of_seeds(0), of_seeds(1)
    paired = np.array([mine - other for (_, mine), (_, other) in zip(mvar.by_seed, var.by_seed, strict=True)])
    assert paired == pytest.approx([float(cells[2]) for cells in rows("training seed").values()], abs=1e-3)
    shown, verdict, needed = rows("M-VAR minus VAR")["FID"]
    half = float(half_width(paired))
    assert numbers(shown) == pytest.approx([paired.mean(), paired.mean() - half, paired.mean() + half], abs=2e-3)
    assert numbers(verdict)[0] == pytest.approx(float(t_test(paired)), abs=1e-3) and verdict.startswith("better")
    sure = Measured.of(pd.Series([0.0, 1e-6, 2e-6])), Measured.of(pd.Series([1.0, 1.0, 1.0]))
    found = judge({"fid": (mvar, var), "nll": sure})["fid"]  # beside one more that is surely there, as NLL is
    assert found.told == f"better (p = {numbers(verdict)[0]:g})" and found.needed == int(needed)


def test_what_may_be_said_repeats_the_numbers_of_the_table():
    (fid, low, high, p), (nll, *between) = (
        said(r"M-VAR's FID is # below VAR's \(95 % interval # to #, p = #\)"),
        said(r"held-out NLL # bits a token below \(# to #, p = #;"),
    )
    for cells, printed in zip(rows("M-VAR minus VAR").values(), ((fid, low, high, p), (nll, *between)), strict=True):
        mean, lower, upper = numbers(cells[0])
        assert printed == pytest.approx((-mean, -upper, -lower, numbers(cells[1])[0]), abs=0.0051)


def test_means_are_those_of_the_sets():
    for *sets, mean in (numbers(" ".join(cells)) for cells in rows("one training").values()):
        assert np.mean(sets) == pytest.approx(mean, abs=0.0101) and len(sets) == 3
    seeds = rows("training seed")["0"]
    one = rows("one training")
    assert [float(one[name][1]) for name in ("VAR", "M-VAR")] == pytest.approx(list(map(float, seeds[:2])), abs=0.006)


# Of three trainings, as stored ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen():
    """Evaluations of three trainings of VAR and of M-VAR, at six strengths of guidance, three sets of images each; of
    one training of the other two mixers at the demo's guidance."""
    found = pd.read_csv(SEEN).assign(settings="{}")
    assert dict(found.groupby("pattern").size()) == {"global": 54, "intra": 3, "mamba": 3, "intra+mamba": 54}
    return found


@pytest.fixture(scope="module")
def both(seen):
    """Those of VAR and of M-VAR at the demo's guidance."""
    asked = seen[seen["sample.cfg_scale"] == PRESETS["digits"].sample.cfg_scale]
    return [asked[asked["pattern"] == pattern] for pattern in ("global", "intra+mamba")]


def rounds_to(value: float, text: str) -> bool:
    """Whether a decimal is a value, rounded to as many places."""
    return abs(value - float(text)) <= 0.500001 * 10.0 ** -len(text.partition(".")[2])


class TestOfThreeTrainings:
    def test_means_of_each_seed(self, both):
        fids = [by_seed(table, "eval/fid") for table in both]
        assert set(fids[0].index) == set(map(int, rows("training seed")))
        for seed, cells in rows("training seed").items():
            var, mvar = (fid[int(seed)] for fid in fids)
            assert all(map(rounds_to, (var, mvar, mvar - var), cells))

    def test_the_readme_has_them(self, both):
        """Means and deviations over seeds; differences and verdicts as the page has them."""
        found, verdicts = rows("digits, 240 steps", README), rows("M-VAR minus VAR")
        keys = {"FID": "eval/fid", "NLL (bits/token)": "eval/nll_bits_per_token"}
        for name, key in keys.items():
            for table, told in zip(both, found[name], strict=False):
                measured = aggregate(table, key)
                assert all(map(rounds_to, (measured.mean, measured.sd), told.split(" ± ")))
            assert found[name][2:4] == verdicts[name][:2]
        copies = [100 * aggregate(table, "eval/copy_rate").mean for table in both]
        assert all(map(rounds_to, copies, found["near-copies (%)"]))

    def test_sets_of_one_training(self, seen):
        asked = seen[(seen["sample.cfg_scale"] == PRESETS["digits"].sample.cfg_scale) & (seen["seed"] == 0)]
        for name, (sets, mean) in rows("one training").items():
            found = asked[asked["pattern"] == PATTERNS[name]].sort_values("sample_seed")["eval/fid"]
            assert all(map(rounds_to, (*found, found.mean()), (*sets.split(", "), mean)))
        (drawn,) = said(r"Within one training FID has a standard deviation of #, just by")
        assert sampling_sd(asked, "eval/fid") == pytest.approx(drawn, abs=0.005)

    def test_differences_and_verdicts(self, both):
        keys = {"FID": "eval/fid", "NLL (bits/token)": "eval/nll_bits_per_token"}
        pairs = {name: (aggregate(both[1], key), aggregate(both[0], key)) for name, key in keys.items()}
        verdicts = judge(pairs, counts={"FID": COUNTS})
        for name, (shown, verdict, needed) in rows("M-VAR minus VAR").items():
            found = pairs[name][0].minus(pairs[name][1])
            assert found.text(3) == shown and verdicts[name].told == verdict and verdicts[name].needed == int(needed)

    def test_what_varies_and_copies(self, seen, both):
        table = seen[seen["sample.cfg_scale"] == PRESETS["digits"].sample.cfg_scale].assign(row=lambda t: t["pattern"])
        deviations = sampling_sd(table, "eval/fid"), training_sd(table, "eval/fid")
        told = said(r"told apart under the table: # over sets of images of one training, # over")
        assert deviations == pytest.approx(told, abs=0.005)
        shares = [100 * aggregate(one, "eval/copy_rate").mean for one in both]
        assert shares == pytest.approx(said(r"are # % for VAR and # %"), abs=0.05)

    def test_guidance(self, seen):
        """Best on sampling seed 0, numbers of the other two, as the report's own script has it."""
        script = shipped.load(shipped.find("analysis", "guidance"))
        found = {
            name: {(("cfg_scale", cfg),): one for cfg, one in seen[seen["pattern"] == p].groupby("sample.cfg_scale")}
            for name, p in (("VAR", "global"), ("M-VAR", "intra+mamba"))
        }
        request = SimpleNamespace(name="x", title="x", experiment=find_experiment("guidance"))
        table = script.comparison(found, (("cfg_scale", 1.5),), request)
        for row, (label, cells) in zip(table.rows, rows("").items(), strict=True):
            var, mvar = (row[f"{name} eval/fid"].text(2) for name in found)
            kid = " and ".join(row[f"{name} eval/kid"].text(1, 1000).split(" ±")[0] for name in found)
            verdicts = [row[f"M-VAR eval/{key} verdict"] for key in ("fid", "kid")]
            assert row["label"] == label
            assert cells == [row["VAR at"], var, row["M-VAR at"], mvar, verdicts[0], kid, verdicts[1]]


# Of the demo's runs ---------------------------------------------------------------------------------------------------


def near(found: float | None, printed: float, least: float = 0.02) -> bool:
    """Whether a number of another machine is the page's, to 5 % or `least`."""
    return found is not None and abs(found - printed) <= max(least, 0.05 * abs(printed))


@pytest.fixture(scope="module")
def records():
    return load_records(RESULTS)


@pytest.fixture(scope="module")
def asked(records):
    """The finished evaluations of Table 6, at the settings that it asks for, by layers."""
    manifest = records.sweeps("mixers")[0]
    return {rows["pattern"].iloc[0]: rows for cell in manifest.cells if len(rows := records.rows(cell))}


class TestOfTheDemo:
    pytestmark = of_the_demo

    def test_one_training(self, asked):
        for name, cells in rows("one training").items():
            sets = numbers(cells[0])
            found = asked[PATTERNS[name]].query("seed == 0").set_index("sample_seed")["eval/fid"]
            assert len(found) and all(near(fid, sets[seed]) for seed, fid in found.items() if seed < 3)

    def test_what_speaks_against_it(self, records, asked):
        var, mvar = (asked[name].query("seed == 0") for name in ("global", "intra+mamba"))
        (error,), (theirs, ours) = (
            said(r"standard error of # \(in"),
            said(r"VAR's is # and M-VAR's #"),
        )
        for table, kid in ((var, theirs), (mvar, ours)):
            assert near(1000 * aggregate(table, "eval/kid_se").mean, error)
            if table["sample_seed"].nunique() > 1:  # the page's are of three sets, and one KID is as good as its error
                assert near(1000 * aggregate(table, "eval/kid").mean, kid, least=0.5)
        (cost,) = said(r"M-VAR spends # times VAR's training FLOPs here")
        assert near(mvar["train_flops"].iloc[0] / var["train_flops"].iloc[0], cost, least=0.005)
        script = shipped.load(shipped.find("analysis", "overfitting"))
        curves = script.curves(records, records.sweeps("mixers")[0], [])
        above = said(r"M-VAR's held-out NLL is # bits above its training NLL, VAR's #")
        for name, gap in zip(("M-VAR", "VAR"), above, strict=True):
            ends = (curves[name][split].iloc[-1][0] for split in ("heldout", "train"))
            assert near(next(ends) - next(ends), gap)

    def test_floors(self, records):
        from mvar.analysis.background import floor_rows

        values = {row["key"]: row["value"] for row in floor_rows(records, [])}
        real, through = said(r"Training images against held-out ones score #, through the tokenizer #")
        assert near(values["floor/fid_real"], real) and near(values["floor/fid_reconstruction_train"], through)

    def test_three_trainings(self, records, asked):
        """Of runs at hand, where there are three seeds; what the page says is held by `TestOfThreeTrainings`."""
        var, mvar = asked["global"], asked["intra+mamba"]
        if min(table["seed"].nunique() for table in (var, mvar)) < 3:
            pytest.skip("the page's command for three seeds was not given here")
        fids = [by_seed(table, "eval/fid") for table in (var, mvar)]
        for seed, cells in rows("training seed").items():
            assert all(near(fid[int(seed)], value) for fid, value in zip(fids, map(float, cells[:2]), strict=True))
        differences = differences_table(records, records.sweeps("mixers")[0])
        (found,) = [row for row in differences.rows if row["label"] == "M-VAR"]
        for key, (shown, verdict, needed) in zip(("fid", "nll"), rows("M-VAR minus VAR").values(), strict=True):
            value = found[key]
            assert all(map(near, (value.mean, value.low, value.high), numbers(shown)))
            assert found[f"{key}_verdict"].split()[0] == verdict.split()[0] and found[f"{key}_needed"] == int(needed)
        both = pd.concat([var.assign(row=0), mvar.assign(row=1)])
        drawn, trained = said(r"told apart under the table: # over sets of images of one training, # over")
        assert near(sampling_sd(both, "eval/fid"), drawn) and near(training_sd(both, "eval/fid"), trained)
        for table, share in zip((var, mvar), said(r"are # % for VAR and # %"), strict=True):
            assert near(100 * aggregate(table, "eval/copy_rate").mean, share, least=0.5)
