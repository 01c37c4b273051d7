"""`mvar.train` and `mvar.evaluate`: the one pipeline, in this process."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from mvar.api.loading import load
from mvar.api.trained_run import TrainedRun
from mvar.config import EvaluationConfig, RunConfig, SampleConfig, override
from mvar.errors import UserError, one_of, quoted
from mvar.place import results_directory
from mvar.presets import PRESETS
from mvar.runs.display import shown
from mvar.runs.gallery import dotted
from mvar.runs.launch.bounds import check_launched
from mvar.runs.launch.datasets import DataSets
from mvar.runs.launch.evaluation import evaluation_of
from mvar.runs.launch.needed import check_files
from mvar.runs.pipeline import execute
from mvar.runs.repair import restore
from mvar.runs.signals import collected
from mvar.runs.states import STOPPED
from mvar.runs.store import RunDirectory, Store, check_writable


def train(
    config: RunConfig | str,
    results: str | PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> TrainedRun:
    """Make a run: tokenizer, training, samples, metrics. What `mvar run` does, for one run and in this process.

    What is done already is not done again, what was interrupted goes on. Ctrl-C ends after the step and saves.

    Examples:
        >>> import mvar
        >>> config = mvar.load("digits").config  # or mvar.PRESETS["digits"]
        >>> run = mvar.train(config, settings={"seed": 1})
        >>> run.config.seed, run.sample(classes=[3]).shape
        (1, (1, 8, 8, 1))

    Args:
        config: the run, or the name of a preset.
        results: where runs are kept; None: `$MVAR_RESULTS`, else `results`.
        settings: fields that differ from the config, by their dotted names, as `--set` takes them.

    Returns:
        The run, loaded.

    Raises:
        UserError: an unknown preset or field, a value that is not allowed, data or files that are not there.
        KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    preset = config if isinstance(config, str) else ""
    if isinstance(config, str):
        if config not in PRESETS:
            raise one_of("preset", config, PRESETS)
        config = PRESETS[config]
    if isinstance(results, Mapping):
        raise UserError(f"results: {quoted(results)}; allowed: a directory; fields are given as settings={{...}}")
    asked = dict(_mapping("settings", settings or {}))
    config = override(config, asked)
    check_launched(config, asked)
    store = Store(Path(results or results_directory()))
    data_sets = DataSets(store)
    config = store.as_stored(data_sets.settled_config(config, asked, preset))
    check_writable(store.root)
    restore(store, [config])
    run = store.run_of(config)
    _make(config, store, run, data_sets)
    return TrainedRun(store, run)


def evaluate(
    run: TrainedRun | RunConfig | str | PathLike[str],
    settings: Mapping[str, Any] | None = None,
    *,
    results: str | PathLike[str] | None = None,
    **fields: Any,
) -> dict[str, float]:
    """Metrics of a trained run: images are drawn and measured once, and kept. Nothing is trained.

    Examples:
        >>> import mvar
        >>> metrics = mvar.evaluate("digits", cfg_scale=3, num_images=20)
        >>> metrics["eval/fid"] > 0
        True
        >>> mvar.evaluate("digits", {"sample.cfg_scale": 3, "evaluation.num_images": 20}) == metrics
        True

    Args:
        run: what `mvar.load` returned, or what it takes for a run.
        settings: fields that differ from the run's own, by their names or dotted names, as `--set` takes them.
        results: where runs are kept (None: `$MVAR_RESULTS`, else `results`), where `run` is no loaded one.
        fields: more of them: fields of `SampleConfig` and `EvaluationConfig`, and settings of a form of guidance, a
            filter or a metric: `guidance="interval"`, `interval={"low": 0.3}`.

    Returns:
        Every metric by its name, as `eval.json` of the run has them.

    Raises:
        UserError: an unknown run or field, a value that is not allowed, a run that is not trained.
        KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    given = {**_mapping("settings", settings or {}), **fields}
    found = run if isinstance(run, TrainedRun) else load(run, results=results)
    if not isinstance(found, TrainedRun):
        raise UserError("run: a checkpoint; allowed: a run, which `mvar evaluate --checkpoint` makes of it")
    store, asked = found.store, dotted({_in_section(name): value for name, value in given.items()})
    config = store.as_stored(evaluation_of(store, found.directory, asked))
    check_writable(store.root)
    _make(config, store, found.directory, DataSets(store, stored=True))
    return dict(found.directory.evaluations()[config.evaluation_id]["metrics"])


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    """What is given as fields and values.

    Raises:
        UserError: something else.
    """
    if not isinstance(value, Mapping):
        raise UserError(
            f"{name}: {quoted(value)}; allowed: a dict of fields and values, e.g. {{'sample.cfg_scale': 3}}"
        )
    return value


def _in_section(name: str) -> str:
    """The dotted name of a field of the sampling or the evaluation, or of settings of what they choose by name.

    Raises:
        UserError: there is none.
    """
    if name.partition(".")[0] in ("sample", "evaluation", "runtime"):
        return name
    for kind in (SampleConfig, EvaluationConfig):
        first = name.partition(".")[0]
        if first in kind.model_fields or kind.settings_class(first):
            return f"{kind.SECTION}.{name}"
    raise one_of("field", name, [*SampleConfig.model_fields, *EvaluationConfig.model_fields])


def _make(config: RunConfig, store: Store, run: RunDirectory, data_sets: DataSets) -> None:
    """Do what is missing of a run, under a bar.

    Raises:
        KeyboardInterrupt: it was asked to stop, and has saved.
    """
    if not run.is_done(config.evaluation_id):
        check_files([config], store)
        data_sets.check([config])
    with collected() as received, shown(run.name, "starting") as progress:

        def tell(stage: str, done: int, total: int) -> None:
            progress(done, total, stage)

        state = execute(config, store, tell, lambda: bool(received), run)
    if state == STOPPED:
        raise KeyboardInterrupt(f"{run.name}: interrupted; the same call goes on where it was")
