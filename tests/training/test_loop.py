"""The loop: resuming to the bit, accumulation, precision, divergence, stopping, metrics."""

import errno
import json
import os
import tempfile
from contextlib import nullcontext, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toy_objective import RUNTIME, Toy, assert_identical, rows_of, split, toy_optim, weights_of

from mvar.config import RuntimeConfig
from mvar.errors import UserError
from mvar.memory import release
from mvar.training.checkpoint import load_latest, path_of
from mvar.training.loop import TrainingDiverged, fit
from mvar.training.metrics_log import is_logged, is_observed, logged_steps, missing_rows
from mvar.training.strategies import num_parts

VARIANTS = {
    "plain": (toy_optim(), RUNTIME),
    "accumulated": (toy_optim(), split(4)),
    "bf16": (toy_optim(precision="bf16"), RUNTIME),
    "fp16-accumulated": (toy_optim(precision="fp16"), split(2)),
}


@cache
def uninterrupted(variant: str) -> Path:
    directory, (optim, runtime) = Path(tempfile.mkdtemp()), VARIANTS[variant]
    assert fit(Toy(), optim, directory, runtime, seed=3).finished
    return directory


def test_a_module_without_values_gets_them_where_no_checkpoint_has_later_ones(tmp_path):
    """One that is made then, and once: going on needs none."""
    made = []

    def hollow(die_at=None):
        toy = Toy(die_at=die_at)
        for parameter in toy.module.parameters():
            release(parameter)
        toy.first = lambda: made.append(die_at) or Toy().module
        return toy

    with pytest.raises(KeyboardInterrupt):
        fit(hollow(die_at=7), toy_optim(), tmp_path, RUNTIME, seed=3)
    assert fit(hollow(), toy_optim(), tmp_path, RUNTIME, seed=3).finished
    assert_identical(uninterrupted("plain"), tmp_path)
    assert made == [7]


@pytest.mark.parametrize("variant", VARIANTS)
def test_repeating_gives_the_same_bits(variant, tmp_path):
    optim, runtime = VARIANTS[variant]
    fit(Toy(), optim, tmp_path, runtime, seed=3)
    assert_identical(uninterrupted(variant), tmp_path)
    other = tmp_path / "other"
    fit(Toy(), optim, other, runtime, seed=4)
    assert (weights_of(other) != weights_of(tmp_path)).any()


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=6)
@given(deaths=st.lists(st.integers(0, 11), min_size=1, max_size=3), workers=st.sampled_from([0, 2]))
def test_resuming_gives_the_same_bits(variant, deaths, workers):
    optim, runtime = VARIANTS[variant]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        runtime = runtime.model_copy(update={"num_workers": workers})
        for step in deaths:
            torch.manual_seed(step)  # whatever the process did before must not matter
            with suppress(KeyboardInterrupt):
                fit(Toy(die_at=step), optim, directory, runtime, seed=3)
        assert fit(Toy(), optim, directory, runtime, seed=3).finished
        assert_identical(uninterrupted(variant), directory)


def test_cadence_of_logs_and_checkpoints_changes_no_weights(tmp_path):
    runtime = RuntimeConfig(device="cpu", log_every=5, checkpoint_every=100, num_workers=3)
    fit(Toy(), toy_optim(), tmp_path, runtime, seed=3)
    assert (weights_of(tmp_path) == weights_of(uninterrupted("plain"))).all()


@given(steps=st.integers(1, 400), every=st.integers(1, 90), points=st.integers(0, 12))
def test_what_is_observed_are_logged_steps_spread_over_the_training(steps, every, points):
    observed = [done for done in range(1, steps + 1) if is_observed(done, steps, every, points)]
    assert all(is_logged(done, steps, every) for done in observed) and len(observed) <= points
    assert observed[-1:] == ([steps] if points else [])
    if every == 1:
        assert len(observed) == min(points, steps)


