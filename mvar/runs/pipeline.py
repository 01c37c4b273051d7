"""One run, from images to metrics: `execute(config, store)`, in any process, as often as one likes.

Tokenizer, tokens, training, sampling, feature extractor, floors, evaluation. Each stage does what is missing and
nothing else; after a kill at any point the next call goes on from what is on disk, and its files are those of a run
without a kill, but for times. Where several processes make a run, the first one calls `execute`, the others `follow`.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from mvar import layout, plugin_records
from mvar.config import RunConfig, from_dict
from mvar.errors import note_once
from mvar.files import write_json
from mvar.memory import keep_freed_memory
from mvar.runs.environment import describe, kernels_of, scan_in_words
from mvar.runs.measured import chosen_for, to_measure
from mvar.runs.stages.contract import Tell, Watch, never, nobody, recorded
from mvar.runs.stages.evaluate import MetricsFailed, told_reasons
from mvar.runs.states import DONE, RUNNING, STOPPED, ShouldStop, Stopped
from mvar.runs.store import RunDirectory, Store
from mvar.runs.wiring import Stages
from mvar.training import distributed
from mvar.training.numerics import prepare_process

FAILED = "failed_metrics"  # in a status: why metrics of a user's own are not there, by name


def execute(
    config: RunConfig,
    store: Store,
    progress: Tell | None = None,
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
    kinds = None
    if directory.is_done(config.evaluation_id):
        if not (names := to_measure(directory, config)):
            return DONE
        kinds = chosen_for(names)
    plugin_records.check(config, directory.path, kinds)
    watch = Watch(progress or nobody, should_stop or never)
    try:
        with directory.lock(watch.should_stop):
            stages = Stages(config, store, watch, directory)
            if directory.is_done(config.evaluation_id):
                _measure(stages)
            else:
                _execute(stages)
    except Stopped:
        return STOPPED
    return DONE


def execute_shared(
    kind: str,
    config: RunConfig,
    store: Store,
    progress: Tell | None = None,
    should_stop: ShouldStop | None = None,
) -> None:
    """Do what is missing of a stage that several runs share, in a process that computes as for a run.

    Args:
        kind: of the stage, one of `mvar.runs.wiring.SHARED`.
        config: of a run that needs it.
        store, progress, should_stop: as for `execute`.

    Raises:
        UserError: something the user can mend.
        Stopped: it was asked to stop.
    """
    _prepare(config)
    Stages(config, store, Watch(progress or nobody, should_stop or never)).shared(kind).run()


def _measure(stages: Stages) -> None:
    """Add to a finished run's evaluation the metrics that it lacks; it stays finished, whatever becomes of them.

    Its status says which could not be computed, until they are.
    """
    _prepare(stages.config)
    run, before = stages.run, stages.run.status() or {}
    measured_now = to_measure(run, stages.config)
    reasons: dict[str, str] = {n: why for n, why in before.get(FAILED, {}).items() if n not in measured_now}
    try:
        stages.evaluate.run()
    except MetricsFailed as error:
        _end(run, reasons | error.reasons)
        raise
    if reasons or before.get("reason"):
        _end(run, reasons)


def _end(run: RunDirectory, reasons: Mapping[str, str]) -> None:
    """A finished run, and why it has not every metric."""
    run.write_status(DONE, "evaluate", reason=told_reasons(reasons) or None, **{FAILED: dict(reasons)})


def _prepare(config: RunConfig) -> None:
    keep_freed_memory()
    prepare_process(config.runtime)


def _execute(stages: Stages) -> None:
    config, run = stages.config, stages.run
    _prepare(config)
    run.write_config(config)
    plugin_records.record(config, run.path)
    if run.evaluations() and stages.tokenizer.is_done():
        stages.train.check_tokenizer()  # before anything is written: a finished run stays finished
    with recorded(run, "tokenizer"):
        owner = {"job": os.environ.get("MVAR_JOB"), "start": os.environ.get("MVAR_START")}  # of SLURM; None without
        run.write_status(RUNNING, "tokenizer", steps=config.train.steps, **owner)
        _write_environment(stages)
        stages.tokenizer.run()
        run.write_status(RUNNING, "tokens")
        stages.tokens.run()
        stages.train.check_tokenizer()
        run.write_status(RUNNING, "train")
        stages.train.run()
        run.write_status(RUNNING, "sample", step=config.train.steps)
        stages.sample.run()
        run.write_status(RUNNING, "evaluate")
        stages.extractor.run()
        stages.floors.run()
        failed = None
        try:
            stages.evaluate.run()
        except MetricsFailed as error:
            if error.of_ours:
                raise
            failed = error  # of a user's own metric: the run itself is finished
        if failed:
            _end(run, failed.reasons)
        else:
            run.write_status(DONE, "evaluate")
    if failed:
        raise failed


def _write_environment(stages: Stages) -> None:
    device = stages.tokenizer.device
    backends = kernels_of(stages.config.runtime, device)
    if told := scan_in_words(stages.config, device):
        note_once(told)
    write_json(stages.run.path / layout.ENV, describe(backends) | {"device": str(device)})


def follow(store: Store, should_stop: ShouldStop) -> None:
    """Take part in what the first process calls for, until it sends this one away: encoding of tokens, reconstruction
    of images, trainings, samplings and evaluations.

    One that was asked to stop ends early, in all processes at the same point: the first one decides what is next.
    """
    team = distributed.current_team()
    assert team
    while (message := team.hear()) != distributed.LEAVE:
        kind, values = next(iter(message.items()))  # what is called for comes first
        config = from_dict(RunConfig, values)
        prepare_process(config.runtime)
        run = RunDirectory(Path(message["run"])) if "run" in message else None  # shared stages are of no run alone
        stages = Stages(config, store, Watch(should_stop=should_stop), run)
        if kind == "tokens":
            stages.tokens.take_part(message["split"], message["done"])
        elif kind == "quality":
            stages.tokenizer.take_part()
        elif kind == "floors":
            stages.floors.take_part(message["split"])
        elif kind == "train":
            stages.train.take_part(message["tokens"])
        elif kind == "sample":
            stages.sample.take_part(message["done"])
        else:
            stages.evaluate.take_part(message["spatial"])
