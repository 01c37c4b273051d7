"""`kill -9` at random moments of every stage, on a real SLURM: submitted again, all ends in the bytes of a quiet run.

The seed is printed. MVAR_KILLS sets how many kills (25 for a thorough look), MVAR_KILL_SEED repeats a failure.
"""

import os
import random
import shutil
import signal
import time

import pytest
from slurm_jobs import CONFIG, PROFILE, Sent, assert_same_end, until

from mvar.cluster.submit import plan, submit
from mvar.files import file_digest
from mvar.runs.states import DONE
from mvar.runs.store import Store

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1500)]
KILLS = int(os.environ.get("MVAR_KILLS", "10"))
SEED = int(os.environ.get("MVAR_KILL_SEED", str(int(time.time()) % 100_000)))
LONGEST_S = 14.0  # of a process that is killed: past the import of torch, the stages, into the run
EXACT = ("tokenizer.safetensors", "classifier.safetensors", "tokens.bin", "labels.bin")


def send(store: Store) -> Sent:
    """Submit what is missing: as `mvar submit` does, shared stages too."""
    return Sent(store, CONFIG, submit(plan([CONFIG], store), store, PROFILE))


def pids(slurm, sent: Sent) -> list[int]:
    """The living Python processes of a submission."""
    return [pid for job in sent.submission.jobs if job.job_id for pid in slurm.processes(job.job_id)]


def gone(slurm, sent: Sent) -> bool:
    from slurm_jobs import ask

    names = ",".join(job.name for job in sent.submission.jobs)
    return not ask("squeue", "-h", "-a", f"--name={names}", "-o", "%T").strip()


def assert_same_stages(store: Store, reference) -> None:
    for path in sorted(Store(reference).root.glob("stages/**/*")):
        if path.name in EXACT:
            ours = store.root / path.relative_to(reference)
            assert file_digest(ours) == file_digest(path), f"{ours}; seed {SEED}"


def test_killed_at_random_it_ends_the_same(slurm, reference, tmp_path, capsys):
    draw = random.Random(SEED)
    with capsys.disabled():
        print(f"\n{KILLS} random kills, MVAR_KILL_SEED={SEED}", flush=True)
    root, kills, ended, stages = tmp_path / "results", 0, 0, set()
    while kills < KILLS or not ended:
        store = Store(root)
        sent = send(store)
        delay, began = draw.uniform(0.5, LONGEST_S), None
        while not gone(slurm, sent):
            living = pids(slurm, sent)
            began = began or (time.monotonic() if living else None)
            if kills < KILLS and living and time.monotonic() - began > delay:
                status = sent.run.status() or {}
                stages.add(status.get("stage", "shared stages"))
                os.kill(draw.choice(living), signal.SIGKILL)
                kills += 1
                until("end of the killed job", lambda sent=sent: gone(slurm, sent))
            time.sleep(0.1)
        if sent.run.state() == DONE:
            ended += 1
            assert_same_end(sent, reference)
            assert_same_stages(store, reference)
            shutil.rmtree(root)
    with capsys.disabled():
        print(f"{kills} kills, in {', '.join(sorted(stages))}; {ended} runs ended, all the same", flush=True)
