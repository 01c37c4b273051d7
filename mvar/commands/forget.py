"""`mvar forget`: take back what was asked for; what was made stays."""

from dataclasses import dataclass

import tyro

from mvar.commands.options import InResults
from mvar.errors import OK, existing_directory, say, warn


@dataclass(frozen=True)
class Forget(InResults):
    """Take a request back: reports and status no longer miss its runs. Runs that are there stay.

    Example: `mvar forget mixers-digits-steps`
    """

    sweep: tyro.conf.Positional[str]
    """A request by the name of its file in results/sweeps, e.g. mixers-digits-steps; or a sweep: all its requests."""

    def execute(self, arguments: list[str]) -> int:
        """Set its list of runs aside, and say how to ask again; returns the exit code."""
        from mvar.runs.forgotten import forget
        from mvar.runs.store import Store

        store = Store(existing_directory("results", self.results, "one that `mvar run` has made"))
        for found in forget(store, self.sweep):
            if found.problem:
                warn(found.problem)
                say(f"{found.name}: forgotten; what it asked for cannot be read ({found.path})")
                continue
            there = [name for name in found.run_ids if store.run(name).config_path.exists() or store.index.by_id(name)]
            seeds = f", seeds {', '.join(map(str, found.seeds))}" if found.seeds else ""
            say(f"{found.name}: forgotten ({found.path})")
            say(f"  of its runs ({len(found.run_ids)}{seeds}) {len(there)} are there and stay")
            first, *others = [*found.manifest.get("earlier_commands", []), found.manifest["command"]]
            say(f"  to ask again: {first}")
            for command in others:
                say(f"  and then: {command}")
        return OK
