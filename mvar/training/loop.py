"""The one training loop: any objective, resumable to the bit, on one CPU or many GPUs.

Everything random in a step is seeded by (seed, step), so a step's outcome depends on the state before it and on
nothing else: a training that was killed and resumed ends with the same bits as one that was not. Weights and
optimizer state are in checkpoints; metrics.jsonl is cut back to the checkpoint and continued. Processes: see
`training.distributed`.

A step whose loss or gradient is not finite is skipped: weights and optimizer stay as they are. The device decides
that by itself; `skips.SkippedSteps` counts at logged steps and ends a training that makes no more progress.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mvar import layout
from mvar.config import OptimConfig, RuntimeConfig, identity
from mvar.errors import UserError, full_memory, warn
from mvar.progress import Progress
from mvar.training.cards import rate_of
from mvar.training.contract import BATCH_STREAM, BEFORE_STEP_STREAM, FORWARD_STREAM, DrawsForBatch, Objective, Tensors
from mvar.training.distributed import open_fabric
from mvar.training.feed import Feed
from mvar.training.kept import Kept
from mvar.training.metrics_log import MetricsLog, is_logged, is_observed
from mvar.training.numerics import prepare_process, reproducible
from mvar.training.optimizer import Schedule, build_adamw
from mvar.training.running_means import RunningMeans
from mvar.training.saving import Checkpoints, take
from mvar.training.shares import local, whole
from mvar.training.skips import SkippedSteps, TrainingDiverged
from mvar.training.strategies import NO_MEANS, Sharded, num_parts, strategy_of
from mvar.training.throughput import throughput
from mvar.training.tracking import open_trackers

# The official code's loss scaling for fp16.
FP16_INIT_SCALE, FP16_GROWTH_INTERVAL, FP16_MAX_SCALE = 2.0**11, 1000, 2.0**15


@dataclass(frozen=True)
class FitResult:
    """How a training ended."""

    step: int  # optimizer steps done
    finished: bool  # False: `should_stop` asked for it, and the next call goes on from `step`
    train_s: float  # seconds spent in steps, over all resumptions
    skipped: int = 0  # of these steps: loss or gradient were not finite, nothing was updated


def fit(
    objective: Objective,
    optim: OptimConfig,
    directory: Path | str,
    runtime: RuntimeConfig,
    *,
    seed: int,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    observe: Callable[[], dict[str, float]] | None = None,
    means: RunningMeans | None = None,
) -> FitResult:
    """Train `objective.module` in place, going on from the newest checkpoint in `directory/checkpoints`.

    Tensors of metrics go to `directory/metrics.jsonl` every `runtime.log_every` steps: the values of that step, before
    its update; names that end in `_s` or `_ms` are times, `train/mfu` and `train/peak_mib` are a GPU's, all others
    are reproducible. A finished training only loads its weights. Afterwards the module is in evaluation mode, on the
    training device.

    Args:
        objective: module, batches and loss.
        optim: steps, batch, learning rate, precision.
        directory: of this training alone.
        runtime: device, threads, logging and checkpoint cadence.
        seed: of everything random during training.
        progress: called with steps done and in all, after every step.
        should_stop: asked before every step (several processes: every `log_every` steps); when true in any process,
            a checkpoint is saved and the training returns unfinished.
        observe: measures the module as it stands after a step, without changing it; what it returns is added to the
            rows of `runtime.likelihood_points` steps.
        means: of the weights, which take in every step.

    Raises:
        TrainingDiverged: 20 steps in a row, or all of them, were skipped, or a weight is not finite; the last good
            checkpoint is kept.
        UserError: a checkpoint of another configuration, a batch that does not divide, a disk that is full.
    """
    prepare_process(runtime)
    training = _Training(objective, optim, Path(directory), runtime, seed)
    training.observe = observe or dict
    training.means = means or training.means
    if means and means.half_lives and isinstance(training.sharing, Sharded):
        raise UserError(NO_MEANS)
    start = training.restore()
    try:
        with reproducible(runtime, training.device):
            finished, step = training.run(start, progress, should_stop)
        training.checkpoints.close()
        training.sharing.close()
    finally:
        training.close()
    objective.module.eval()
    return FitResult(step, finished, training.train_s, training.skips.total)


class _Training:
    def __init__(self, objective: Objective, optim: OptimConfig, directory: Path, runtime: RuntimeConfig, seed: int):
        self.objective, self.optim, self.runtime, self.seed = objective, optim, runtime, seed
        self.directory = directory
        self.fabric = open_fabric(runtime)
        self.checkpoints = Checkpoints(directory / layout.CHECKPOINTS, self.fabric)
        self.device = self.fabric.device
        self.accumulate = num_parts(runtime, optim, self.fabric.world_size)
        self.sharing = strategy_of(runtime, objective, self.fabric)
        self.module = objective.module
        self.drawing = [m for m in self.module.modules() if isinstance(m, DrawsForBatch)]
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = build_adamw(self.module, optim)
        self.schedule = Schedule(optim)
        self.half = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[optim.precision]
        self.scaler = torch.amp.GradScaler(
            self.device.type,
            init_scale=FP16_INIT_SCALE,
            growth_interval=FP16_GROWTH_INTERVAL,
            enabled=optim.precision == "fp16",
        )
        self.recipe = identity.of_section(optim) | {"seed": seed}
        self.train_s = 0.0
        self.saved_step = 0
        self.log: MetricsLog | None = None
        self.observe: Callable[[], dict[str, float]] = dict
        self.means = RunningMeans(self.module, (), optim.batch_size)
        self.cadence = [[0, runtime.log_every]]  # see `metrics_log.logged_steps`
        self.skips = SkippedSteps(optim.steps)
        # elsewhere looking at a step's loss means waiting for it
        self.looks_each_step = self.device.type == "cpu" and self.fabric.world_size == 1
        self.unchecked: list[tuple[int, Tensor, Tensor]] = []  # steps whose loss and norm no one has looked at yet

    # Resuming ------------------------------------------------------------------------------------------------------

    def restore(self) -> int:
        """Load the newest checkpoint, or begin where there is none; returns the steps done."""
        found = self.checkpoints.newest()
        if not found:
            self.sharing.begin()
            return 0
        step, where = found.step, found.path
        try:
            self._take(found)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            if full_memory(error):
                raise
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"{where}: is a checkpoint of another model, or damaged ({reason}); allowed: this training's own; "
                "without the file it goes on from the one before, or anew"
            ) from None
        if self.cadence[-1][1] != self.runtime.log_every:
            self.cadence = [*self.cadence, [step, self.runtime.log_every]]
        self.saved_step = step
        return step

    def _take(self, found: Kept) -> None:
        state = found.rest
        self._check_recipe(found.path, state["recipe"])
        take(found, self.module, self.optimizer)
        self.scaler.load_state_dict(state["scaler"])
        self.objective.load_state_dict(state["objective"])
        self.skips.load_state_dict(state.get("skips", {}))
        self.cadence = state.get("cadence", self.cadence)  # checkpoints of before say nothing: as it is now
        self.train_s = state["train_s"]
        self.means.load_state_dict(state)

    def _check_recipe(self, where: Path, stored: dict[str, Any]) -> None:
        """Refuse a checkpoint of another recipe. How a batch is split is none, and fields later than it do not count
        where they change nothing."""
        was = identity.hashed(type(self.optim), {name: v for name, v in stored.items() if name != "seed"})
        was["seed"] = stored.get("seed")
        for field in sorted((self.recipe.keys() | was.keys()) - {"accumulate"}):
            if was.get(field) != self.recipe.get(field):
                raise UserError(
                    f"{where}: belongs to {field}={was.get(field)}, this training has {self.recipe.get(field)}; "
                    "allowed: the same"
                )

    def save(self, step: int) -> None:
        """Write a checkpoint of the state after `step` steps; a finished training keeps only its last."""
        if step == self.saved_step:
            return
        self._look()
        if self._any(not all(bool(local(p).isfinite().all()) for p in self.parameters)):
            raise TrainingDiverged(self.skips.message(step - 1, "a weight is not finite"))
        if self.log:
            self.log.sync()
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "objective": self.objective.state_dict(),
            "skips": self.skips.state_dict(),
            "cadence": self.cadence,
            "train_s": self.train_s,
            "recipe": self.recipe,
            **self.means.state_dict(),
        }
        keep = 1 if step == self.optim.steps else self.runtime.keep_checkpoints
        self.checkpoints.save(step, state, keep)
        self.saved_step = step

    def close(self) -> None:
        if self.log:
            self.log.close()

    # Steps ---------------------------------------------------------------------------------------------------------

    def run(self, start: int, progress: Progress | None, should_stop: Callable[[], bool] | None) -> tuple[bool, int]:
        """Do the steps from `start` on; returns whether all are done, and how many."""
        steps, every = self.optim.steps, self.runtime.log_every
        if start == steps:
            return True, start
        if self.fabric.is_global_zero:
            trackers = open_trackers(self.runtime, self.directory, start)
            self.log = MetricsLog(self.directory, start, self.cadence, trackers)
        model = self.sharing.wrapped()
        model.train()
        logged, logged_s = start, self.train_s
        with Feed(self.objective, self._part, range(start, steps), self.runtime.num_workers, self.device) as feed:
            for step in range(start, steps):
                if should_stop and (self.looks_each_step or step % every == 0) and self._any(should_stop()):
                    self.save(step)
                    return False, step
                done = step + 1
                self.objective.wants_metrics = has_row = is_logged(done, steps, every)
                is_saved = done % self.runtime.checkpoint_every == 0 or done == steps
                clock = time.perf_counter()
                outcome = self._step(model, step, feed)
                self.means.update(done)
                if self.looks_each_step or has_row or is_saved:
                    self._look()  # on the clock: the device's work since the last look ends here
                self.train_s += time.perf_counter() - clock
                if has_row:
                    self._write_row(done, outcome, logged, logged_s)
                    logged, logged_s = done, self.train_s
                if is_saved:
                    self._save_progress(done)
                if progress:
                    progress(done, steps)
        if self.skips.total and self.fabric.is_global_zero:
            warn(f"{self.directory}: {self.skips}")
        return True, steps

    def _save_progress(self, done: int) -> None:
        # inside a row of skipped steps nothing is new: it would push out the checkpoint from before it
        if not self.skips.in_a_row or done == self.optim.steps:
            self.save(done)

    def _part(self, step: int) -> list[tuple[int, Tensors]]:
        """This process's micro-batches of a step: the number of their first row, and their rows."""
        rows = self.objective.batch(step, np.random.default_rng((self.seed, step, BATCH_STREAM)))
        parts = self.fabric.world_size * self.accumulate
        size, rest = divmod(len(rows[0]), parts)
        if rest or not size:
            raise ValueError(f"the objective's batch has {len(rows[0])} rows, which do not divide into {parts} parts")
        first = self.fabric.global_rank * self.accumulate * size
        starts = [first + i * size for i in range(self.accumulate)]
        return [(a, tuple(tensor[a : a + size] for tensor in rows)) for a in starts]

    def _step(self, model: nn.Module, step: int, feed: Feed) -> "_Outcome":
        rng = np.random.default_rng((self.seed, step, BEFORE_STEP_STREAM))
        self.objective.before_step(step, rng, self.optimizer)
        lr, decay = self.schedule.apply(self.optimizer, step)
        accumulate = self.accumulate
        losses, metrics = [], []
        for micro in range(accumulate):
            with record_function("mvar::data"):
                first_row, rows = feed.next()
            self._seed_torch(step, first_row)
            with (
                self.sharing.alone(model, is_last=micro == accumulate - 1),
                torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None),
                record_function("mvar::loss"),
            ):
                loss, found = model(rows, step)
            self.sharing.backward(self.scaler.scale(loss / accumulate if accumulate > 1 else loss))
            losses.append(loss.detach())
            metrics.append(found)
        loss = losses[0] if accumulate == 1 else torch.stack(losses).mean()
        with record_function("mvar::optimizer"):
            norm = self._update(loss)
        self.unchecked.append((step, loss, norm))
        return _Outcome(loss, norm, metrics, lr, decay)

    def _update(self, loss: Tensor) -> Tensor:
        """The optimizer's part of a step; returns the gradient's norm."""
        self._spoil_gradient(loss)
        self.scaler.unscale_(self.optimizer)
        norm = whole(nn.utils.clip_grad_norm_(self.parameters, self.optim.clip_norm))
        # torch's own way to skip a step without waiting for the device: a fused optimizer changes nothing where this
        # is 1, be there a scaler or not
        self.optimizer.found_inf = 1 - norm.isfinite().float()  # pyright: ignore[reportAttributeAccessIssue]  undeclared
        self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
            scale = self.scaler._get_scale_async()  # get_scale() would wait for the device
            assert scale is not None
            scale.clamp_(max=FP16_MAX_SCALE)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _seed_torch(self, step: int, first_row: int) -> None:
        """Seed what the forward pass draws: differs from step to step. Modules that draw for the whole batch and take
        their part get one seed; for others the parts of a batch must differ."""
        for module in self.drawing:
            module.batch_part = (first_row, self.optim.batch_size)
        key = np.random.SeedSequence((self.seed, step, FORWARD_STREAM, 0 if self.drawing else first_row))
        value = int(key.generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(value)  # torch.manual_seed visits every back end and takes milliseconds
        if self.device.type == "cuda":
            torch.cuda.manual_seed(value)

    def _spoil_gradient(self, loss: Tensor) -> None:
        """Where the loss is not finite in any process, make the gradient so in all: one test is enough for both."""
        is_bad = ~loss.isfinite()
        if self.fabric.world_size > 1:
            found = is_bad.float()
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)  # Fabric's would wait for the device
            is_bad = found > 0
        local(next(p.grad for p in self.parameters if p.grad is not None)).masked_fill_(is_bad, torch.nan)

    def _look(self) -> None:
        """Wait for the losses and norms since the last look, and count the skipped steps."""
        if not self.unchecked:
            return
        values = torch.stack([torch.stack((loss.double(), norm.double())) for _, loss, norm in self.unchecked])
        values = self._reduced(values, "mean").tolist()
        steps = [step for step, _, _ in self.unchecked]
        self.unchecked.clear()
        for step, (loss, norm) in zip(steps, values, strict=True):
            self.skips.count(step, loss, norm)

    def _write_row(self, done: int, outcome: "_Outcome", logged: int, logged_s: float) -> None:
        names = list(outcome.metrics[0])
        columns = [torch.stack([m[name].detach().double() for m in outcome.metrics]).mean() for name in names]
        values = torch.stack([outcome.loss.double(), outcome.norm.double(), *columns])
        values = self._reduced(values, "mean").tolist()
        row: dict[str, Any] = {"step": done, "train/loss": values[0], **dict(zip(names, values[2:], strict=True))}
        row |= {"train/grad_norm": values[1], "train/lr": outcome.lr, "train/weight_decay": outcome.decay}
        if self.skips.total:
            row["train/skipped_steps"] = self.skips.total
        if is_observed(done, self.optim.steps, self.runtime.log_every, self.runtime.likelihood_points):
            with self.sharing.gathered():
                row |= self.observe() if self.log else {}
        step_s = (self.train_s - logged_s) / (done - logged)
        row |= {"train/step_ms": step_s * 1e3, "train/elapsed_s": self.train_s}
        rate, encoding = (rate_of(self.device, p, self.runtime.tf32) for p in (self.optim.precision, "fp32"))
        row |= throughput(self.objective, step_s, self.device, rate, self.fabric.world_size, encoding)
        if self.log:
            self.log.write(row)

    def _any(self, flag: bool) -> bool:
        if self.fabric.world_size == 1:
            return flag
        return bool(self._reduced(torch.tensor(float(flag), device=self.device), "sum") > 0)

    def _reduced(self, values: Tensor, how: str) -> Tensor:
        """Mean or sum over all processes."""
        found = self.fabric.all_reduce(values, reduce_op=how)
        assert isinstance(found, Tensor)
        return found


@dataclass(frozen=True)
class _Outcome:
    """What a step leaves for the log: tensors, so that only logged steps wait for the device."""

    loss: Tensor
    norm: Tensor
    metrics: list[dict[str, Tensor]]  # one a micro-batch
    lr: float
    decay: float
