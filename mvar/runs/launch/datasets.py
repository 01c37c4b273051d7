"""The data sets of what is asked for, looked at before anything is launched: said in a line, stored once for each.

Which reading of a folder (`DataConfig.reading`) new runs get is decided here: the first where both give the same
images, labels and pixels, so that sound data keep their ids; else the second. A run that there is keeps its own.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvar import layout
from mvar.errors import UserError, say, warn
from mvar.files import expand

if TYPE_CHECKING:
    from mvar.config import DataConfig, RunConfig
    from mvar.data.survey import Survey
    from mvar.runs.request import Request
    from mvar.runs.store import Store

READING, ORDER, CLASSES = "data.reading", "data.class_order", "data.num_classes"


class DataSets:
    """What one command knows of data sets; each is looked at once.

    Args:
        store: where summaries are kept.
        dry_run: nothing is written, and a folder that is not there is a warning.
        stored: the configs are of runs that there are: what is refused today is a warning.
    """

    def __init__(self, store: "Store", dry_run: bool = False, stored: bool = False) -> None:
        self.store, self.dry_run, self.stored = store, dry_run, stored
        self._found: dict[DataConfig, Survey] = {}
        self._order_is_asked = False

    def settled(self, request: "Request") -> "Request":
        """A request with the reading that its data need, and the number of classes that they have (`OWN_IMAGES`)."""
        from mvar.config import override

        values = self._decided(request.config.data, request.overrides, request.preset)
        if not values:
            return request
        return replace(request, config=override(request.config, values), overrides={**request.overrides, **values})

    def settled_config(self, config: "RunConfig", overrides: Iterable[str], preset: str = "") -> "RunConfig":
        """A config of no request, a published checkpoint's say, with the same."""
        from mvar.config import override

        return override(config, self._decided(config.data, overrides, preset))

    def _decided(self, data: "DataConfig", asked: Iterable[str], preset: str) -> dict[str, str]:
        """Fields that the data decide, where they are not asked for and are other ones than the config's."""
        from mvar.presets import OWN_IMAGES

        asked, values = set(asked), {}
        self._order_is_asked |= ORDER in asked
        if preset in OWN_IMAGES and CLASSES not in asked:
            count = self._num_classes(data)
            values = {CLASSES: str(count)} if count != data.num_classes else {}
            data = data.model_copy(update={"num_classes": count})
        if READING not in asked and (reading := self._reading(data)) != data.reading:
            values[READING] = str(reading)
        return values

    def _num_classes(self, data: "DataConfig") -> int:
        """Of the data, where they are here; anything else that is wrong with them is said by `check`."""
        from mvar.data.checking import count_classes
        from mvar.data.sources.contract import find

        with suppress(UserError):
            return data.num_classes if find(data.name).missing(data) else count_classes(data)
        return data.num_classes

    def check(self, configs: Iterable["RunConfig"]) -> None:
        """Look at the data of configs that are about to be made: say what they hold, and store it.

        Raises:
            UserError: a folder that is missing or has no classes; classes that are not those of the config; held-out
                images that lie in the training folder, or most of which are training images; a picture that cannot be
                used.
        """
        from mvar.data.sources.contract import find, open_source
        from mvar.data.splits import check_classes
        from mvar.registries import SOURCES

        for config in {config.data: config for config in configs}.values():
            data = config.data
            missing = find(data.name).missing(data)
            if self.dry_run and missing:
                warn(f"{'; '.join(missing)} is not here; a run would fail, and its classes are not checked")
                continue
            check_classes(data, self.stored, self._order_is_asked)
            if find(data.name).in_memory:
                if data.name in SOURCES.own and not (self.dry_run or self.stored):
                    open_source(data)  # of the user's own: what it gives is looked at before it is trained on
                continue
            try:
                found = self._survey(data)
            except UserError as error:
                if not self.stored:
                    raise
                warn(str(error))
                continue
            if 2 * found.overlap > found.compared and not self.stored:  # no threshold of near-copies could be found
                raise UserError(
                    f"{'data.heldout_root' if data.heldout_root else 'data.root'}: {found.overlap:,} of "
                    f"{found.compared:,} held-out images compared are also training images; allowed: a minority"
                )
            self._say(data, found)
            if not self.dry_run:
                self._write(config, found)

    def _say(self, data: "DataConfig", found: "Survey") -> None:
        say(found.line(data))
        if not found.differs:
            return
        root = expand(data.root or "")
        if data.reading == 1:
            told = "read as by the first version, otherwise than data.reading=2 would"
            warn(f"data.root: {root} is {told}: {found.difference()}; the two are never compared")
        else:
            warn(f"data.root: {root} is read by data.reading=2, with run ids of their own: {found.difference()}")

    def _reading(self, data: "DataConfig") -> int:
        """The reading that new runs on these data get; where the data are not here, that of the results."""
        from mvar.data.sources.contract import find

        if not find(data.name).has_readings or find(data.name).in_memory:
            return data.reading
        try:
            return 2 if not find(data.name).missing(data) and self._survey(data).differs else self._kept_reading(data)
        except UserError:  # said by `check`, where the data are needed
            return self._kept_reading(data)

    def _kept_reading(self, data: "DataConfig") -> int:
        from mvar.data.sources.contract import find

        if not find(data.name).missing(data):
            return 1
        return 2 if not self._document(data, 1) and self._document(data, 2) else 1

    def _survey(self, data: "DataConfig") -> "Survey":
        from mvar.data.survey import survey
        from mvar.runs.display import shown

        key = data.model_copy(update={"reading": 1})
        if key not in self._found:
            known = (self._document(data, reading) for reading in (1, 2))
            with shown("data", "looking at the pictures") as progress:
                self._found[key] = survey(data, known, progress)
        return self._found[key]

    def _path(self, data: "DataConfig", reading: int) -> Path:
        from mvar.config import RunConfig

        config = RunConfig.model_construct(data=data.model_copy(update={"reading": reading}))
        return self.store.stage("data", config.data_id).path / layout.SUMMARY

    def _document(self, data: "DataConfig", reading: int) -> dict[str, Any]:
        """The summary of an earlier command; empty where there is none, or a damaged one."""
        from mvar.runs.store import read_document

        try:
            return read_document(self._path(data, reading))
        except (FileNotFoundError, UserError):
            return {}

    def _write(self, config: "RunConfig", found: "Survey") -> None:
        from mvar.runs.store import write_document

        path = self._path(config.data, config.data.reading)
        document = {"data": config.data.model_dump(mode="json"), **found.document()}
        if {name: self._document(config.data, config.data.reading).get(name) for name in document} != document:
            write_document(path, document)
