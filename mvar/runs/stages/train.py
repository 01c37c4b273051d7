"""Training of a run's generator, on the tokens of its tokenizer; and the generator that comes of it."""

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mvar import layout
from mvar.checkpoints.warm_start import start_from
from mvar.checkpoints.weights import load_weights, save_tensors
from mvar.config import RuntimeConfig, identity
from mvar.data.online import FreshCrops
from mvar.data.splits import load_images
from mvar.errors import UserError
from mvar.evaluation.images import spread_indices
from mvar.evaluation.likelihood import heldout_nll
from mvar.memory import give_back_freed_memory
from mvar.progress import Progress
from mvar.runs.at_hand import drawn_at_once, settled
from mvar.runs.documents import read_or_warn, write_document
from mvar.runs.environment import execution_of, steps_of
from mvar.runs.stages.contract import RunStage, room_made_by, way_out
from mvar.runs.stages.tokenizer import TokenizerStage
from mvar.runs.stages.tokens import TokenStage
from mvar.runs.states import RUNNING, Stopped
from mvar.runs.store import RunDirectory
from mvar.tokenizer.model import Tokenizer
from mvar.training import checkpoint, distributed
from mvar.training.contract import CROP_STREAM
from mvar.training.generator import GeneratorObjective, NextScale, OnlineObjective
from mvar.training.kept import newest_first, step_of
from mvar.training.loop import FitResult, fit
from mvar.training.running_means import RunningMeans
from mvar.transformer import ScaleTransformer

STATUS_INTERVAL_S = 2.0
Observe = Callable[[], dict[str, float]]
First = Callable[[], ScaleTransformer] | None


