"""Cluster profiles: what one job of a sweep asks of its cluster.

A profile is built in, one of the files in `slurm/`, or a user's own TOML or YAML file with the same fields, and single
fields are overridden on the command line. `slurm/template.toml` says of each field what it means.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from mvar import shipped
from mvar.cluster import profile_files
from mvar.cluster.profile_files import CONTROL, check_owner, check_values
from mvar.config import Config, RunConfig, from_dict, override
from mvar.config.field_files import cited
from mvar.errors import UserError, one_of, warn
from mvar.runs.executors import contract as executors
from mvar.runs.gpus import Machine

SHELL = ("setup", "env")  # fields that a job's shell runs, or that change what it runs
SUFFIXES = (".toml", ".yaml", ".yml")
TEMPLATE = "template"  # in `slurm/`: every field, commented out
# Options of sbatch that the submission itself depends on.
OURS = {
    "array", "dependency", "error", "export", "export-file", "input", "job-name", "no-kill", "no-requeue", "open-mode",
    "output", "parsable", "quiet", "requeue", "signal", "test-only", "wait", "wrap",
}  # fmt: skip
FIELD_OF = {
    "time": "timeout_min",
    "nodes": "nodes",
    "ntasks": "tasks_per_node",
    "ntasks-per-node": "tasks_per_node",
    "cpus-per-task": "cpus_per_task",
    "gpus-per-node": "gpus_per_node",
    "mem": "mem_gb",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
}


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


class Profile(Config):
    """One cluster, and the size of a run's job on it. Fields that are not given are left to SLURM's defaults."""

    source: str = ""  # the name or the file that it comes from; set by `load_profile`
    executor: str = "slurm"  # a name in mvar.registries.EXECUTORS
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = Field(default=1, ge=1, le=100_000)
    gpus_per_node: int = Field(default=0, ge=0, le=1024)
    gpu: str | None = None  # what each is, e.g. h100-80gb: for `mvar plan --on`, and for gpus
    gpus: Literal["all", "planned"] = "all"  # planned: a run gets as few of them as the plan says that it fits on
    tasks_per_node: int = Field(default=0, ge=0, le=65536)  # processes of a run; 0: one a GPU, or one
    cpus_per_task: int = Field(default=4, ge=1, le=65536)
    mem_gb: float | None = Field(default=None, ge=1 / 1024, le=1e6)  # of a node; SLURM would take 0 MB for all of it
    timeout_min: int = Field(default=240, ge=1, le=10_000_000)  # of one job; a longer run is requeued and goes on
    array_parallelism: int = Field(default=64, ge=1, le=1_000_000)  # jobs at a time
    runs_per_job: int = Field(default=1, ge=1, le=1_000_000)  # one after the other
    signal_delay_s: int = Field(default=120, ge=1, le=65535)  # a step and a checkpoint must fit in
    setup: tuple[str, ...] = ()  # shell lines before Python starts: modules, scratch folders
    env: dict[str, str] = Field(default_factory=dict)
    sbatch: dict[str, str | int | bool] = Field(
        default_factory=dict
    )  # any other option of sbatch, e.g. {"reservation": "july"}
    workers: int = Field(default=0, ge=0, le=65536)  # executor local: processes at a time; 0: one a core or a GPU

    @model_validator(mode="before")
    @classmethod
    def _check_plain(cls, values: Any) -> Any:
        if isinstance(values, dict):
            check_values(values)
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.signal_delay_s >= 60 * self.timeout_min:
            raise ValueError(
                f"signal_delay_s: {self.signal_delay_s} leaves nothing of timeout_min {self.timeout_min}; "
                f"allowed: less than {60 * self.timeout_min}"
            )
        given = {name.replace("_", "-") for name in self.sbatch}
        # sbatch takes the beginning of an option's name for the option
        if taken := sorted(name for name in given if any(ours.startswith(name) for ours in OURS)):
            raise ValueError(f"sbatch: {taken[0]} is set by mvar; allowed: other options of sbatch, in full")
        if taken := sorted(given & FIELD_OF.keys()):
            raise ValueError(f"sbatch: {taken[0]} has a field of its own; allowed: {FIELD_OF[taken[0]]}")
        return self

    @model_validator(mode="after")
    def _check_executor(self) -> Self:
        fields = type(self).model_fields
        used = executors.used_by(self.executor, fields)
        changed = {name for name, field in fields.items() if getattr(self, name) != _default(field)}
        if unused := sorted(changed - used - {"executor", "source"}):
            allowed = ", ".join(sorted(used - {"source"})) or "none"
            raise ValueError(f"{unused[0]}: the executor {self.executor} does not use it; allowed with it: {allowed}")
        return self

    @model_validator(mode="after")
    def _check_gpu(self) -> Self:
        if self.gpu is not None:
            try:
                Machine.of_cards(1, self.gpu, "gpu")
            except UserError as error:
                raise ValueError(str(error)) from None
        if self.gpus == "planned" and (not self.gpu or not self.gpus_per_node or self.tasks_per_node):
            raise ValueError("gpus: 'planned'; allowed: with gpu and gpus_per_node, and without tasks_per_node")
        return self

    def machine(self) -> Machine:
        """All GPUs of a run's job.

        Raises:
            UserError: it has none, or does not say what they are.
        """
        if not self.gpus_per_node or not self.gpu:
            lacks = "gpu" if self.gpus_per_node else "gpus_per_node"
            raise UserError(f"on: profile {self.source} has no {lacks}; allowed: gpus_per_node, and gpu = 'h100-80gb'")
        return Machine.of_cards(self.nodes * self.gpus_per_node, self.gpu, "gpu")

    def for_run(self, config: RunConfig) -> "Profile":
        """The same cluster with as many GPUs, on as many nodes, as a run is given there (`gpus`).

        Raises:
            UserError: the run does not fit.
        """
        if self.gpus == "all" or not config.is_planned:
            return self
        from mvar.runs.at_hand import gpus_for  # and torch, which a profile is read without

        whole = self.gpus_per_node
        counts = (*range(1, whole + 1), *range(2 * whole, self.nodes * whole + 1, whole))
        gpus = gpus_for(config, self.machine(), counts)
        share = min(gpus, whole) / whole
        memory = self.mem_gb and self.mem_gb * share
        update = {"nodes": max(1, gpus // whole), "gpus_per_node": min(gpus, whole), "mem_gb": memory}
        return self.model_copy(update=update)

    @property
    def num_tasks_per_node(self) -> int:
        """Processes of a run on each node: one a GPU."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def for_stages(self) -> "Profile":
        """The same cluster for a job of shared stages that are one process's: one GPU where runs have GPUs."""
        gpus = min(1, self.gpus_per_node)
        return self.model_copy(update={"nodes": 1, "gpus_per_node": gpus, "tasks_per_node": 1})


