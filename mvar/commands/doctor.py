"""`mvar doctor`: what can be used here, and what to do about the rest."""

from dataclasses import asdict, dataclass

from mvar.commands.options import Answer, File, InResults, Settings
from mvar.commands.submit import named_profile
from mvar.errors import FAILURE, OK
from mvar.escaping import rich_text


@dataclass(frozen=True)
class Doctor(InResults, Answer):
    """Say what of SLURM, GPUs, kernels and disk is usable, and what to do about the rest.

    Exit code 1 where something that is needed is broken: SLURM and the request only with a --cluster that uses it.

    Example: `mvar doctor --cluster one-gpu`
    """

    cluster: File = ""
    """A profile to check, see `mvar submit`."""
    cluster_set: Settings = ()
    """FIELD=VALUE ...: fields that differ from the profile."""

    def execute(self, arguments: list[str]) -> int:
        """Print the findings; returns the exit code."""
        from rich.console import Console
        from rich.text import Text

        from mvar.cluster.doctor import examine

        profile = named_profile(self.cluster, self.cluster_set) if self.cluster else None
        findings = examine(self.results, profile)
        code = FAILURE if any(finding.state == "broken" for finding in findings) else OK
        if self.json:
            self.answer([asdict(finding) for finding in findings])
            return code
        console = Console(soft_wrap=True, highlight=False)
        styles = {"ok": "green", "missing": "yellow", "broken": "red"}
        for finding in findings:
            advice = f" -> {finding.advice}" if finding.advice else ""
            state = Text(f"{finding.state:8}", styles[finding.state])
            console.print(state + rich_text(f"{finding.what}: {finding.found}{advice}"))
        return code