@dataclass(frozen=True)
class TrainStage(RunStage):
    """Writes `model.safetensors`, and on the way checkpoints, `metrics.jsonl`, `execution.json`, `start.json`.

    Args:
        directory: of the run.
        config: the run.
        tokenizer, tokens: what it is trained on.
    """

    tokenizer: TokenizerStage
    tokens: TokenStage
    name = "train"

    def is_done(self) -> bool:
        """Whether its weights are there, and the running means of them."""
        return all(self.directory.weights_of(half_life).is_file() for half_life in (0, *self.config.train.ema))

    def make(self) -> None:
        """Train it; the first process calls the others, which `take_part`.

        Raises:
            Stopped: it was asked to stop, and has left a checkpoint.
            UserError: a run of a newer version.
        """
        self.directory.check_known()
        config = self.config
        runtime = settled(config) if config.train.steps else config.runtime
        model, first = self._new_generator(runtime)
        means = RunningMeans(model, config.train.ema, config.train.batch_size)
        if config.train.steps:
            team = distributed.current_team()
            if team:
                checked = None if self._is_online else self.tokens.open("train").meta["ids"]
                run = str(self.directory.path)
                shared = config.model_copy(update={"runtime": runtime})
                team.call({"train": shared.model_dump(mode="json"), "run": run, "tokens": checked})
            self._note_execution(runtime)
            progress = _StatusWriter(self.directory, self.watch.report(self.name))
            result = self._fit(model, first, runtime, progress, self._likelihoods(model), means)
            self.directory.write_status(RUNNING, self.name, step=result.step, train_s=result.train_s)
            if not result.finished:
                raise Stopped(f"train: step {result.step} of {config.train.steps}")
        about = self.about()
        for half_life in (*config.train.ema, 0):
            if not (path := self.directory.weights_of(half_life)).is_file():
                save_tensors(path, means.weights(half_life) if half_life else model.state_dict(), about)

    def about(self) -> dict[str, Any]:
        """What its weights say of themselves: the configuration and the names of the classes."""
        names = [str(name) for name in load_images(self.config.data, "train").class_names]
        return {"config": identity.as_document(self.config), "class_names": names}

    def take_part(self, checked: dict[str, Any] | None) -> None:
        """Train with the first process, which has called for it and has checked the tokens: those of these ids; None:
        it trains on fresh crops."""
        if checked is not None:
            self.tokens.take("train", checked)
        runtime = self.config.runtime  # as the first process has decided
        self._fit(*self._new_generator(runtime), runtime)

    def _new_generator(self, runtime: RuntimeConfig) -> tuple[ScaleTransformer, First]:
        """The generator before its first step; and what makes it, where several processes share its weights: it has
        no values then, and no process holds all of them for nothing."""
        config, team = self.config, distributed.current_team()

        def first() -> ScaleTransformer:
            torch.manual_seed(config.seed)
            model = ScaleTransformer(config.model, config.token_space, runtime)
            if config.train.init_from:
                start = start_from(model, config.train.init_from)
                if not team or not team.rank:
                    write_document(self.directory.path / layout.START, start.to_json())
            return model

        if config.train.steps and team and team.world > 1 and runtime.strategy == "fsdp":
            return ScaleTransformer.empty(config.model, config.token_space, runtime, released=True), first
        return first(), None

    def _note_execution(self, runtime: RuntimeConfig) -> None:
        """Keep how the run's steps are made: each way once, in order. No part of what the run is."""
        ways = self.directory.execution()
        if (way := execution_of(runtime, self.tokenizer.device) | steps_of(runtime)) not in ways:
            write_document(self.directory.path / layout.EXECUTION, {"train": [*ways, way]})

    def _likelihoods(self, model: ScaleTransformer) -> Observe:
        """What the log has of the likelihood of training and of held-out images, the same ones every time."""
        quantizer, sets, size = self.tokenizer.load().quantize, {}, drawn_at_once(self.config)
        limit = self.config.runtime.likelihood_images if self.config.runtime.likelihood_points else 0
        if limit and self._is_online:
            crops = self._fresh_crops()
            rows = spread_indices(len(crops.images), limit)
            sets["train"] = crops.first(rows.tolist()), crops.images.labels[rows]
        for split in self.tokens.splits if limit else ():
            found = self.tokens.open(split)
            rows = spread_indices(len(found.tokens), limit)
            sets[split] = np.asarray(found.tokens[rows]), np.asarray(found.labels)[rows]

        def observe() -> dict[str, float]:
            measured = {}
            for split, found in sets.items():
                # of logits that are not finite: whether training goes on, the loop decides
                with room_made_by("sample_batch", size), suppress(UserError):
                    nll = heldout_nll(model, quantizer, *found, batch_size=size)
                    measured[f"{split}/nll_bits_per_token"] = nll["eval/nll_bits_per_token"]
            return measured

        return observe

    def _fit(
        self,
        model: ScaleTransformer,
        first: First,
        runtime: RuntimeConfig,
        progress: Progress | None = None,
        observe: Observe | None = None,
        means: RunningMeans | None = None,
    ) -> FitResult:
        """Train by the loop, together with the other processes where there are any."""
        config = self.config
        objective = self._objective(model)
        objective.first = first
        room = room_made_by("micro_batch", runtime.micro_batch, "checkpoint_activations", "strategy")
        with room, distributed.together(runtime):
            result = fit(
                objective,
                config.train,
                self.directory.path,
                runtime,
                seed=config.seed,
                progress=progress,
                should_stop=self.watch.should_stop,
                observe=observe,
                means=means,
            )
        if distributed.current_team() or self.tokenizer.device.type == "cuda":
            gc.collect()  # sharded modules hold themselves
            torch.cuda.empty_cache()
        give_back_freed_memory()  # of moments and gradients: the gaps that they leave are too small for what comes
        return result

    @property
    def _is_online(self) -> bool:
        return self.config.train.tokens == "online"

    def _objective(self, model: ScaleTransformer) -> NextScale:
        train, seed = self.config.train, self.config.seed
        if self._is_online:
            return OnlineObjective(model, self._fresh_crops(), train, seed)
        return GeneratorObjective(model, self.tokenizer.load().quantize, self.tokens.open("train"), train, seed)

    def _fresh_crops(self) -> FreshCrops:
        """The training images, and seeded crops of them: other ones than those of another seed's run."""
        seed = np.random.SeedSequence((self.config.seed, CROP_STREAM)).generate_state(1, np.uint64)
        return FreshCrops(load_images(self.config.data, "train"), self.tokenizer.load(), int(seed[0]))

    # Outputs ----------------------------------------------------------------------------------------------------------

    @cached_property
    def generator(self) -> ScaleTransformer:
        """The trained generator, on the device, in evaluation mode; loaded once.

        Raises:
            UserError: as `trained_generator`.
        """
        return trained_generator(self.directory, self.tokenizer.device)

    def generator_of(self, half_life: int) -> ScaleTransformer:
        """The generator that draws with `sample.ema`: whose weights are the mean of that half-life; 0: the trained one.

        Raises:
            UserError: as `trained_generator`.
        """
        return trained_generator(self.directory, self.tokenizer.device, half_life) if half_life else self.generator

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer that the trained run draws with: the one that it is trained on. Nothing is recorded.

        Raises:
            UserError: as `TokenizerStage.load` and `check_tokenizer`.
        """
        tokenizer = self.tokenizer.load()
        self.check_tokenizer(keep=False)
        return tokenizer

    def check_tokenizer(self, keep: bool = True) -> None:
        """Hold the run to the tokenizer whose tokens it is trained on: its codes mean nothing to another one.

        Args:
            keep: whether to record the tokenizer for a run of an earlier version, which has none on record.

        Raises:
            UserError: the tokenizer was made anew, differently, since the run began. A run of an earlier version, which
                recorded nothing, is held to the one that is there now.
        """
        path, now = self.directory.path / layout.TOKENIZER_USED, self.tokenizer.weights_id()
        began = read_or_warn(path)
        if not began:
            if keep:
                write_document(path, now)
        elif began["tokenizer_sha256"] != now["tokenizer_sha256"]:
            raise UserError(
                f"run: {self.directory.path} is trained on tokens of another tokenizer "
                f"(SHA-256 {began['tokenizer_sha256'][:12]}...) "
                f"than the one that is there now ({now['tokenizer_sha256'][:12]}...); allowed: that one in its place "
                "again, or remove the run's folder and it is made again"
            )


class _StatusWriter:
    """Passes training progress on, and keeps the step in the run's status for `mvar status` in other processes."""

    def __init__(self, directory: RunDirectory, report: Progress) -> None:
        self._report = report
        self._directory = directory
        self._written = 0.0

    def __call__(self, done: int, total: int) -> None:
        self._report(done, total)
        now = time.monotonic()
        if now - self._written > STATUS_INTERVAL_S:
            self._written = now
            self._directory.write_status(RUNNING, "train", step=done, steps=total)


