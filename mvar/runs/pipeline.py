"""One run, from images to metrics: `execute(config, store)`, in any process, as often as one likes.

Tokenizer, tokens, feature extractor, training, sampling, evaluation. Each stage does what is missing and nothing
else; after a kill at any point the next call goes on from what is on disk and ends in the same bytes (times aside).
Where several processes make a run, the first one calls `execute` and the others `follow`.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvar import cost
from mvar.checkpoints.warm_start import Start, start_from
from mvar.checkpoints.weights import load_weights, save_weights
from mvar.config import RunConfig, from_dict, identity
from mvar.errors import UserError
from mvar.files import write_json
from mvar.memory import keep_freed_memory
from mvar.runs.documents import read_or_warn, write_document
from mvar.runs.environment import describe, execution_of, kernels_of
from mvar.runs.stages import drawing
from mvar.runs.stages import shared as stages
from mvar.runs.stages.shared import Context, Progress, recorded
from mvar.runs.stages.vectors import training_vectors
from mvar.runs.states import DONE, RUNNING, STOPPED, ShouldStop, Stopped
from mvar.runs.store import RunDirectory, Store
from mvar.tokenizer.model import Tokenizer
from mvar.training import distributed
from mvar.transformer import ScaleTransformer

STAGES = ("tokenizer", "tokens", "extractor", "floors", "train", "sample", "evaluate")
STATUS_INTERVAL_S = 2.0


def execute(
    config: RunConfig,
    store: Store,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
    directory: RunDirectory | None = None,
) -> str:
    """Do what is missing of a run.

    Args:
        config: the run.
        store: where everything is kept.
        progress: called with (stage, done, total).
        should_stop: asked at every step; once true, the run leaves a checkpoint and returns.
        directory: the run's; None: `store.run_of(config)`.

    Returns:
        `done` or `stopped`.

    Raises:
        UserError: something the user can mend. The run's status says `failed` and why, as for any other exception.
    """
    config = store.as_stored(config)
    directory = directory or store.run_of(config)
    if directory.is_done(config.evaluation_id):
        return DONE
    context = Context(config, store, progress or (lambda stage, done, total: None), should_stop or (lambda: False))
    try:
        with directory.lock(context.should_stop):
            if not directory.is_done(config.evaluation_id):
                _execute(context, directory)
    except Stopped:
        return STOPPED
    return DONE


def _execute(context: Context, directory: RunDirectory) -> None:
    config = context.config
    keep_freed_memory()
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    directory.write_config(config)
    if directory.evaluations() and context.store.has_tokenizer(config):
        stages.check_tokenizer(context, directory)  # before anything is written: a finished run stays finished
    with recorded(directory, "tokenizer"):
        owner = {"job": os.environ.get("MVAR_JOB"), "start": os.environ.get("MVAR_START")}  # of SLURM; None without
        directory.write_status(RUNNING, "tokenizer", steps=config.train.steps, **owner)
        _write_environment(context, directory)
        stages.build_tokenizer(context)
        directory.write_status(RUNNING, "tokens")
        stages.build_tokens(context)
        stages.check_tokenizer(context, directory)
        directory.write_status(RUNNING, "train")
        train(context, directory)
        directory.write_status(RUNNING, "sample", step=config.train.steps)
        tokenizer = stages.load_tokenizer(context)
        model = load_generator(directory, context.device)
        drawing.sample(context, directory, model, tokenizer)
        directory.write_status(RUNNING, "evaluate")
        stages.build_extractor(context)
        stages.build_floors(context)
        evaluate(context, directory, model, tokenizer)
        directory.write_status(DONE, "evaluate")


def _write_environment(context: Context, directory: RunDirectory) -> None:
    backends = kernels_of(context.config.runtime, context.device)
    write_json(directory.path / "env.json", describe(backends) | {"device": str(context.device)})


def _note_execution(context: Context, directory: RunDirectory) -> None:
    """Keep how the run's steps are made: each way once, in order. No part of what the run is."""
    ways = directory.execution()
    if (way := execution_of(context.config.runtime, context.device)) not in ways:
        write_document(directory.path / "execution.json", {"train": [*ways, way]})


# Training -----------------------------------------------------------------------------------------------------------


def train(context: Context, directory: RunDirectory) -> None:
    """Train the generator; returns at once where its weights are there already."""
    if directory.weights.is_file():
        return
    directory.check_known()
    config = context.config
    model, start = _new_generator(config)
    if start:
        write_document(directory.path / "start.json", start.to_json())
    if config.train.steps:
        team = distributed.current_team()
        if team:
            team.call({"train": config.model_dump(mode="json"), "run": str(directory.path)})
        _note_execution(context, directory)
        result = _fit(context, directory, model, _StatusWriter(context, directory))
        directory.write_status(RUNNING, "train", step=result.step, train_s=result.train_s)
        if not result.finished:
            raise Stopped(f"train: step {result.step} of {config.train.steps}")
    names = stages.images(config, "train").class_names
    save_weights(
        directory.weights, model, {"config": identity.as_document(config), "class_names": [str(n) for n in names]}
    )


