"""A grid or a single run of one's own, from the words of a command and what earlier ones have asked for."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mvar.errors import UserError, did_you_mean, one_of, quoted
from mvar.presets import PRESETS

if TYPE_CHECKING:
    from mvar.config import RunConfig
    from mvar.runs.config_file import ConfigFile
    from mvar.runs.experiment import Experiment
    from mvar.runs.grid import Grid
    from mvar.runs.request import Request
    from mvar.runs.store import Store

HOW = "--grid FIELD=VALUE,VALUE --name NAME, or --config FILE"


def kept_grids(store: "Store") -> dict[str, list[dict[str, Any]]]:
    """The manifests of one's own grids and single runs, by name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for manifest in store.manifests():
        if manifest.get("grid"):
            found.setdefault(manifest["sweep"], []).append(manifest)
    return found


def own_name(
    sweeps: Sequence[str], names: Sequence[str], grid: Sequence[str], file: "ConfigFile | None", kept: Iterable[str]
) -> str:
    """What a grid or run of one's own is called; empty where sweeps are asked for by their names.

    Args:
        sweeps, names, grid, file: what was given as sweep, `--name`, `--grid` and `--config`.
        kept: names that earlier commands have given.

    Raises:
        UserError: two names, a name beside a sweep, a grid without one, or nothing at all.
    """
    from mvar.runs.experiment import experiment_names, is_experiment
    from mvar.runs.grid import check_name

    if len(names) > 1:
        raise UserError(f"name: {', '.join(map(repr, names))} are {len(names)} names; allowed: one")
    if sweeps:
        if names or grid:
            what = f"name: {names[0]!r}" if names else f"grid: {grid[0]!r}"
            raise UserError(f"{what} beside sweep {sweeps[0]!r}; allowed: either sweeps, or {HOW}")
        ours = [name for name in sweeps if name in kept and not is_experiment(name)]
        if ours and len(sweeps) > 1:
            raise UserError(f"sweep: {ours[0]!r} is a grid of your own, beside others; allowed: by itself")
        return ours[0] if ours else ""
    if names:
        return check_name(names[0])
    if grid:
        raise UserError("name: none given for the grid; allowed: --name NAME, by which it is called from then on")
    if file is None:
        raise UserError(f"sweep: none given; allowed: {', '.join(experiment_names())}; or {HOW}")
    stem = re.sub("[^a-z0-9_-]+", "-", file.stem.lower()).strip("-")
    return check_name((stem if re.match("[a-z]", stem) else f"run-{stem}".strip("-"))[:32])


def as_kept(file: "ConfigFile", kept: Mapping[str, Sequence[Mapping[str, Any]]]) -> "tuple[str, ConfigFile]":
    """Of a run's own config the name of the single run that it was asked for as, and the file beside that preset.

    An empty name where nobody has asked for it so.
    """
    for name, manifests in kept.items() if file.whole else ():
        for manifest in manifests:
            runs = {run for cell in manifest["cells"] for run in cell["run_ids"]}
            if not manifest["grid"]["axes"] and file.path.parent.name in runs and manifest["preset"] in PRESETS:
                return name, file.beside(manifest["preset"])
    return "", file


def check_no_runs(store: "Store", sweeps: Iterable[str]) -> None:
    """Refuse a run in the place of a sweep, and say how it is asked for.

    Raises:
        UserError: one of the names is that of a run, or a directory of one.
    """
    from mvar.runs.experiment import is_experiment

    for name in sweeps:
        if not is_experiment(name) and (found := store.fitting(name)):
            given = f"--config {found[0].path}" if len(found) == 1 else f"--config {found[0].path.parent}/RUN"
            raise UserError(f"sweep: {quoted(name)} is a run; allowed: {given}, which is that run again")


def kept_request(name: str, kept: Sequence[Mapping[str, Any]], mode: str) -> Mapping[str, Any] | None:
    """The manifest that a name alone means, one of this mode before others; None where there is none.

    Raises:
        UserError: it was asked for with several settings; lists them.
    """
    found = [manifest for manifest in kept if manifest["mode"] == mode] or list(kept)
    if len(found) > 1:
        told = "; ".join(" ".join([f"--preset {m['preset']}", *_settings(m)]) for m in found)
        raise UserError(f"name: {name!r} was asked for with several settings; allowed: say which: {told}")
    return found[0] if found else None


