"""`make demo` as on a new machine: an environment of its own with nothing but what the demo needs, interrupted once the
first runs are done, called again, and its report looked through. Arguments go to make, e.g. `PRESET=smoke`.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST_RUN_S = 600


def done_runs(results: Path) -> list[Path]:
    """Directories of the runs that are done."""
    found = results.glob("runs/*/status.json")  # replaced atomically: always whole
    return [path.parent for path in found if json.loads(path.read_text())["state"] == "done"]


def times(runs: list[Path]) -> dict[Path, int]:
    """When each file of finished runs was written; locks are no results."""
    files = [path for run in runs for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path: path.stat().st_mtime_ns for path in files}


def interrupt(command: list[str], results: Path) -> None:
    """Begin the demo, and press Ctrl-C as soon as a run is done: every process of it gets the signal."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        until = time.monotonic() + FIRST_RUN_S
        while not done_runs(results):
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"the demo made no run; make ended with {process.returncode}")
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        if process.wait(60) == 0:
            sys.exit("the interrupted demo ended as if nothing had happened")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    """Everything in turn; the first thing that is wrong ends it."""
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build", prefix="demo-") as name:
        results = Path(name) / "results"
        once = "SAMPLE_SEEDS=1"  # another set of images would be added to a run that is done, which must stay as it is
        command = ["make", "demo", f"VENV={name}/venv", f"RESULTS={results}", once, *sys.argv[1:]]
        interrupt(command, results)
        kept = times(done_runs(results))
        if (results / "report").exists():
            sys.exit("the demo was over before it could be interrupted")
        print(f"interrupted with {len(done_runs(results))} runs done; again:", flush=True)
        subprocess.run(command, cwd=ROOT, check=True)
        again = times([run for run in done_runs(results) if any(run in path.parents for path in kept)])
        if changed := [str(path) for path, when in kept.items() if again.get(path) != when]:
            sys.exit(f"the second call made again what was done: {' '.join(changed)}")
        check = [sys.executable, str(Path(__file__).with_name("check_report.py")), str(results)]
        sys.exit(subprocess.run(check).returncode)


if __name__ == "__main__":
    main()
