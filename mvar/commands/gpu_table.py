"""What `mvar plan --on` says: what runs take on given GPUs, and which settings fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvar.cluster.profiles import SUFFIXES, load_profile, profile_names
from mvar.commands.console import wide_console
from mvar.commands.narrow import Narrow
from mvar.config import RunConfig
from mvar.errors import OK, USER_ERROR, UserError, complain, counted, say
from mvar.files import read_json
from mvar.runs.at_hand import no_room_to_draw
from mvar.runs.gpu_plan import (
    GB,
    Setting,
    disk_gb,
    fewest,
    gpu_hours,
    gpus_needed,
    most_drawn,
    opened,
    settle,
    shared_gb,
    smallest,
    told_nearest,
)
from mvar.runs.gpus import Machine
from mvar.runs.request import Request, unique
from mvar.runs.store import Store
from mvar.training.counted_scan import SAID, scan_of
from mvar.training.drawing_footprint import drawing, encoding

PATTERNS = {"VAR": "global", "M-VAR": "intra+mamba"}  # of the models that `make gpu` trains
ASSUMED = 0.4  # of a card's rate, by models of this size with torch's kernels


@dataclass(frozen=True)
class Share:
    """Of the cards' rate, what training reaches (MFU), and how that is known."""

    mfu: float
    told: str
    measured: Mapping[str, float] = field(default_factory=dict)  # of each model that was, by its pattern

    def of(self, pattern: str) -> float:
        """What a model of this pattern reaches: as it was measured, else the lowest."""
        return self.measured.get(pattern, self.mfu)

    @classmethod
    def parse(cls, text: str) -> "Share":
        """A number, or the file that `make gpu` has written; empty: what is assumed.

        Raises:
            UserError: no share, or a file without one.
        """
        allowed = "allowed: above 0, up to 1, or the JSON file of `make gpu`"
        if Path(text).suffix == ".json":
            try:
                result = read_json(text)
                rows = (row for row in result["parts"]["training"] if not row.get("compiled"))
                found = {row["model"]: float(row["mfu"]) for row in rows if row.get("mfu")}
                by_pattern = {PATTERNS[model]: mfu for model, mfu in found.items() if model in PATTERNS}
                told = f"measured on {result['machine']['gpu']}"
                if settings := result.get("settings"):
                    told += f" of training in {settings['precision']}, {settings['train_batch']} images a step"
                share = cls(min(found.values()), told, by_pattern)
            except FileNotFoundError:
                raise UserError(f"mfu: no file {text!r}; {allowed}") from None
            except (KeyError, TypeError, ValueError, AttributeError):
                raise UserError(f"mfu: {text} has no training that was measured on a GPU; {allowed}") from None
        else:
            try:
                share = (
                    cls(float(text), "as given, not measured here") if text else cls(ASSUMED, "assumed, not measured")
                )
            except ValueError:
                raise UserError(f"mfu: {text!r:.60} is no share; {allowed}") from None
        if not 0 < share.mfu <= 1:
            raise UserError(f"mfu: {share.mfu:g} is no share; {allowed}")
        return share


@dataclass(frozen=True)
class OnGpus:
    """One run on a machine."""

    name: str
    pattern: str
    parameters: int
    training_flops: int
    fits_on: int | None  # the fewest of these GPUs that do, eight images each if that can be
    is_planned: bool  # `mvar run` gives it no fewer than those; else one GPU, whatever it fits on
    setting: Setting | None  # of all of them; None: nothing fits
    mfu: float  # of the cards' rate, what GPU-hours rest on
    gpu_hours: float | None
    disk_gb: float  # at most
    least_gb: float  # the least that a step takes of a card here
    gpus_needed: int | None  # where nothing fits: the fewest such cards that would do
    would_fit: Setting | None  # where nothing fits of what the run leaves open: what does on all of them
    sample_batch: int  # images that each GPU draws at once; 0: not one fits
    sampling_gb: float  # that drawing them takes of a card, or drawing one
    encoding_gb: float  # that writing tokens of images takes of a card
    scan: str | None  # back end of Mamba's scan that `setting` is counted with; None: it has none
    no_room_to_draw: str = ""  # why they cannot be drawn here

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        settings = {"setting": self.setting, "would_fit": self.would_fit}
        return {**vars(self), **{name: found and vars(found) for name, found in settings.items()}}


