"""The tables of probes: rows over seeds, sentences no stronger than their intervals."""

import pytest

from mvar import shipped
from mvar.analysis.records import load_records

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
