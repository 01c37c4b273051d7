"""Cluster profiles: what one job of a sweep asks of its cluster.

A profile is built in, or a user's own TOML or YAML file with the same fields, and single fields are overridden on the
command line.
"""

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from mvar.config import Config, from_dict, override
from mvar.errors import UserError, one_of

SUFFIXES = (".toml", ".yaml", ".yml")
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

    executor: Literal["slurm", "local", "inprocess"] = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    tasks_per_node: int = Field(0, ge=0)  # processes of a run; 0: one a GPU, or one
    cpus_per_task: int = Field(4, ge=1)
    mem_gb: float | None = Field(None, gt=0)  # of a node
    timeout_min: int = Field(240, ge=1)  # of one job; a run that needs more is requeued and goes on
    array_parallelism: int = Field(64, ge=1)  # jobs at a time
    runs_per_job: int = Field(1, ge=1)  # one after the other: for runs that are shorter than a job's start or wait
    signal_delay_s: int = Field(120, ge=1)  # warning before the time limit: a step and a checkpoint must fit in
    setup: tuple[str, ...] = ()  # shell lines before Python starts: modules, scratch folders
    env: dict[str, str] = Field(default_factory=dict)
    sbatch: dict[str, str | int | bool] = Field(
        default_factory=dict
    )  # any other option of sbatch, e.g. {"reservation": "july"}
    workers: int = Field(0, ge=0)  # executor local: processes at a time; 0: one a core or a GPU

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.signal_delay_s >= 60 * self.timeout_min:
            raise ValueError(
                f"signal_delay_s: {self.signal_delay_s} leaves nothing of timeout_min {self.timeout_min}; "
                f"allowed: less than {60 * self.timeout_min}"
            )
        wrong = [name for name in self.env if not name.isidentifier()]
        if wrong:
            raise ValueError(f"env: {wrong[0]!r} is no name of a variable; allowed: letters, digits and _")
        given = {name.replace("_", "-") for name in self.sbatch}
        if taken := sorted(given & OURS):
            raise ValueError(f"sbatch: {taken[0]} is set by mvar; allowed: other options of sbatch")
        if taken := sorted(given & FIELD_OF.keys()):
            raise ValueError(f"sbatch: {taken[0]} has a field of its own; allowed: {FIELD_OF[taken[0]]}")
        return self

    @model_validator(mode="after")
    def _check_executor(self) -> Self:
        used = {"slurm": set(type(self).model_fields) - {"workers"}, "local": {"workers"}, "inprocess": set()}
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != _default(field)}
        if unused := sorted(changed - used[self.executor] - {"executor"}):
            allowed = ", ".join(sorted(used[self.executor])) or "none"
            raise ValueError(f"{unused[0]}: the executor {self.executor} does not use it; allowed with it: {allowed}")
        return self

    @property
    def num_tasks_per_node(self) -> int:
        """Processes of a run on each node: one a GPU."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def for_stages(self) -> "Profile":
        """The same cluster for a job of shared stages: one process, and one GPU where runs have GPUs."""
        gpus = min(1, self.gpus_per_node)
        return self.model_copy(update={"nodes": 1, "gpus_per_node": gpus, "tasks_per_node": 1})


PROFILES: dict[str, Profile] = {
    "slurm": Profile(),
    "slurm-gpu": Profile(gpus_per_node=1, cpus_per_task=8),
    "slurm-node": Profile(gpus_per_node=8, cpus_per_task=8, array_parallelism=8),
    "local": Profile(executor="local"),
    "inprocess": Profile(executor="inprocess"),
}


def load_profile(name: str, settings: Iterable[str] = ()) -> Profile:
    """The built-in profile of a name or a user's file, with `FIELD=VALUE` settings applied.

    A file may name a built-in profile in `base`, whose fields it then changes.

    Raises:
        UserError: an unknown name, a file that cannot be read, a field or value that is not allowed.
    """
    path = Path(name).expanduser()
    if path.suffix in SUFFIXES:
        values = _read(path)
        base = values.pop("base", "slurm")
        profile = from_dict(Profile, _builtin(base).model_dump(mode="json") | values)
    else:
        profile = _builtin(name)
    return with_settings(profile, settings)


def with_settings(profile: Profile, settings: Iterable[str]) -> Profile:
    """A profile with `FIELD=VALUE` settings applied."""
    overrides: dict[str, str] = {}
    for setting in settings:
        field, separator, value = setting.partition("=")
        if not separator:
            raise UserError(f"cluster-set: {setting!r} is not FIELD=VALUE; allowed: e.g. timeout_min=60")
        if field.startswith(("env.", "sbatch.")):  # new names are allowed there
            section, _, key = field.partition(".")
            values = profile.model_dump(mode="json")
            values[section][key] = _flag(value) if section == "sbatch" else value
            profile = from_dict(Profile, values)
            continue
        overrides[field] = value
    return override(profile, overrides)


def _flag(text: str) -> str | bool:
    """Options of sbatch that take no value are given as true."""
    return text == "true" if text in ("true", "false") else text


def _builtin(name: str) -> Profile:
    if name not in PROFILES:
        raise one_of("cluster", name, [*PROFILES, "a .toml or .yaml file"])
    return PROFILES[name]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except OSError as error:
        allowed = "a readable file, or one of " + ", ".join(PROFILES)
        raise UserError(f"cluster: {path} cannot be read ({error.strerror}); allowed: {allowed}") from None
    try:
        values = tomllib.loads(text) if path.suffix == ".toml" else _yaml(text)
    except ValueError as error:
        raise UserError(f"cluster: {path} is not valid {path.suffix[1:].upper()} ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"cluster: {path} holds no fields; allowed: {', '.join(Profile.model_fields)}")
    return values


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def user_sbatch_variables(profile: Profile) -> dict[str, str]:
    """`SBATCH_...` variables of the user's shell that count: those for fields that the profile leaves open.

    sbatch prefers such a variable to the script's own line, so the others would silently replace what was asked for.
    """
    fields = {"SBATCH_PARTITION": "partition", "SBATCH_ACCOUNT": "account", "SBATCH_QOS": "qos"}
    return {n: os.environ[n] for n, field in fields.items() if n in os.environ and getattr(profile, field) is None}