def machine_of(text: str) -> Machine:
    """`8xh100-80gb`, or a profile's name or file: all GPUs that it gives a run.

    Raises:
        UserError: neither; a profile without GPUs, or that does not say what they are.
    """
    if text in profile_names() or Path(text).suffix in SUFFIXES:
        return load_profile(text).machine()
    return Machine.parse(text)


def runs_on(requests: Sequence[Request], store: Store, machine: Machine, share: Share) -> list[OnGpus]:
    """Every run once, by its training: evaluations of the same one share it."""
    return [_on(evaluations, store, machine, share) for evaluations in _trainings(requests, store)]


def _trainings(requests: Sequence[Request], store: Store) -> list[list[RunConfig]]:
    """The evaluations of every training."""
    found: dict[str, list[RunConfig]] = {}
    for config in unique(store.as_stored(config) for request in requests for config in request.configs()):
        found.setdefault(config.key, []).append(config)
    return list(found.values())


def caches_gb(requests: Sequence[Request], store: Store) -> float | None:
    """Disk for what runs share; None where it cannot be told yet."""
    return shared_gb((config for evaluations in _trainings(requests, store) for config in evaluations), store)


def _on(evaluations: Sequence[RunConfig], store: Store, machine: Machine, share: Share) -> OnGpus:
    from mvar.cost import num_params, train_flops

    config = evaluations[0]
    mfu = share.of(config.model.pattern)
    setting, images = settle(config, machine), most_drawn(config, machine)
    sampling_gb = drawing(config, max(1, images)) / GB
    return OnGpus(
        name=store.run_of(config).name,
        pattern=config.model.pattern,
        parameters=num_params(config.model, config.token_space),
        training_flops=train_flops(config.model, config.token_space, config.train.steps * config.train.batch_size),
        fits_on=fewest(config, machine, range(1, machine.gpus + 1)),
        is_planned=config.is_planned,
        setting=setting,
        mfu=mfu,
        gpu_hours=gpu_hours(config, machine, setting, mfu) if setting else None,
        disk_gb=disk_gb(evaluations),
        least_gb=smallest(config, machine.gpus).peak / 1e9,
        gpus_needed=None if setting else gpus_needed(config, machine),
        would_fit=None if setting else settle(opened(config), machine),
        sample_batch=images,
        sampling_gb=sampling_gb,
        encoding_gb=encoding(config) / GB,
        scan=scan_of(config),
        no_room_to_draw="" if sampling_gb <= machine.limit_gb else str(no_room_to_draw(config, machine)),
    )


