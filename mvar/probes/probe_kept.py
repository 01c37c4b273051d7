"""Rows of probes that are kept in a folder: each is measured once and written as it is there.

The folder holds a document a probe: what it was measured on, and every row. Other weights, other images or another
version of the probe: measured anew.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from mvar import layout
from mvar.config import RunConfig, identity
from mvar.errors import UserError
from mvar.files import digest, read_json, write_json
from mvar.probes.contract import HALF_WIDTH, Probe, Row
from mvar.probes.measurable import MAX_IMAGES, Measurable
from mvar.probes.subject import Subject
from mvar.progress import Progress
from mvar.registries import PROBES
from mvar.training.numerics import precise

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Probed:
    """What a probe has measured on one model.

    Attributes:
        probe: its name.
        rows: the fields of every case and its values; a value that there is not is None.
        images: at most so many of the model's images were used.
    """

    probe: str
    rows: list[Row]
    images: int

    @property
    def kind(self) -> type[Probe]:
        """The class of the probe."""
        return PROBES.find(self.probe)

    @property
    def tag(self) -> str:
        """The probe's name, with the number of images where it is not the default: only what shares it compares."""
        return self.probe if self.images == MAX_IMAGES else f"{self.probe}-images-{self.images}"


def measure_probe(
    name: str, probe: Probe, what: Measurable, config: RunConfig, folder: Path, progress: Progress | None = None
) -> Probed:
    """The rows of a probe, kept in a folder; what is there already is not measured again, and a killed call goes on.

    Args:
        name: of the probe.
        probe: with its settings.
        what: the model and images of it.
        config: of the run, or what a checkpoint's files say.
        folder: where they are kept.
        progress: called with rows done and in all.

    Raises:
        UserError: something that cannot be measured on this model, or is missing.
    """
    probe.splits, probe.has_fid = what.splits, bool(what.extractor_id)
    cases = list({digest(case): case for case in probe.cases(config)}.values())
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / layout.PROBES_LOCK), precise(what.runtime):
        record = _Record(name, probe, what, config, folder)
        missing = [case for case in cases if not record.has(case)]
        for done, case in enumerate(missing):
            if progress:
                progress(done, len(missing))
            record.add(case)
        if progress and missing:
            progress(len(missing), len(missing))
        return Probed(name, record.rows(cases), what.identity["limit"])


def kept_probe(name: str, kind: type[Probe], what: Measurable, folder: Path) -> Probed | None:
    """All that a probe has measured of exactly this; None where nothing was."""
    found = _read(name, kind, what, folder)
    ours = [row for row in found.values() if _is_judged_so(row, what)]
    rows = [row["case"] | row["values"] for row in ours]
    return Probed(name, rows, what.identity["limit"]) if ours else None


def _is_judged_so(row: Row, what: Measurable) -> bool:
    """Whether a row has no FID, or one as it would be measured now.

    A file of reference that is gone decides nothing: rows against one are then taken for those against it.
    """
    if "extractor_id" not in row:
        return True
    if row["extractor_id"] != what.extractor_id:
        return False
    with suppress(UserError):
        return row.get("reference") == what.judged_by().get("reference")
    return "reference" in row


class _Record:
    """What the folder has, and the model, opened where something is measured."""

    def __init__(self, name: str, probe: Probe, what: Measurable, config: RunConfig, folder: Path) -> None:
        self._name, self._probe, self._what, self._config, self._folder = name, probe, what, config, folder
        self._rows = _read(name, type(probe), what, folder)

    @cached_property
    def _subject(self) -> Subject:
        return Subject(self._what.open(), self._what.identity["batch_size"])

    def has(self, case: Row) -> bool:
        return self._key(case) in self._rows

    def rows(self, cases: Iterable[Row]) -> list[Row]:
        return [case | self._rows[self._key(case)]["values"] for case in cases]

    def add(self, case: Row) -> None:
        """Measure a case, and write all rows."""
        sample = self._probe.sample(case, self._config)
        if sample is not None:
            self._subject.sample = sample
        values = self._probe.measure(case, self._subject)
        self._rows[self._key(case)] = self._about(case) | {"values": values}
        document = {
            "schema_version": SCHEMA_VERSION,
            "probe": self._name,
            "version": self._probe.version,
            "measured": self._what.identity,
            "rows": list(self._rows.values()),
        }
        write_json(_path(self._folder, self._name), document)

    def _key(self, case: Row) -> str:
        return digest(self._about(case))

    def _about(self, case: Row) -> dict[str, Any]:
        """All that decides a row beside what the document is of."""
        sample = self._probe.sample(case, self._config)
        if sample is None:
            return {"case": case}
        return {"case": case, "sample": identity.as_document(sample), **self._judged_by}

    @cached_property
    def _judged_by(self) -> Row:
        return self._what.judged_by()


def _path(folder: Path, name: str) -> Path:
    return folder / layout.PROBES / f"{name}.json"


def _read(name: str, kind: type[Probe], what: Measurable, folder: Path) -> dict[str, Row]:
    """Rows by their keys; a document of something else has none, nor are there damaged rows: measuring mends them."""
    with suppress(FileNotFoundError, UserError, KeyError, TypeError, AttributeError, ValueError):
        document = read_json(_path(folder, name))
        about = (document["schema_version"], document["version"], document["measured"])
        if about == (SCHEMA_VERSION, kind.version, what.identity):
            rows = [row | {"case": _named_today(row["case"], kind)} for row in document["rows"]]
            found = [row for row in rows if _is_sound(row, kind)]
            return {digest({k: v for k, v in row.items() if k != "values"}): row for row in found}
    return {}


def _named_today(case: Row, kind: type[Probe]) -> Row:
    return {**kind.ADDED, **{kind.FORMER.get(name, name): value for name, value in case.items()}}


def _is_sound(row: Row, kind: type[Probe]) -> bool:
    """Whether a row has all fields, each a JSON value that is no object, and of its values only numbers and nothing."""
    case, values = row["case"], row["values"]
    fields, names = ({shown.name for shown in of} for of in (kind.fields, kind.values))
    if not (fields <= case.keys() and names <= values.keys()) or any(isinstance(case[name], dict) for name in fields):
        return False
    measured = [values.get(part) for name in names for part in (name, name + HALF_WIDTH)]
    axis = [case[name] for name in {kind.axis or kind.fields[0].name} & fields]
    return all(value is None or _is_number(value) for value in (*measured, *axis))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