def test_observing_adds_to_rows_and_changes_no_bits(tmp_path):
    """Also where it draws random numbers, and over a kill."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def observer(toy):
        def observe():
            torch.rand(3)
            return {"heldout/norm": float(toy.module[0].weight.detach().norm())}

        return observe

    toy = Toy()
    fit(toy, toy_optim(), whole, RUNTIME, seed=3, observe=observer(toy))
    toy = Toy(die_at=7)
    with pytest.raises(KeyboardInterrupt):
        fit(toy, toy_optim(), killed, RUNTIME, seed=3, observe=observer(toy))
    toy = Toy()
    fit(toy, toy_optim(), killed, RUNTIME, seed=3, observe=observer(toy))
    assert_identical(whole, killed)
    assert (weights_of(whole) == weights_of(uninterrupted("plain"))).all()
    rows = {row["step"]: row.get("heldout/norm") for row in rows_of(whole)}
    assert len([value for value in rows.values() if value is not None]) == RUNTIME.likelihood_points
    assert rows[toy_optim().steps] == float(toy.module[0].weight.detach().norm())


def test_stopping_and_going_on(tmp_path):
    calls = []
    stopped = fit(Toy(), toy_optim(), tmp_path, RUNTIME, seed=3, should_stop=lambda: calls.append(0) or len(calls) > 5)
    assert (stopped.step, stopped.finished) == (5, False)
    assert load_latest(tmp_path / "checkpoints")[0] == 5
    seen = []
    toy = Toy()
    result = fit(toy, toy_optim(), tmp_path, RUNTIME, seed=3, progress=lambda *a: seen.append(a))
    assert result.finished
    assert result.train_s > stopped.train_s > 0
    assert seen == [(step, 12) for step in range(6, 13)]
    assert not toy.module.training
    assert_identical(uninterrupted("plain"), tmp_path)


def test_a_finished_training_only_loads_its_weights(tmp_path):
    first = fit(Toy(), toy_optim(), tmp_path, RUNTIME, seed=3)
    content = (tmp_path / "metrics.jsonl").read_bytes()
    toy = Toy(die_at=0)
    with torch.no_grad():
        toy.module[0].weight.zero_()
    again = fit(toy, toy_optim(), tmp_path, RUNTIME, seed=3, should_stop=lambda: True)
    assert again == first
    assert (tmp_path / "metrics.jsonl").read_bytes() == content
    weights = np.concatenate([p.detach().double().flatten().numpy() for p in toy.module.state_dict().values()])
    assert (weights == weights_of(tmp_path)).all()
    assert [p.name for p in (tmp_path / "checkpoints").glob("*step_*")] == ["step_00000012.pt"]


def test_a_damaged_checkpoint_costs_steps_but_no_bits(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        fit(Toy(die_at=10), toy_optim(), tmp_path, RUNTIME, seed=3)
    newest = path_of(tmp_path / "checkpoints", 9)
    newest.write_bytes(newest.read_bytes()[:500])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "train/lo')  # a row that the kill cut
    assert fit(Toy(), toy_optim(), tmp_path, RUNTIME, seed=3).finished
    assert f"{newest}: not a readable checkpoint" in capsys.readouterr().err
    assert_identical(uninterrupted("plain"), tmp_path)


@pytest.mark.parametrize("full_from", [1, 2, 3])  # cutting the metrics back, flushing them, writing the checkpoint
def test_a_full_disk_stops_the_training_which_goes_on_later(full_from, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        fit(Toy(die_at=4), toy_optim(), tmp_path, RUNTIME, seed=3)

    calls = []

    def full(_):
        calls.append(0)
        if len(calls) == full_from:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*(metrics\.jsonl|step_00000006\.pt)'"):
        fit(Toy(), toy_optim(), tmp_path, RUNTIME, seed=3)
    monkeypatch.undo()
    assert load_latest(tmp_path / "checkpoints")[0] == 3
    fit(Toy(), toy_optim(), tmp_path, RUNTIME, seed=3)
    assert_identical(uninterrupted("plain"), tmp_path)


def test_another_configuration_is_refused(tmp_path):
    fit(Toy(), toy_optim(), tmp_path, RUNTIME, seed=3)
    with pytest.raises(UserError, match=r"belongs to steps=12, this training has 10"):
        fit(Toy(), toy_optim(steps=10), tmp_path, RUNTIME, seed=3)
    with pytest.raises(UserError, match="seed=3"):
        fit(Toy(), toy_optim(), tmp_path, RUNTIME, seed=4)
    toy = Toy()
    toy.module = nn.Linear(4, 4)
    with pytest.raises(UserError, match=r"step_00000012\.pt: is a checkpoint of another model") as error:
        fit(toy, toy_optim(), tmp_path, RUNTIME, seed=3)
    assert "\n" not in str(error.value)


class Bad(Toy):
    """Loss or gradient is not finite in the steps `at`; remembers weights and optimizer as each step found them."""

    def __init__(self, at, how="loss nan", **fields):
        super().__init__(**fields)
        self.at, self.how, self.found = at, how, []

    def before_step(self, step, rng, optimizer):
        state = [optimizer.state[p] for p in self.module.parameters()]
        tensors = [*self.module.state_dict().values(), *(t for s in state for t in s.values())]
        self.found.append([tensor.clone() for tensor in tensors])

    def loss(self, batch, step):
        error, metrics = super().loss(batch, step)
        if step in self.at:
            if self.how == "gradient":
                error = error + (self.module[3].bias * 0).sqrt().sum()  # value 0, gradient infinite times 0
            elif self.how == "loss alone":
                error = error + float("nan")  # the gradient knows nothing of it
            else:
                error = error * float(self.how.split()[1])
        return error, metrics


HOWS = ["loss nan", "loss inf", "gradient", "loss alone"]
PRECISIONS = ["fp32", "bf16", "fp16"]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(precision, how, tmp_path, capsys):
    toy = Bad({5, 6}, how)
    result = fit(toy, toy_optim(precision=precision), tmp_path, RUNTIME, seed=3)
    assert (result.finished, result.skipped) == (True, 2)
    same = [all(map(torch.equal, a, b)) for a, b in pairwise(toy.found)]
    assert [step for step, unchanged in enumerate(same) if unchanged] == [5, 6]
    state = load_latest(tmp_path / "checkpoints")[1]
    assert state["optimizer"]["state"][0]["step"] == 10  # as many as were taken: the bias correction follows them
    assert state["skips"] == {"total": 2, "in_a_row": 0}
    if precision == "fp16":
        assert state["scaler"]["scale"] == 2.0**9  # 2^11, halved twice
    assert np.isfinite(weights_of(tmp_path)).all()
    assert [row.get("train/skipped_steps") for row in rows_of(tmp_path)] == [None, None, None, 1, 2, 2, 2]
    assert f"{tmp_path}: 2 of 12 steps were skipped" in capsys.readouterr().err


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_twenty_skipped_steps_in_a_row_end_the_training(precision, how, tmp_path):
    toy = Bad(range(7, 40), how)
    optim = toy_optim(steps=40, precision=precision)
    with pytest.raises(
        TrainingDiverged, match=r"step 27 of 40: the last 20 steps were skipped; loss .*, gradient norm"
    ):
        fit(toy, optim, tmp_path, RUNTIME, seed=3)
    assert load_latest(tmp_path / "checkpoints")[0] == 6  # the last from before the row
    assert rows_of(tmp_path)[-1]["step"] == 26
    with pytest.raises(TrainingDiverged, match="step 27 of 40"):  # and resumed it ends there too
        fit(Bad(range(7, 40), how), optim, tmp_path, RUNTIME, seed=3)


def test_nineteen_skipped_steps_in_a_row_do_not(tmp_path):
    at = {*range(3, 22), *range(23, 42)}
    result = fit(Bad(at), toy_optim(steps=45), tmp_path, RUNTIME, seed=3)
    assert (result.finished, result.skipped) == (True, 38)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("steps", [1, 12, 19])
def test_a_training_without_any_step_never_finishes(precision, steps, tmp_path):
    with pytest.raises(TrainingDiverged, match=f"every step of {steps} was skipped"):
        fit(Bad(range(steps), "gradient"), toy_optim(steps=steps, precision=precision), tmp_path, RUNTIME, seed=3)
    assert load_latest(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stop_at", [9, 14])
def test_a_training_stopped_among_skipped_steps_resumes_to_the_bit(precision, stop_at, tmp_path):
    """The row of skipped steps is counted on across the stop: 19 are too few, 20 are not."""
    for length, ends in ((19, True), (20, False)):
        at, optim = range(7, 7 + length), toy_optim(steps=32, precision=precision)
        whole, parts = tmp_path / f"whole{length}", tmp_path / f"parts{length}"
        calls = []
        stop = lambda calls=calls: calls.append(0) or len(calls) > stop_at  # noqa: E731
        assert fit(Bad(at), optim, parts, RUNTIME, seed=3, should_stop=stop).step == stop_at
        assert load_latest(parts / "checkpoints")[1]["skips"] == {"total": stop_at - 7, "in_a_row": stop_at - 7}
        for directory in (whole, parts):
            with nullcontext() if ends else pytest.raises(TrainingDiverged, match="step 27 of 32"):
                assert fit(Bad(at), optim, directory, RUNTIME, seed=3).skipped == 19
        if ends:
            assert_identical(whole, parts)
        assert rows_of(whole) == rows_of(parts)


def test_checkpoints_from_before_steps_were_counted_load(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(Toy(die_at=10), toy_optim(), tmp_path, RUNTIME, seed=3)
    path = path_of(tmp_path / "checkpoints", 9)
    content = torch.load(path, weights_only=True)
    del content["state"]["skips"]
    torch.save(content, path)
    assert fit(Toy(), toy_optim(), tmp_path, RUNTIME, seed=3).finished
    assert_identical(uninterrupted("plain"), tmp_path)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class Broken(Toy):
        def before_step(self, step, rng, optimizer):
            if step == 11:  # the last: no loss would tell
                with torch.no_grad():
                    self.module[3].bias[2] = float("inf")

        def loss(self, batch, step):
            return self.module[0](batch[1]).square().mean(), {}

    with pytest.raises(TrainingDiverged, match="step 12 of 12: a weight is not finite"):
        fit(Broken(), toy_optim(), tmp_path, RUNTIME, seed=3)
    assert load_latest(tmp_path / "checkpoints")[0] == 9


def test_fp16_skips_steps_that_overflow(tmp_path):
    class Overflowing(Toy):
        def loss(self, batch, step):
            error, metrics = super().loss(batch, step)
            return (error * 3e35 if step == 5 else error), metrics  # times the scale, more than fp32 holds

    assert fit(Overflowing(), toy_optim(precision="fp16"), tmp_path, RUNTIME, seed=3).finished
    scaler = load_latest(tmp_path / "checkpoints")[1]["scaler"]
    assert scaler["scale"] == 2.0**10  # 2^11, halved once
    assert rows_of(tmp_path)[3]["train/grad_norm"] is None  # step 6: JSON has no infinity


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulation_equals_the_big_batch(parts, tmp_path):
    for name, accumulate in (("whole", 1), ("parts", parts)):
        fit(Toy(dropout=0), toy_optim(), tmp_path / name, split(accumulate), seed=3)
    np.testing.assert_allclose(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"), atol=2e-6)
    for a, b in zip(rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_micro_batches_by_their_images_are_the_same_as_by_their_number(tmp_path):
    runtime = RUNTIME.model_copy(update={"micro_batch": 2})
    fit(Toy(), toy_optim(), tmp_path, runtime, seed=3)
    assert_identical(uninterrupted("accumulated"), tmp_path)


def test_a_micro_batch_that_does_not_divide_the_part_of_a_process_is_refused():
    runtime, optim = RUNTIME.model_copy(update={"micro_batch": 8}), toy_optim(batch_size=24)
    assert num_parts(runtime, optim, 3) == 1
    with pytest.raises(UserError, match=r"micro_batch: 8 images in 2 processes do not divide batch_size 24; .* of 12"):
        num_parts(runtime, optim, 2)
    with pytest.raises(UserError, match="allowed: a batch_size that 5 processes divide"):
        num_parts(runtime, optim, 5)


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(ValueError, match="7 rows"):
        fit(Toy(batch_size=7), toy_optim(), tmp_path, split(2), seed=0)


def test_metrics_rows(tmp_path):
    fit(Toy(dropout=0), toy_optim(weight_decay_end=0.2), tmp_path, RUNTIME, seed=3)
    rows = rows_of(tmp_path, times=True)
    assert [row["step"] for row in rows] == [1, 2, 4, 6, 8, 10, 12]
    for row in rows:
        assert row["train/half"] == pytest.approx(row["train/loss"] / 2)
        assert row["train/step_ms"] > 0
        assert row["train/grad_norm"] > 0
    assert rows[0]["train/lr"] == pytest.approx(0.005 * 0.5 * 8 / 256)
    assert (rows[0]["train/weight_decay"], rows[-1]["train/weight_decay"]) == pytest.approx((0.05, 0.2))
    assert rows[-1]["train/elapsed_s"] == load_latest(tmp_path / "checkpoints")[1]["train_s"]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


def test_clipping_bounds_the_update(tmp_path):
    def first_update(clip):
        toy = Toy(dropout=0)
        before = toy.module[3].weight.detach().clone()
        optim = toy_optim(steps=1, clip_norm=clip, weight_decay=0, warmup_fraction=0)
        fit(toy, optim, tmp_path / str(clip), RUNTIME, seed=3)
        return (toy.module[3].weight.detach() - before).abs().max().item()

    # Adam's first update is lr * g / (|g| + 1e-8): a gradient clipped far below 1e-8 hardly moves anything
    assert first_update(1e-12) < 1e-3 * first_update(1.0)


def test_rows_are_json_of_one_line(tmp_path):
    fit(Toy(), toy_optim(), tmp_path, RUNTIME, seed=3)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert all(isinstance(value, int | float) for value in json.loads(line).values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_a_gpu_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"runtime\.device: 'cuda'"):
        fit(Toy(), toy_optim(), tmp_path, RuntimeConfig(device="cuda"), seed=0)


DAMAGES = {
    "removed": (lambda lines: None, [1, 2, 4, 6, 8]),
    "emptied": (lambda lines: [], [1, 2, 4, 6, 8]),
    "cut": (lambda lines: lines[:2], [4, 6, 8]),
    "one gone": (lambda lines: lines[:2] + lines[3:], [4]),
    "not JSON": (lambda lines: [*lines[:2], b"\xff\x00" + lines[2][2:], *lines[3:]], [4]),
    "two in one": (lambda lines: [*lines[:2], lines[2].rstrip() + lines[3], *lines[4:]], [4, 6]),
    "another shape": (lambda lines: [b"[1]\n", b'{"step": "2"}\n', b"[" * 99_999 + b"\n", *lines[3:]], [1, 2, 4]),
    "whole": (lambda lines: lines, []),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_rows_that_are_missing_when_a_training_goes_on_are_said_and_recorded(damage, tmp_path, capsys):
    change, missing = DAMAGES[damage]
    with pytest.raises(KeyboardInterrupt):
        fit(Toy(die_at=10), toy_optim(), tmp_path, RUNTIME, seed=3)
    path = tmp_path / "metrics.jsonl"
    lines = change(path.read_bytes().splitlines(keepends=True))
    path.unlink() if lines is None else path.write_bytes(b"".join(lines))
    capsys.readouterr()
    assert fit(Toy(), toy_optim(), tmp_path, RUNTIME, seed=3).finished
    steps = [row["step"] for row in rows_of(tmp_path)]
    assert steps == [step for step in (1, 2, 4, 6, 8, 10, 12) if step not in missing]
    err, says = capsys.readouterr().err, missing_rows(tmp_path)
    if not missing:
        assert (err, says) == ("", "")
        return
    count = f"metrics.jsonl: {len(missing)} of 5 rows up to step 9 were missing"
    assert count in says and f"(steps {missing[0]} to {missing[-1]})" in says
    assert count in err and err.count("\n") == 1 and str(tmp_path) in err


def test_another_cadence_of_logs_is_no_missing_row(tmp_path, capsys):
    for every, die_at in ((2, 5), (5, 8), (3, None)):
        runtime = RUNTIME.model_copy(update={"log_every": every, "checkpoint_every": 1})
        with nullcontext() if die_at is None else pytest.raises(KeyboardInterrupt):
            fit(Toy(die_at=die_at), toy_optim(), tmp_path, runtime, seed=3)
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 4, 9, 12]
    assert capsys.readouterr().err == "" and missing_rows(tmp_path) == ""


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9)), min_size=1, max_size=4), st.integers(0, 3))
def test_the_steps_that_have_a_row(segments, back):
    """What a log of every step would say, over any resumptions, also those that begin before a change of cadence."""
    cadence, done, expected = [], 0, set()
    for every, length in segments:
        cadence.append([done, every])
        expected |= {step for step in range(done + 1, done + length + 1) if step == 1 or step % every == 0}
        done += length
    until = max(done - back, cadence[-1][0])
    assert logged_steps(cadence, until) == {step for step in expected if step <= until}
