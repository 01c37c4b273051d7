"""The batch scripts of a submission, as `mvar submit --dry-run` prints them: on a machine without SLURM too."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mvar.cluster.profiles import Profile
from mvar.cluster.submission import STAGES, Submission, new_id

if TYPE_CHECKING:
    from mvar.cluster.submit import Plan
    from mvar.runs.store import Store

WAITS_FOR = "JOB_OF_THE_STAGES"  # stands where SLURM's number will


def scripts(found: "Plan", store: "Store", profile: Profile) -> list[tuple[str, str]]:
    """What each sbatch would be given: what the job is, and its script.

    Args:
        found: the elements of the jobs.
        store: where runs are kept.
        profile: of the runs; the stages' is derived from it.
    """
    from mvar import layout
    from mvar.cluster.submit import make_executor, shared_out

    folder = store.root.absolute() / layout.SUBMISSIONS / new_id()
    submission = Submission(folder, profile, folder.parent / layout.CODE, "")
    written = []
    waits: Sequence[str] = found.waits_for
    if found.stages:
        executor = make_executor(submission, f"mvar-{folder.name}{STAGES}", profile.for_stages, check=False)
        written.append((f"shared stages, {_elements(len(found.stages))}", _text(executor, len(found.stages))))
        waits = [*waits, WAITS_FOR]
    arrays = range(0, len(found.runs), found.max_array)
    for number, start in enumerate(arrays):
        count = len(found.runs[start : start + found.max_array])
        name = f"mvar-{folder.name}-runs-{number}"
        executor = make_executor(submission, name, shared_out(profile, len(arrays)), waits, check=False)
        written.append((f"runs, {_elements(count)}", _text(executor, count)))
    return written


def _elements(count: int) -> str:
    return "one job" if count == 1 else f"an array of {count}"


def _text(executor, count: int) -> str:  # noqa: ANN001  submitit's, which is loaded late
    if count > 1:
        executor.parameters["map_count"] = count
    return executor._make_submission_file_text(executor._submitit_command_str, Path(executor.folder).name)