_BUILT_IN = {
    "slurm": Profile(),
    "slurm-gpu": Profile(gpus_per_node=1, cpus_per_task=8),
    "slurm-node": Profile(gpus_per_node=8, cpus_per_task=8, array_parallelism=8),
    "local": Profile(executor="local"),
    "inprocess": Profile(executor="inprocess"),
}
PROFILES: dict[str, Profile] = {n: p.model_copy(update={"source": n}) for n, p in _BUILT_IN.items()}


def profile_names() -> list[str]:
    """Every name of a profile: the built-in ones, then the files of `slurm/`."""
    return [*PROFILES, *_shipped_names()]


def _shipped_names() -> list[str]:
    return [name for name in shipped.names("slurm", ".toml") if name != TEMPLATE and name not in PROFILES]


def load_profile(name: str, settings: Iterable[str] = ()) -> Profile:
    """The profile of a name, or a user's file, with `FIELD=VALUE` settings applied.

    A name is a built-in profile's or that of a file in `slurm/` (`mvar.shipped.folder`), never that of a file in the
    working directory. A file may name such a profile in `base`, whose fields it then changes.

    Raises:
        UserError: an unknown name, a file that cannot be read, a field or value that is not allowed.
    """
    if CONTROL.search(name):
        raise UserError(f"cluster: {cited(name)} has a control character; allowed: {', '.join(PROFILES)}, or a file")
    path = Path(os.path.expanduser(name))
    if path.suffix not in SUFFIXES:
        return with_settings(_named(name), settings)
    return with_settings(_of_file(path).model_copy(update={"source": str(path.absolute())}), settings)


