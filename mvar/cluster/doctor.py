"""What of SLURM, GPUs, kernels and disk can be used here, and what to do about the rest."""

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mvar import shipped
from mvar.cluster import scheduler
from mvar.cluster.executor import Slurm
from mvar.cluster.profiles import Profile
from mvar.runs.executors import contract as executors

DISTRIBUTION = "mvar-harness"  # what pip knows this as; `mvar` on the package index is somebody else's
IMPORTED = shipped.PACKAGE.name
COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
LOW_DISK_GB = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: str  # ok, missing (something that not everybody needs) or broken (what was asked for will not work)
    found: str
    advice: str = ""


def examine(results: Path, profile: Profile | None = None) -> list[Finding]:
    """Look at everything; with a SLURM profile its request is checked too, and SLURM is needed."""
    needs_slurm = profile is not None and isinstance(executors.find(profile.executor), Slurm)
    findings = [*_slurm(needs_slurm)]
    if profile is not None and needs_slurm and all(f.state == "ok" for f in findings):
        findings.append(_request(profile))
    findings += [*installation(), _torch(), _gpus(profile), *_kernels(), _disk(results)]
    return findings


def _slurm(needed: bool) -> list[Finding]:
    bad = "broken" if needed else "missing"
    lacking = [name for name in COMMANDS if shutil.which(name) is None]
    if lacking:
        advice = "run this on the cluster's login node, or use --cluster local or inprocess"
        return [Finding("SLURM commands", bad, f"not on PATH: {', '.join(lacking)}", advice)]
    findings = [Finding("SLURM commands", "ok", ", ".join(COMMANDS))]
    try:
        said = " ".join(scheduler.call("scontrol", "ping").split())
        found = scheduler.settings()
    except scheduler.SchedulerError as error:
        said, advice = str(error), "ask the cluster's operators; check SLURM_CONF"
        if scheduler.UNCONFIGURED.search(said):
            said = "SLURM is installed here and knows no cluster"
            advice = (
                "none is needed but to submit from here; its operators have slurm.conf, SLURM_CONF says where it is"
            )
        return [*findings, Finding("SLURM controller", bad, said, advice)]
    advice = "" if found.get("JobRequeue") == "1" else "mvar asks for --requeue itself"
    version = f"{said}; SLURM {found.get('SLURM_VERSION', '?')}, MaxArraySize {found.get('MaxArraySize', '?')}"
    findings.append(Finding("SLURM controller", "ok", version, advice))
    accounting = found.get("AccountingStorageType", "?")
    if accounting.endswith("none"):
        accounting += " (sacct has nothing; mvar does not need it)"
    findings.append(Finding("SLURM accounting", "ok", accounting))
    return [*findings, _preemption(found), *_partitions(bad)]


def _preemption(found: dict[str, str]) -> Finding:
    """What a job is given before it is ended: SIGTERM, and KillWait seconds for the checkpoint."""
    mode, wait = found.get("PreemptMode", "?"), found.get("KillWait", "?")
    text = f"PreemptMode {mode}, KillWait {wait}"
    requeues = "REQUEUE" in mode or mode == "OFF"
    advice = "" if requeues else "a job that is preempted is not queued again by SLURM: `mvar retry --failed`"
    return Finding("SLURM preemption", "ok", f"{text}: a checkpoint must be written in that time", advice)


def _partitions(bad: str) -> list[Finding]:
    try:
        lines = scheduler.call("sinfo", "--noheader", "--format=%P|%a|%l|%D|%G|%c|%m").splitlines()
    except scheduler.SchedulerError as error:
        return [Finding("partitions", bad, str(error), "ask the cluster's operators")]
    if not lines:
        return [Finding("partitions", bad, "none that this account may use", "ask the cluster's operators")]
    found = []
    for name, state, limit, nodes, gres, cpus, memory in (line.split("|") for line in lines):
        gpus = f", {gres}" if gres not in ("(null)", "") else ""
        text = f"{state}, {nodes} nodes of {cpus} CPUs, {memory} MB{gpus}, time limit {limit}"
        found.append(Finding(f"partition {name}", "ok", text))
    return found


def _request(profile: Profile) -> Finding:
    from mvar.cluster.submit import check_profile

    try:
        check_profile(profile)
        check_profile(profile.for_stages)
    except scheduler.SchedulerError as error:
        return Finding("profile", "broken", str(error), "change the profile, or --cluster-set FIELD=VALUE")
    note = "" if not (profile.account or profile.qos) else "account and qos are checked where the cluster enforces them"
    return Finding("profile", "ok", "SLURM accepts its requests", note)


def installation(paths: Iterable[str] | None = None) -> list[Finding]:
    """Where this `mvar` comes from, and every other one that a script may get in its place.

    Args:
        paths: where Python looks for modules, in order; None: of this process.
    """
    found = [Finding("mvar", "ok", f"{shipped.PACKAGE} ({DISTRIBUTION} {_version()})")]
    return [*found, *_other_packages(sys.path if paths is None else paths), *_other_distributions()]


