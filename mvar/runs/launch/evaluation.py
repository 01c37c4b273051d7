"""An evaluation of a trained run with settings of its own: nothing is trained for it."""

from collections.abc import Mapping
from typing import Any

from mvar import plugin_records
from mvar.config import RunConfig, override
from mvar.config.parsing import current_name
from mvar.errors import UserError
from mvar.runs.published_tokenizer import need_tokenizer
from mvar.runs.store import RunDirectory, Store

OF_A_RUN = ("sample.", "evaluation.", "runtime.")  # what may differ between evaluations of one run


def evaluation_of(store: Store, run: RunDirectory, overrides: Mapping[str, Any]) -> RunConfig:
    """The run's config with the settings that are asked for.

    Args:
        store: holds the run's tokenizer.
        run: a trained run.
        overrides: dotted fields that differ from the run's own.

    Raises:
        UserError: a field that would be another run, an unknown one, a value that is not allowed; a run that is not
            trained, or whose tokenizer is elsewhere; a plug-in that is not loaded, unless the images are there and
            nothing is asked for but metrics of them.
    """
    for name in overrides:
        if not current_name(RunConfig, name).startswith(OF_A_RUN):
            raise UserError(f"set: {name} would be another run; allowed: fields of {', '.join(OF_A_RUN)}")
    if not run.weights.is_file():
        raise UserError(f"run: {run.name} is not trained yet ({run.state()}); allowed: a trained run")
    config = run.config(to_compute=False)
    if overrides or not run.is_done(config.evaluation_id):
        plugin_records.check(config, run.path)
    config = override(config, overrides) if overrides else config
    need_tokenizer(store, config, run)
    return config