def _named(name: Any, inside: tuple[Path, ...] = ()) -> Profile:
    """The profile of a name; `inside` are the files that name each other up to here."""
    if isinstance(name, str) and name in PROFILES:
        return PROFILES[name]
    if not isinstance(name, str) or name not in _shipped_names():
        allowed = [*profile_names(), "a .toml or .yaml file"]
        raise one_of("cluster", name if isinstance(name, str) else cited(name), allowed)
    path = shipped.folder("slurm") / f"{name}.toml"
    if path in inside:
        raise UserError(f"cluster: {path}: base: {name!r} leads back to itself; allowed: another profile")
    return _of_file(path, inside).model_copy(update={"source": name})


def _of_file(path: Path, inside: tuple[Path, ...] = ()) -> Profile:
    values = profile_files.read(path)
    base = values.pop("base", "slurm")
    try:
        return from_dict(Profile, _known(_named(base, (*inside, path)).model_dump(mode="json"), values))
    except UserError as error:
        raise UserError(f"cluster: {path}: {_cut(str(error))}") from None


def _known(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The base's fields changed by a file's; the nearest name is said of one that is none."""
    allowed = [name for name in Profile.model_fields if name != "source"]
    for name in values:
        if isinstance(name, str) and name not in allowed:
            raise one_of("field", name[: profile_files.MAX_NAME], ["base", *allowed])
    return base | values


def _cut(message: str) -> str:
    return message if len(message) <= 600 else f"{message[:600]} ..."


def with_settings(profile: Profile, settings: Iterable[str]) -> Profile:
    """A profile with `FIELD=VALUE` settings applied."""
    overrides: dict[str, str] = {}
    for setting in settings:
        field, separator, value = setting.partition("=")
        if not separator:
            raise UserError(f"cluster-set: {cited(setting)} is not FIELD=VALUE; allowed: e.g. timeout_min=60")
        if field == "source" or len(setting) > profile_files.MAX_TEXT:
            raise UserError(f"cluster-set: {cited(setting)} cannot be set; allowed: other fields, and shorter values")
        if field.startswith(("env.", "sbatch.")):  # new names are allowed there
            section, _, key = field.partition(".")
            values = profile.model_dump(mode="json")
            values[section][key] = _flag(value) if section == "sbatch" else value
            profile = from_dict(Profile, values)
            continue
        overrides[field] = value
    try:
        return override(profile, overrides)
    except UserError as error:
        raise UserError(_cut(str(error))) from None
    except RecursionError:
        raise UserError("cluster-set: values in values in values; allowed: FIELD=VALUE") from None


def with_own_shell(stored: Profile) -> Profile:
    """A stored profile, with the shell lines and variables of the profile that it came from, as that is now.

    What is stored among results may have been edited by others; what a job's shell runs is taken from the profile's
    own file, or from the profile of its name, and a difference is said.

    Raises:
        UserError: the file is gone although there were shell lines, or others may write it.
    """
    name = stored.source or "slurm"
    remedy = "say which profile is meant: --cluster"
    try:
        if Path(name).suffix in SUFFIXES:
            path = Path(name).resolve()  # as SLURM's shell, not a link's owner, would see it
            if path.exists():
                check_owner(path, "cluster", remedy)
        own = load_profile(name)
    except UserError as error:
        if not any(getattr(stored, field) for field in SHELL):
            return stored
        raise UserError(f"{error}; {remedy}" if remedy not in str(error) else str(error)) from None
    if own.setup != stored.setup:
        warn(
            f"retry: setup is {list(own.setup)} in profile {name}, was {list(stored.setup)} when it was submitted; "
            "the profile's is used"
        )
    differing = sorted(n for n in own.env.keys() | stored.env.keys() if own.env.get(n) != stored.env.get(n))
    if differing:
        warn(
            f"retry: env differs between profile {name} and what was submitted ({', '.join(differing)}); the profile's "
            "is used; to change it: --cluster-set env.NAME=VALUE"
        )
    return stored.model_copy(update={field: getattr(own, field) for field in SHELL})


def _flag(text: str) -> str | bool:
    """Options of sbatch that take no value are given as true."""
    return text == "true" if text in ("true", "false") else text


def user_sbatch_variables(profile: Profile) -> dict[str, str]:
    """`SBATCH_...` variables of the user's shell that count: those for fields that the profile leaves open.

    sbatch prefers such a variable to the script's own line, so the others would silently replace what was asked for.
    """
    fields = {"SBATCH_PARTITION": "partition", "SBATCH_ACCOUNT": "account", "SBATCH_QOS": "qos"}
    return {n: os.environ[n] for n, field in fields.items() if n in os.environ and getattr(profile, field) is None}