def _version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "of a checkout that is not installed"


def _other_packages(paths: Iterable[str]) -> Iterator[Finding]:
    """Packages and modules of our name in front of this one, or in the working directory (for `python -m`)."""
    folders = [Path(path).absolute() for path in paths]
    ours = shipped.PACKAGE.parent.absolute()
    before = folders[: folders.index(ours)] if ours in folders else folders
    for folder in dict.fromkeys((*before, Path.cwd())):
        for path in (folder / IMPORTED / "__init__.py", folder / f"{IMPORTED}.py"):
            if not path.is_file() or path.resolve() == (shipped.PACKAGE / "__init__.py").resolve():
                continue
            if folder in before:
                told = f"{path} has this one's name, and Python finds it first"
                yield Finding("another mvar", "broken", told, "rename it, or take its folder out of PYTHONPATH")
            else:
                told = f"{path} has this one's name; Python scripts beside it, and `python -m` there, import it instead"
                yield Finding("another mvar", "missing", told, "rename it, or work in another folder")


def _other_distributions() -> Iterator[Finding]:
    """Other distributions that bring a package of our name: in one environment they overwrite each other's files."""
    for name in sorted({*metadata.packages_distributions().get(IMPORTED, ())} - {DISTRIBUTION}):
        advice = f"pip uninstall {name}"
        if _is_of_here(name):
            yield Finding("another mvar", "missing", f"{name} is this one, installed by the name that it had", advice)
        else:
            told = f"the distribution {name} has a package of this one's name; what is imported is one of the two"
            root = shipped.repository()
            again = f"pip install --force-reinstall --no-deps {f'-e {root}' if root else DISTRIBUTION}"
            yield Finding("another mvar", "broken", told, f"{advice}, then {again}")


def _is_of_here(name: str) -> bool:
    """Whether a distribution is an editable installation of this very checkout, or what a build has left in it."""
    root, found = shipped.repository(), metadata.distribution(name)
    url = urlsplit(json.loads(found.read_text("direct_url.json") or "{}").get("url", ""))
    where = Path(unquote(url.path)) if url.scheme == "file" else Path(str(found.locate_file("")))
    return root is not None and where.resolve() == root.resolve()


def _torch() -> Finding:
    try:
        import torch
    except Exception as error:  # a broken build fails in its own ways
        return Finding("torch", "broken", " ".join(str(error).split()), "pip install torch")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    return Finding("torch", "ok", f"{torch.__version__}, {build}, {torch.get_num_threads()} threads")


def _gpus(profile: Profile | None) -> Finding:
    try:
        import torch
    except Exception as error:  # a broken build fails in its own ways
        return Finding("GPUs here", "missing", f"torch does not load ({type(error).__name__})", "mend torch first")
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Finding("GPUs here", "ok", f"{torch.cuda.device_count()}: {', '.join(sorted(names))}")
    if shutil.which("nvidia-smi") is not None:
        advice = (
            "the driver is there but torch cannot use it: install a CUDA build of torch, check CUDA_VISIBLE_DEVICES"
        )
        return Finding("GPUs here", "missing", "none that torch can use", advice)
    advice = (
        "fine on a login node: jobs see their own"
        if profile and executors.find(profile.executor).is_queue
        else "the CPU is used"
    )
    return Finding("GPUs here", "missing", "none", advice)


def _kernels() -> list[Finding]:
    built = "with a GPU and nvcc: pip install {} --no-build-isolation"
    extras = {
        "fla": ("scan", "fla", "with a GPU: pip install {}"),
        "mamba_ssm": ("scan", "mamba", built),
        "causal_conv1d": ("convolution", "mamba", built),
        "flash_attn": ("attention", "flash", built),
    }
    root = shipped.repository()
    asked = f"-e '{root}[{{}}]'" if root else f"'{DISTRIBUTION}[{{}}]'"
    return [
        _module(name, f"torch's own {what} is used; {how.format(asked.format(extra))}")
        for name, (what, extra, how) in extras.items()
    ]


def _module(name: str, advice: str, load: Callable[[str], object] = importlib.import_module) -> Finding:
    if find_spec(name) is None:
        return Finding(name, "missing", "not installed", advice)
    try:
        module = load(name)
    except Exception as error:  # a kernel built for another torch or driver fails in its own ways
        said = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        return Finding(name, "missing", f"installed but does not load ({said})", advice)
    return Finding(name, "ok", str(getattr(module, "__version__", "loads")))


def _disk(results: Path) -> Finding:
    where = next(p for p in (results.absolute(), *results.absolute().parents) if p.exists())
    free_gb = shutil.disk_usage(where).free / 1e9
    if not os.access(where, os.W_OK):
        return Finding("results", "broken", f"{where} is not writable", "--results with another directory")
    if free_gb < LOW_DISK_GB:
        return Finding("results", "broken", f"{free_gb:.1f} GB free in {where}", "free space; runs stop on a full disk")
    return Finding("results", "ok", f"{where}, {free_gb:,.0f} GB free; nodes must see it under the same path")
