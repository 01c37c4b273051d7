"""What a probe is: a name in `mvar.registries.PROBES`; it says what it measures on a trained model, row by row.

A row is a *case*, what is measured, and its values. Every row is kept as it is there (`mvar.probes.probe_kept`), so a
killed call goes on, and a new case costs what it takes itself. Tables, figures and the command line know no probe.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from mvar.config import Config, RunConfig, SampleConfig, override
from mvar.data.sources.contract import Split
from mvar.errors import UserError, one_of
from mvar.probes.measurable import SPLITS
from mvar.registries import PROBES

if TYPE_CHECKING:
    from mvar.probes.subject import Subject

Row = dict[str, Any]  # JSON values by name
HALF_WIDTH = "_half_width"  # of a value, after its name


class Shown(NamedTuple):
    """A field of a case or a value, as tables and axes name it."""

    name: str
    label: str
    decimals: int = 3
    is_plotted: bool = True  # a value that has a panel of its own in the figure
    better: Literal["", "lower", "higher"] = ""  # of a value that models are judged by, one against another


class Probe(ABC):
    """A measurement of a trained model, made of rows.

    A definition that changes gets the next `version`: rows of another one are measured again.

    Args:
        settings: an instance of the class's `Settings`; None where it has none.
    """

    version: ClassVar[int] = 1
    Settings: ClassVar[type[Config] | None] = None
    """What can be chosen of it, `--set NAME=VALUE`: decides which cases there are."""
    FORMER: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Names that its settings and the fields of its cases had before, which stay accepted and read, with today's."""
    ADDED: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Fields of its cases that came later, with what kept rows that lack them were measured by."""
    fields: ClassVar[tuple[Shown, ...]]
    """Of every case, the axis of the figure first; a line of the figure has the same in all others."""
    values: ClassVar[tuple[Shown, ...]]
    """What is measured. A number, or None where there is none; beside `x` may be `x_half_width`, half of the 95 %
    interval over images."""
    axis: ClassVar[str] = ""
    """What the figure has along its axis, a field or a value; empty: the first field."""
    splits: tuple[Split, ...] = SPLITS
    """Whose images there are of the model that is measured: those of training, if any, first."""
    has_fid: bool = True
    """Whether something judges images that are drawn with it."""

    def __init__(self, settings: Any = None) -> None:
        self.settings = settings

    @abstractmethod
    def cases(self, config: RunConfig) -> list[Row]:
        """What is measured on a model, in order: JSON values of all `fields`; no weights are read for that.

        A case that is there twice is measured once; a field that is None in all of them is left out of tables.

        Raises:
            UserError: a setting that this model has not, or that nothing can be measured on it.
        """

    def sample(self, case: Row, config: RunConfig) -> SampleConfig | None:
        """How images are drawn for a case; None: none are."""
        return None

    @abstractmethod
    def measure(self, case: Row, subject: "Subject") -> Row:
        """The `values` of a case, the same every time.

        Args:
            case: one of `cases`.
            subject: the model and its images; `subject.sample` is what `sample` gives.
        """

    @classmethod
    def about(cls) -> str:
        """The first line of its docstring."""
        return ((cls.__doc__ or "").strip().splitlines() or [""])[0]


def make_probe(name: str, settings: Mapping[str, Any]) -> Probe:
    """A probe by its name.

    Args:
        name: a registered one.
        settings: by name; texts are read as the fields want them.

    Raises:
        UserError: an unknown probe or setting, or a value that is not allowed.
    """
    kind: type[Probe] = PROBES.find(name)
    if kind.Settings is None:
        if settings:
            raise UserError(f"{next(iter(settings))}: probe {name!r} has no settings")
        return kind()
    values: dict[str, Any] = {}
    for given, value in settings.items():
        today = kind.FORMER.get(given, given)
        if today not in kind.Settings.model_fields:
            raise one_of(f"probe {name}: setting", given, kind.Settings.model_fields)
        if today in values:
            raise UserError(f"{given}: is {today}, which is given too; allowed: {today}")
        values[today] = value
    return kind(override(kind.Settings(), values))


def check_split(split: str, splits: Sequence[str]) -> None:
    """Refuse images that a model does not come with.

    Raises:
        UserError: training images of a checkpoint, or a name that is none.
    """
    if split not in SPLITS:
        raise one_of("of", split, splits)
    if split not in splits:
        raise UserError(f"of: {split}; a checkpoint has no training images; allowed: {', '.join(splits)}")


def check_scales(name: str, wanted: tuple[int, ...], lowest: int, highest: int) -> None:
    """Refuse numbers that a model's schedule has not.

    Raises:
        UserError: names the first.
    """
    for number in wanted:
        if not lowest <= number <= highest:
            raise UserError(f"{name}: {number}; allowed: {lowest} to {highest}")