def generator_at(directory: RunDirectory, step: int) -> ScaleTransformer:
    """The generator of a checkpoint of a run, of one process or of several; on the CPU.

    Raises:
        UserError: there is none of this step, or it is damaged.
    """
    found = {step_of(path): path for path in newest_first(directory.path / layout.CHECKPOINTS)}
    if step not in found:
        kept = ", ".join(map(str, sorted(found))) or "none is kept"
        raise UserError(f"step: {directory.name} has no checkpoint of step {step}; allowed: {kept}")
    config = directory.config()
    model = ScaleTransformer.empty(config.model, config.token_space, config.runtime)
    model.load_state_dict(checkpoint.load(found[step])["module"])
    return model


def trained_generator(directory: RunDirectory, device: torch.device, half_life: int = 0) -> ScaleTransformer:
    """The trained generator of a run, on a device, in evaluation mode; or the one of a running mean.

    Raises:
        UserError: weights that cannot be read; says how to get them back.
    """
    config = directory.config()
    with way_out():
        state, _ = load_weights(path := directory.weights_of(half_life))
    model = ScaleTransformer.empty(config.model, config.token_space, config.runtime)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{directory.config_path}: is of another model than {path} ({reason}); allowed: the config "
            "that the run was made with, which the header of its weights has"
        ) from None
    return model.to(device).eval()
