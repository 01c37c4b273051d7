"""`mvar repair`: what is damaged, what can be made anew, what is lost."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvar.commands.options import InResults, RunName
from mvar.errors import FAILURE, OK, complain, existing_directory, say

if TYPE_CHECKING:
    from mvar.runs.finding import Finding


@dataclass(frozen=True)
class Repair(InResults):
    """Say what of the results is damaged, what can be made anew and what is lost; with --yes do it.

    Exit code 1 where something is, or stays, wrong.

    Example: `mvar repair --check`
    """

    run: RunName = ""
    """Run id, or a unique beginning of one; none: everything."""
    yes: bool = False
    """Make anew what can be, and delete what is of no use; without it nothing is written or deleted."""
    check: bool = False
    """Also read every artefact through and compare its digest."""

    def execute(self, arguments: list[str]) -> int:
        """Print what is found and done; returns the exit code."""
        from mvar.cluster.lost import lost_submissions
        from mvar.runs.repair import check_artefacts, findings
        from mvar.runs.store import Store

        if self.run:
            run, store = Store.locate(self.results, self.run)
            names = [run.name]
        else:
            store, names = Store(existing_directory("results", self.results, "one that `mvar run` has made")), None

        def look() -> "list[Finding]":
            return [*findings(store, names), *([] if names else lost_submissions(store))]

        found = look()
        for finding in found:
            say(f"{finding.problem}: {finding.action}")
        if self.yes:
            found = self._mended(found, look)
        bad, unchecked = check_artefacts(store) if self.check else ([], 0)
        for line in bad:
            say(line)
        if unchecked:
            say(f"{unchecked} files unchecked: no digest is recorded of them (results of an earlier version)")
        if not found and not bad:
            say(f"{store.root}: all is well")
            return OK
        if any(finding.mend for finding in found) and not self.yes:
            say(f"{len(found)} damaged; nothing was changed; `mvar repair --yes` does what is said above")
        return FAILURE

    @staticmethod
    def _mended(found: "list[Finding]", look: "Callable[[], list[Finding]]") -> "list[Finding]":
        """Mend in order, and look again: what is derived from something else may be right only then."""
        from mvar.errors import UserError

        for finding in found:
            if finding.mend:
                try:
                    finding.mend()
                except (UserError, OSError) as error:
                    complain(f"{finding.path}: {error}", FAILURE)
        left = look()
        for finding in left:
            complain(f"still wrong: {finding.problem}: {finding.action}", FAILURE)
        return left
