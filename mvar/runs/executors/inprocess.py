"""Make runs in this very process, one after the other: for debugging, and for `torchrun`."""

from collections.abc import Sequence

from mvar import escaping
from mvar.config import RunConfig
from mvar.errors import is_mistake
from mvar.runs.executors.contract import Executor, Settings, Summary
from mvar.runs.signals import collected
from mvar.runs.states import DONE, FAILED, STOPPED
from mvar.runs.store import Store, one_line
from mvar.runs.workers import Outcome


class InProcess(Executor[Settings]):
    """One run after the other, here; under torchrun all processes train each run together."""

    def uses(self, field: str) -> bool:
        """Nothing: what there is to say, torchrun is told."""
        return False

    def execute(
        self, requests: Sequence[tuple[Settings, Sequence[RunConfig]]], store: Store, dry_run: bool = False
    ) -> Summary:
        """Make them; returns how they ended."""
        ((_, configs),) = requests
        return run_all(configs, store)


def run_all(configs: Sequence[RunConfig], store: Store) -> Summary:
    """Make every run that is not done; Ctrl-C, SIGTERM, a closed terminal stop at a step's end, with a checkpoint.

    Under torchrun the processes train each run together. A failure of one run does not stop the others, unless there
    are several processes: they may be out of step, so all end with the exception.
    """
    from mvar.runs.pipeline import follow  # and torch, which a profile is read without
    from mvar.training.distributed import joined_by_torchrun

    with collected() as received, joined_by_torchrun() as team:
        if team and team.rank:
            follow(store, lambda: bool(received))
        else:
            summary = _run_all(configs, store, received, raising=team is not None)
            summary.num_done = sum(store.is_done(config) for config in configs)
            return summary
    return Summary(num_runs=len(configs), num_done=sum(store.is_done(config) for config in configs))


def _run_all(configs: Sequence[RunConfig], store: Store, received: list[int], raising: bool) -> Summary:
    from mvar.runs.pipeline import execute

    summary = Summary(num_runs=len(configs))
    for config in configs:
        try:
            state, reason, is_user_error = execute(config, store, should_stop=lambda: bool(received)), "", False
        except Exception as error:
            if raising:
                raise
            state, reason, is_user_error = FAILED, one_line(error), is_mistake(error)
        name = store.run_of(config).name
        summary.outcomes[f"{name}/{config.evaluation_id}"] = Outcome(state, reason, is_user_error)
        print(escaping.one_line(f"{state} {name}" + (f": {reason}" if reason else "")), flush=True)
        if state == STOPPED or (received and state != DONE):
            summary.interrupted = True
            break
    return summary
