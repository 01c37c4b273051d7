"""What clusters do to jobs, done to real training runs in a real SLURM: each ends with the very bytes of a run that
nothing happened to, or is marked failed with the reason."""

from conftest import ask, assert_same_end, send


def test_a_job_makes_the_run_that_mvar_run_makes(slurm, store, reference):
    sent = send(store)
    sent.until_gone()
    assert_same_end(sent, reference)


def test_the_time_limit_signal_saves_and_requeues(slurm, store, reference):
    sent = send(store)
    sent.until_training()
    ask("scancel", "--signal=USR2", sent.job_id)
    sent.until_gone()
    assert "stopped at train" in sent.log()
    assert_same_end(sent, reference)
