"""A cluster that keeps accounts (slurmdbd, MariaDB): what sacct says for a moment changes nothing."""

import pytest
from conftest import boot, entered
from slurm_accounting import PROGRAMS
from slurm_jobs import PATIENCE_S, ask, assert_same_end, kill_node, send, until

from mvar.cluster.queue import View
from mvar.runs.states import DONE, FAILED

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(600)]
NODE = "127.0.1.1"


@pytest.fixture
def accounted(monkeypatch):
    packages = "slurm-wlm munge slurmdbd mariadb-server-core mariadb-client-core"
    needed = ("slurmctld", "slurmd", "munged", "sbatch", "sacct", *PROGRAMS)
    with boot("accounting", needed=needed, packages=packages) as cluster, entered(cluster, monkeypatch):
        yield cluster


def accounts(job_id: str) -> set[str]:
    """Every state that sacct has noted for a job, of earlier starts too."""
    return set(ask("sacct", "--duplicates", "--allocations", "-n", "-P", "-j", job_id, "-o", "State").split())


def test_node_fail_is_seen_for_a_moment_and_the_run_goes_on(accounted, store, reference):
    """SLURM notes NODE_FAIL in its accounts and queues the job again: never is the run called failed or done."""
    sent = send(store, sbatch={"nodelist": NODE})
    sent.until_training(checkpoints=1)
    kill_node(accounted, sent, NODE)
    states = set()

    def failed() -> bool:
        states.add(View(store)(sent.run).state)
        return "NODE_FAIL" in accounts(sent.job_id)

    until("NODE_FAIL in the accounts", failed)
    accounted.start(f"slurmd.{NODE}")
    sent.until_gone(2 * PATIENCE_S)
    assert not states & {FAILED, DONE}
    assert_same_end(sent, reference)
    until("COMPLETED in the accounts", lambda: "COMPLETED" in accounts(sent.job_id))
    assert View(store)(sent.run).state == DONE