def print_on(runs: Sequence[OnGpus], machine: Machine, share: Share, caches: float | None) -> None:
    """The table, its sums, and what is assumed; `caches`: as `caches_gb`."""
    setting = f"on {machine.gpus} GPUs with"
    columns: dict[str, Sequence[str]] = {
        "pattern": [run.pattern for run in runs],
        "parameters": [f"{run.parameters:,}" for run in runs],
        "training FLOPs": [f"{run.training_flops:.3g}" for run in runs],
        "fits on": [str(run.fits_on or "-") for run in runs],
        "peak GB": [f"{run.setting.peak_gb:.1f}" if run.setting else "-" for run in runs],
        "encoding GB": [f"{run.encoding_gb:.1f}" for run in runs],
        "sampling GB": [f"{run.sampling_gb:.1f} ({run.sample_batch or 1} at once)" for run in runs],
        "GPU-hours": ["-" if run.gpu_hours is None else f"{run.gpu_hours:,.0f}" for run in runs],
        "disk GB": [f"{run.disk_gb:,.0f}" for run in runs],
        setting: [
            run.setting.fields.replace("runtime.", "") if run.setting else _nearest(run, machine) for run in runs
        ],
    }
    dispensable = ("pattern", "training FLOPs", "parameters", "disk GB", "encoding GB", "fits on", "sampling GB")
    narrow = Narrow("run", dispensable, {"pattern": 10, setting: 27})
    console = wide_console(400)
    console.print(narrow.table([run.name for run in runs], columns, console))
    if too_large := [run.name for run in runs if not run.is_planned and (run.fits_on or 1) > 1]:
        told = "no fit on one GPU, and `mvar run` gives no more to a run whose runtime leaves nothing open"
        say(f"{', '.join(too_large)}: {told}; with --set runtime.micro_batch=auto as many as it then fits on")
    hours, disk = sum(run.gpu_hours or 0 for run in runs), sum(run.disk_gb for run in runs)
    flops = sum(run.training_flops for run in runs)
    told = "token caches aside: the data were not looked at yet"
    if caches is not None:
        told = f"{caches:,.2f} GB of token caches and of what near-copies are searched in"
    say(
        f"{len(runs)} runs, {flops:.3g} training FLOPs, {hours:,.0f} GPU-hours, {hours / machine.gpus:,.0f} hours on "
        f"{machine.gpus} GPUs, at most {disk:,.0f} GB of checkpoints, weights and images; {told}"
    )
    half, fp32, by_tf32 = (
        f"{machine.flops_per_s(precision, tf32) / 1e12:,.0f}"
        for precision, tf32 in (("bf16", False), ("fp32", False), ("fp32", True))
    )
    told_scan = " and ".join(sorted({SAID[run.scan] for run in runs if run.scan}))
    mfus = " or ".join(sorted({f"{run.mfu:.0%}" for run in runs}))
    say(
        f"{share.told}: {mfus} of {half} TFLOP/s a card (fp32: {fp32}, or {by_tf32} with runtime.tf32=true); "
        "the same is taken of any precision and batch, and of encoding; "
        "training alone, no sampling; with tokens=online also encoding, in fp32. Peaks are counted"
        f"{told_scan and f', {told_scan}'}; limit {machine.limit_gb:.1f} of "
        f"{machine.memory_gb:g} GB. Where runtime says auto, a run has what the plan says for the GPUs that it is given"
    )


def _nearest(run: OnGpus, machine: Machine) -> str:
    return f"nothing: {_told(run, machine)}"


def _told(run: OnGpus, machine: Machine) -> str:
    told = told_nearest(run.least_gb, machine, run.gpus_needed)
    return f"{told}; {run.would_fit.fields} would do here" if run.would_fit else told


def exit_code_of(runs: Sequence[OnGpus], machine: Machine) -> int:
    """2 where a run fits nowhere on the machine, with a line of what would do for the largest of them; or where its
    images cannot be drawn there, or encoded."""
    misfits = [run for run in runs if not run.setting]
    if not misfits:
        said = next((f"{run.name}: {why}" for run in runs if (why := _no_room_beside(run, machine))), "")
        return complain(f"on: {said}", USER_ERROR) if said else OK
    largest = max(misfits, key=lambda run: run.least_gb)
    told = f"{len(misfits)} of {counted(len(runs), 'run')} do not fit; {largest.name} needs"
    return complain(f"on: {told} {_told(largest, machine)}", USER_ERROR)


def _no_room_beside(run: OnGpus, machine: Machine) -> str:
    """Why a run that can be trained cannot be made: its images have no room on a card; else empty."""
    if run.no_room_to_draw or run.encoding_gb <= machine.limit_gb:
        return run.no_room_to_draw
    told = f"writing tokens of images takes {run.encoding_gb:.1f} GB, limit {machine.limit_gb:.1f}"
    return f"tokenizer: {told}; allowed: larger GPUs"
