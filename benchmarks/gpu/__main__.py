"""What only a GPU shows: kernels, memory, replays of graphs, speed of sampling and training, two processes.

Run: `make gpu`, or `python -m benchmarks.gpu`. Each part is measured by itself: one that fails says so in its row, and
what was measured before is in the file already. Writes `gpu-MACHINE.json` and a page of tables beside it. Where there
is no GPU, `--tiny` goes through every part at a size that means nothing.
"""

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.gpu import agreement, parity, processes, replay, sampling, table, training
from benchmarks.gpu.settings import Settings
from benchmarks.machine import begin, describe_machine
from mvar.errors import UserError
from mvar.files import atomic_write, write_json
from mvar.training.numerics import prepare_process

PARTS: dict[str, Callable[[Settings], Iterator[dict[str, Any]]]] = {
    "parity": parity.rows,
    "replay": replay.rows,
    "agreement": agreement.rows,
    "sampling": sampling.rows,
    "training": training.rows,
    "processes": processes.rows,
}


def measured(part: Callable[[Settings], Iterator[dict[str, Any]]], settings: Settings) -> Iterator[dict[str, Any]]:
    """The rows of a part; what stops it is its last one."""
    try:
        yield from part(settings)
    except Exception as error:  # of the device, of kernels that are not ours: the other parts stay
        yield {"said": f"{type(error).__name__}: {error}".splitlines()[0], "holds": False}


def main(settings: Settings) -> None:
    """Measure, keep after every part, print; exit code 1 where something does not hold."""
    if settings.device.type == "cpu" and not settings.tiny:
        raise UserError("gpu: there is none here; allowed: a machine with one, or --tiny for a rehearsal without")
    sampling.checkouts(settings)
    prepare_process(settings.config("VAR").runtime)  # fp32 as runs have it
    machine = describe_machine()
    name = re.sub(r"[^a-z0-9]+", "-", f"gpu-{machine['gpu']}{'-tiny' if settings.tiny else ''}".lower())
    result: dict[str, Any] = {"machine": machine, "settings": dict(vars(settings)), "parts": {}}
    for key in ("official", "official_mvar", "out"):  # where things lie on a machine
        result["settings"].pop(key)
    for part, rows in PARTS.items():
        print(part, file=sys.stderr)
        result["parts"][part] = list(measured(rows, settings))
        write_json(settings.out / f"{name}.json", result)
    with atomic_write(settings.out / f"{name}.md") as file:
        file.write(table.as_markdown(result).encode())
    table.show(result)
    if any(row.get("holds") is False for rows in result["parts"].values() for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    begin(main, Settings, __doc__)