def follow(store: Store, should_stop: ShouldStop) -> None:
    """Take part in the trainings and samplings that the first process calls for, until it sends this one away.

    One that was asked to stop ends early, in all processes at the same point: the first one decides what is next.
    """
    team = distributed.current_team()
    assert team
    while (message := team.hear()) != distributed.LEAVE:
        config = from_dict(RunConfig, message["train"] if "train" in message else message["sample"])
        if config.runtime.threads:
            torch.set_num_threads(config.runtime.threads)
        context = Context(config, store, lambda stage, done, total: None, should_stop)
        directory = RunDirectory(Path(message["run"]))
        if "train" in message:
            _fit(context, directory, _new_generator(config)[0], None)
        else:
            model = load_generator(directory, context.device)
            drawing.take_part(context, model, stages.load_tokenizer(context), message["done"])


def _new_generator(config: RunConfig) -> tuple[ScaleTransformer, Start | None]:
    """The generator before its first step, and what it starts from."""
    torch.manual_seed(config.seed)
    model = ScaleTransformer(config.model, config.token_space, config.runtime)
    return model, start_from(model, config.train.init_from) if config.train.init_from else None


def _fit(context: Context, directory: RunDirectory, model: ScaleTransformer, progress: "_StatusWriter | None"):
    """Train by the loop, together with the other processes where there are any; its `FitResult`."""
    from mvar.training.generator import GeneratorObjective
    from mvar.training.loop import fit

    config = context.config
    tokenizer = stages.load_tokenizer(context)
    objective = GeneratorObjective(
        model, tokenizer.quantize, stages.open_tokens(context, "train"), config.train, config.seed
    )
    with distributed.together(config.runtime):
        return fit(
            objective,
            config.train,
            directory.path,
            config.runtime,
            seed=config.seed,
            progress=progress,
            should_stop=context.should_stop,
        )


class _StatusWriter:
    """Passes training progress on, and keeps the step in the run's status for `mvar status` in other processes."""

    def __init__(self, context: Context, directory: RunDirectory) -> None:
        self._report = context.report("train")
        self._directory = directory
        self._written = 0.0

    def __call__(self, done: int, total: int) -> None:
        self._report(done, total)
        now = time.monotonic()
        if now - self._written > STATUS_INTERVAL_S:
            self._written = now
            self._directory.write_status(RUNNING, "train", step=done, steps=total)


def load_generator(directory: RunDirectory, device: torch.device) -> ScaleTransformer:
    """The trained generator of a run, on a device, in evaluation mode.

    Raises:
        UserError: weights that cannot be read; says how to get them back.
    """
    config = directory.config()
    with stages.way_out():
        state, _ = load_weights(directory.weights)
    model = ScaleTransformer.empty(config.model, config.token_space, config.runtime)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{directory.config_path}: is of another model than {directory.weights} ({reason}); allowed: the config "
            "that the run was made with, which the header of its weights has"
        ) from None
    return model.to(device).eval()


# Evaluation ---------------------------------------------------------------------------------------------------------


def evaluate(context: Context, directory: RunDirectory, model: ScaleTransformer, tokenizer: Tokenizer) -> None:
    """Measure a finished set of samples and the model's held-out likelihood; store the record in `eval.json`."""
    from mvar.evaluation.evaluate import evaluate as measure

    config = context.config
    if config.evaluation_id in directory.evaluations():
        return
    context.check()
    pixels, labels = drawing.read_samples(directory, config)
    heldout, tokens = stages.images(config, "heldout"), stages.open_tokens(context, "heldout")
    vectors = training_vectors(context, context.heed("evaluate"))
    metrics = measure(
        np.moveaxis(pixels, -1, 1),
        labels,
        model=model,
        quantizer=tokenizer.quantize,
        heldout_tokens=tokens.tokens,
        heldout_labels=tokens.labels,
        train_images=vectors or stages.images(config, "train"),
        heldout_images=heldout,
        extractor=stages.load_extractor(context),
        config=config.evaluation,
        progress=context.heed("evaluate"),
    )
    record = {
        "sample": identity.as_document(config.sample),
        "evaluation": identity.as_document(config.evaluation),
        "extractor_id": config.extractor_id,
        "reference": {"split": "heldout", "num_images": len(heldout)},
        "execution": {"train": directory.execution(), "sample": _drawn_by(directory, config)},
        "metrics": metrics,
        "cost": costs(config),
        "timing": _timing(directory, config),
    }
    directory.add_evaluation(config.evaluation_id, record)


def costs(config: RunConfig) -> dict[str, float]:
    """What the run costs by analysis: parameters; FLOPs of a forward pass, the training, one kept image; state."""
    model, space = config.model, config.token_space
    images = config.train.steps * config.train.batch_size
    an_image = cost.sample_flops(model, space, guided=config.sample.cfg_scale > 0)
    return {
        "num_params": cost.num_params(model, space),
        "forward_flops": cost.forward_flops(model, space),
        "train_flops": cost.train_flops(model, space, images),
        "sample_flops": an_image * config.sample.candidates,
        "acceptance_rate": config.sample.acceptance_rate,
        "state_bytes": cost.state_bytes(model, space),
    }


def _drawn_by(directory: RunDirectory, config: RunConfig) -> dict[str, Any]:
    return _drawing(directory, config).get("execution", {})


def _timing(directory: RunDirectory, config: RunConfig) -> dict[str, float]:
    train_s = (directory.status() or {}).get("train_s", 0.0)
    known = {name: value for name, value in _drawing(directory, config).items() if name == "sample_s"}
    return {"train_s": train_s, **known, "train_step_ms": 1000 * train_s / max(config.train.steps, 1)}


def _drawing(directory: RunDirectory, config: RunConfig) -> dict[str, Any]:
    """How the images were drawn; empty where that is no longer known."""
    return read_or_warn(directory.samples(config.evaluation_id) / "timing.json")
