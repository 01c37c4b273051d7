"""`mvar data check`: what a data set holds, and what is wrong with it, before anything is trained on it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from mvar import layout
from mvar.commands.options import File, InResults, Settings
from mvar.commands.plugged import Plugged
from mvar.errors import FAILURE, OK, UserError, counted, say
from mvar.files import check_place

if TYPE_CHECKING:
    from mvar.config import DataConfig
    from mvar.data.checking import Checked, Part

SHOWN = 10  # names of broken pictures, and groups of duplicates
SIZES = 3  # of pictures, the most frequent
PLACE = "data.image_size"  # the tokenizer's; no picture is prepared here


@dataclass(frozen=True)
class Data(Plugged, InResults):
    """Look at every picture of a data set: counts, sizes, modes, broken files, duplicates, classes.

    Example: `mvar data check ~/pictures --decode`
    """

    action: tyro.conf.Positional[Literal["check"]]
    """check: the one thing to do."""
    source: tyro.conf.Positional[str]
    """A folder of class subfolders, or the name of a data source (fashion, tar, ...), with --set data.root=DIR."""
    set: Settings = ()
    """FIELD=VALUE ...: fields of the data, e.g. data.root=DIR data.tar.label=json."""
    decode: bool = False
    """Decode every picture; else headers are read, and damage behind them is not found."""
    checkpoint: File = ""
    """A generator whose number of classes the data must have."""
    record: File = ""
    """File that keeps what was looked at, so that the same command goes on; default: in the results."""

    def execute(self, arguments: list[str]) -> int:
        """Look, and say what was found; the exit code is 1 where something is broken."""
        from mvar.data.checking import check_id, check_pictures, open_whole
        from mvar.data.sources.contract import find
        from mvar.runs.display import shown

        config = self._config()
        config, opened = open_whole(config)
        classes = len((opened.train or opened.heldout).class_names)  # pyright: ignore[reportOptionalMemberAccess]
        wrong_classes = self._compare(classes)
        decode = self.decode or find(config.name).in_memory
        name = f"{config.name}-{check_id(config.model_dump(mode='json'), decode)}"
        record = Path(self.record) if self.record else self.results / layout.CHECKS / name
        if self.record:
            check_place("record", record)
        with shown("data", "looking at the pictures") as progress:
            found = check_pictures(opened, decode, record, progress)
        for line in report(config, found, decode):
            say(line)
        if wrong_classes:
            say(wrong_classes)
        broken = sum(len(part.broken) for part in found.parts.values())
        return FAILURE if broken or wrong_classes else OK

    def _config(self) -> "DataConfig":
        from mvar.config import RunConfig, override
        from mvar.config.parsing import parse_overrides
        from mvar.registries import SOURCES

        values = dict(parse_overrides(setting for group in self.set for setting in group))
        if wrong := [name for name in values if not name.startswith("data.")]:
            raise UserError(f"set: {wrong[0]} is no field of the data; allowed: data.NAME=VALUE")
        values.pop(PLACE, None)
        if self.source in SOURCES:
            return override(RunConfig(), {"data.name": self.source, **values}).data
        if not Path(self.source).expanduser().is_dir():
            allowed = ", ".join(SOURCES.names())
            raise UserError(f"source: {self.source!r} is no folder and no data source; allowed: a folder, or {allowed}")
        base = {"data.name": "imagefolder", "data.root": self.source, "data.reading": "2"}
        return override(RunConfig(), {**base, **values}).data

    def _compare(self, classes: int) -> str:
        """Say where a checkpoint has another number of classes."""
        if not self.checkpoint:
            return ""
        from mvar.checkpoints.checkpoint_files import read_checkpoint
        from mvar.checkpoints.published import infer_generator

        facts = infer_generator(read_checkpoint(self.checkpoint, "generator", ""))
        theirs = facts.space.num_classes
        if theirs == classes:
            return ""
        return f"classes: the data have {classes:,}, {self.checkpoint} {theirs:,}; allowed: equally many"


def report(config: "DataConfig", found: "Checked", decode: bool) -> "Iterable[str]":
    """What was found, as lines."""
    from mvar.data.sources.contract import find

    yield f"data: {find(config.name).shown(config)}"
    for split, part in found.parts.items():
        yield from _part_lines(split, part)
    if len(found.parts) > 1:
        yield f"held-out images that are also training images: {found.shared:,}"
    if not decode:
        yield "headers were read alone; --decode finds what is broken behind them"


def _part_lines(split: str, part: "Part") -> "Iterable[str]":
    counts = list(part.classes.values())
    of_each = f"{min(counts):,} to {max(counts):,} of each"
    yield f"{split}: {counted(part.images, 'image')} of {counted(len(counts), 'class')}, {of_each}"
    if part.sizes:
        common = [f"{width} x {height}: {count:,}" for (width, height), count in part.sizes.most_common(SIZES)]
        more = f", ... ({len(part.sizes):,} sizes)" if len(part.sizes) > SIZES else ""
        yield f"  pixels {', '.join(common)}{more}"
        yield "  modes " + ", ".join(f"{mode} {count:,}" for mode, count in sorted(part.modes.items()))
    yield f"  broken: {len(part.broken):,}"
    yield from (f"    {line}" for line in part.broken[:SHOWN])
    copies = sum(len(group) - 1 for group in part.duplicates)
    yield f"  duplicates: {copies:,}"
    yield from (f"    {' = '.join(group[:SHOWN])}" for group in part.duplicates[:SHOWN])
    if part.fingerprint:
        yield f"  pixels' fingerprint: {part.fingerprint}"
