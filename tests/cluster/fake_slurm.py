"""A SLURM of shell scripts: it queues what it is sent and runs nothing, in milliseconds."""

import os
from pathlib import Path

SCRIPTS = {
    "srun": "exit 0",
    "sinfo": "exit 0",
    "scontrol": 'echo "MaxArraySize            = $(cat max_array)"',
    "sbatch": r"""
case "$*" in *--test-only*) exit 0;; esac
for script; do :; done
id=$(($(cat next) + 1)); echo $id > next
name=$(sed -n 's/^#SBATCH --job-name=//p' "$script")
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\)%.*/\1/p' "$script")
if [ -z "$last" ]; then echo "$id|$name|PENDING|Priority|1:00:00|" >> queue
else for i in $(seq 0 $last); do echo "${id}_$i|$name|PENDING|Priority|1:00:00|" >> queue; done; fi
echo "Submitted batch job $id"
""",
    "squeue": r"""
echo "$@" >> asked
names=,$(printf '%s\n' "$@" | sed -n 's/^--name=//p'),
awk -F'|' -v names="$names" 'index(names, "," $2 ",")' queue
""",
    "scancel": r"""
echo "$@" >> cancelled
for one; do
  case "$one" in
    --name=*) grep -v "^[^|]*|${one#--name=}|" queue > rest;;
    *) grep -v "^$one[|_]" queue > rest;;
  esac
  cp rest queue
done
exit 0
""",
}


class FakeSlurm:
    """Its queue is a file of squeue's lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name, body in SCRIPTS.items():
            (folder / name).write_text(f"#!/bin/bash\ncd {folder}\n{body}\n")
            (folder / name).chmod(0o755)
        for name, text in {"queue": "", "next": "100\n", "max_array": "1001\n", "asked": "", "cancelled": ""}.items():
            (folder / name).write_text(text)

    def put_on_path(self, monkeypatch) -> None:
        monkeypatch.setenv("PATH", f"{self.folder}:{os.environ['PATH']}")

    @property
    def lines(self) -> list[str]:
        """What is queued, one element a line."""
        return (self.folder / "queue").read_text().splitlines()

    def set_lines(self, *lines: str) -> None:
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))