def _settings(manifest: Mapping[str, Any]) -> list[str]:
    settings = [f"{name}={value}" for name, value in manifest["overrides"].items()]
    return ["--set", *settings] if settings else []


@dataclass(frozen=True)
class Words:
    """What was typed of a grid, and what there is of its name."""

    name: str
    grid: Sequence[str]
    baseline: str
    kept: Sequence[Mapping[str, Any]]
    is_file: bool  # whether --config names a single run
    fields: Collection[str] = ()  # of --set

    def request(self, store: "Store", draft: "Request", names: Iterable[str]) -> "Request":
        """The request: a new grid, one of before with the values of now, or a single run.

        Args:
            store: where earlier requests are kept.
            draft: the request but for its experiment.
            names: of all grids that are kept, for the message of an unknown one.

        Raises:
            UserError: as `mvar.runs.grid`; a name that is not known; a field that is set and varied.
        """
        from mvar.runs.documents import read_or_empty
        from mvar.runs.grid import Grid, read_grid
        from mvar.runs.request import manifest_path

        before = [Grid.of_document(self.name, manifest["grid"]) for manifest in self.kept]
        for grid in before:
            self._check_fields(grid)
        if not self.grid and not (self.is_file and not before):
            return self._again(draft, before, names)
        asked = Grid(self.name, read_grid(self.grid, draft.config)).with_baseline(self.baseline)
        self._check_fields(asked)
        for grid in before:
            grid.extended(replace(asked, baseline=""), draft.config)
        request = replace(draft, sweep=_experiment(asked, draft.config))
        there = read_or_empty(manifest_path(store, request)).get("grid")
        if not there:
            return request
        whole, labels = Grid.of_document(self.name, there).extended(asked, draft.config)
        only = () if len(labels) == len(whole.labels()) else labels
        return replace(draft, sweep=_experiment(whole, draft.config), only=only)

    def _check_fields(self, grid: "Grid") -> None:
        """Refuse a single value of what a grid varies: its cells would have theirs all the same."""
        if both := [axis.field for axis in grid.axes if axis.field in self.fields]:
            raise UserError(
                f"set: {both[0]}: the grid {self.name!r} varies it; allowed: its values in --grid alone, or --only for "
                "one of its rows"
            )

    def _again(self, draft: "Request", before: Sequence[Any], names: Iterable[str]) -> "Request":
        from mvar.runs.grid import Grid

        if not before:
            if known := sorted(names):
                raise one_of("name", self.name, known)
            raise UserError(f"name: {self.name!r} is unknown; allowed: {HOW}")
        if self.is_file and before[0].axes:
            before[0].extended(Grid(self.name), draft.config)  # says that it is a grid
        return replace(draft, sweep=_experiment(before[0].with_baseline(self.baseline), draft.config))


def _experiment(grid: Any, config: "RunConfig") -> "Experiment":
    """A grid as an experiment, every cell of which is sound."""
    from mvar.runs.launch.bounds import check_launched

    found = grid.experiment()
    for cell in found.cells(config):
        check_launched(cell.config, cell.axes)
    return found


def chosen(requests: "Sequence[Request]", only: Sequence[str]) -> "list[Request]":
    """Of each request the cells of these labels; of those that have none, nothing.

    What labels have before their first comma, as "intra+conv" of "intra+conv, the preset's width", chooses all of them.

    Raises:
        UserError: an unknown label; names the nearest, and lists them.
    """
    if not only:
        return list(requests)
    labels = {
        request.sweep.name: [cell.label for cell in request.cells() if request.is_chosen(cell)] for request in requests
    }
    known = list(dict.fromkeys(label for found in labels.values() for label in found))
    beginnings = {label.partition(", ")[0] for label in known} - {*known}
    for label in only:
        if label not in known and label not in beginnings:
            hint = did_you_mean(label, [*known, *sorted(beginnings)])
            raise UserError(f"only: {quoted(label)} is no row of it{hint}; allowed: {'; '.join(known)}")
    begun = beginnings.intersection(only)
    wanted = {
        name: tuple(label for label in found if label in only or label.partition(", ")[0] in begun)
        for name, found in labels.items()
    }
    return [replace(request, only=wanted[request.sweep.name]) for request in requests if wanted[request.sweep.name]]
