"""The batch scripts of a submission, as `mvar submit --dry-run` prints them: on a machine without SLURM too."""

from itertools import chain
from typing import TYPE_CHECKING

from mvar import layout
from mvar.cluster.profiles import Profile
from mvar.cluster.submission import STAGES, Submission, new_id
from mvar.cluster.submit import Plan, job_name, make_executor, profile_of_job

if TYPE_CHECKING:
    from submitit import SlurmExecutor

    from mvar.runs.store import Store

WAITS_FOR = "JOB_OF_THE_STAGES"  # stands where SLURM's number will


def scripts(found: Plan, store: "Store", profile: Profile) -> list[tuple[str, str]]:
    """What each sbatch would be given: what the job is, and its script.

    Args:
        found: the elements of the jobs.
        store: where runs are kept.
        profile: of the runs; the stages' is derived from it.
    """
    folder = store.root.absolute() / layout.SUBMISSIONS / new_id()
    submission = Submission(folder, profile, folder.parent / layout.CODE, "")
    waits = [*found.waits_for, *([WAITS_FOR] if found.stages else ())]
    num_arrays = found.num_jobs - bool(found.stages)
    written = []
    for end, elements in found.jobs():
        is_stages, count = end == STAGES, len(elements)
        asked = profile_of_job(profile, chain(*elements) if is_stages else None, num_arrays)
        executor = make_executor(submission, job_name(folder, end), asked, [] if is_stages else waits, here=False)
        what = "one job" if count == 1 else f"an array of {count}"
        written.append((f"{'shared stages' if is_stages else 'runs'}, {what}", _text(executor, count)))
    return written


def _text(executor: "SlurmExecutor", count: int) -> str:
    if count > 1:
        executor.parameters["map_count"] = count
    return executor._make_submission_file_text(executor._submitit_command_str, executor.folder.name)
