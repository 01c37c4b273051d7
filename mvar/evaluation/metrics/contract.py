"""What a metric is: a name in `mvar.registries.METRICS`, a version, what it needs, the keys that it gives.

Nothing here imports torch: what is missing of a run is known before anything is computed.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from fnmatch import fnmatchcase
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

from mvar.errors import FAILURE, UserError, one_of, quoted
from mvar.registries import METRICS

if TYPE_CHECKING:
    from mvar.config import RunConfig
    from mvar.evaluation.metrics.inputs import Inputs

NEEDS = {
    "samples": "the drawn images and their classes",
    "reference": "what samples are compared with: the held-out images, or those of a file of reference",
    "heldout": "the held-out images",
    "features": "features and logits of samples and reference, by the evaluation's extractor",
    "spatial": "statistics of spatial features of samples and reference, by the same",
    "train": "all training images",
    "weights": "the generator, and the quantizer of its tokenizer",
    "tokens": "the held-out images as tokens, and their classes",
}
DRAWN = frozenset({"samples", "features", "spatial"})  # what is gone once a run's images are deleted
KEY = re.compile(r"eval/[a-z][a-z0-9_]*")


class BadValue(UserError):
    """What a metric gave is no finite number, or has another key than it says."""

    exit_code = FAILURE


class Metric(ABC):
    """A metric, or a family that is computed together.

    A definition that changes gets the next `version`: values of two versions are never compared, and those of the old
    one are kept.

    Args:
        settings: an instance of the class's `Settings`, from the section `evaluation.NAME`; None where it has none.
    """

    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]]
    """Of `NEEDS`; what is not named cannot be read."""
    keys: ClassVar[tuple[str, ...]]
    """What it gives, e.g. `("eval/fid",)`; the first one says whether a record has the metric."""
    also: ClassVar[tuple[str, ...]] = ()
    """More keys, or patterns of them such as `eval/error_scale_*`, that it gives where they apply."""
    lower: ClassVar[tuple[str, ...]] = ()
    """Keys of which less is better."""
    higher: ClassVar[tuple[str, ...]] = ()
    """Keys of which more is better."""

    def __init__(self, settings: Any = None) -> None:
        self.settings = settings

    @classmethod
    def applies(cls, config: "RunConfig") -> bool:
        """Whether runs of a config have this metric."""
        return True

    @classmethod
    def by_default(cls, config: "RunConfig") -> bool:
        """Whether runs of a config have it unasked; one that does not is named in `evaluation.also`.

        Ours that came after the first version are such: what was finished without them stays finished.
        """
        return True

    @abstractmethod
    def compute(self, inputs: "Inputs") -> Mapping[str, float]:
        """Its values by key: finite numbers, the same every time.

        Args:
            inputs: what it `needs`, read or computed once for all metrics.

        Raises:
            UserError: inputs that it cannot measure; the other metrics are computed all the same.
        """

    @classmethod
    def check_class(cls, name: str) -> None:
        """Refuse what could not be measured or kept apart.

        Args:
            name: that the metric has, or is about to get.

        Raises:
            UserError: it needs what there is not, its version is no number, it gives a key that another metric gives.
        """
        _check(name, cls)
        for other in METRICS.names():
            if other != name:
                _check_apart(name, cls, other, METRICS.find(other))

    @classmethod
    def about(cls) -> str:
        """The first line of its docstring."""
        return ((cls.__doc__ or "").strip().splitlines() or [""])[0]

    @classmethod
    def gives(cls, key: str) -> bool:
        """Whether a key is one of its own."""
        return any(fnmatchcase(key, own) for own in (*cls.keys, *cls.also))


def every_metric() -> dict[str, type[Metric]]:
    """All metrics that there are, ours first.

    Raises:
        UserError: a class that is no metric, needs what there is not, or gives a key that another one gives.
    """
    found: dict[str, type[Metric]] = {}
    for name in METRICS.names():
        kind = METRICS.find(name)
        _check(name, kind)
        for other, there in found.items():
            _check_apart(name, kind, other, there)
        found[name] = kind
    return found


def _check_apart(name: str, kind: type[Metric], other: str, there: type[Metric]) -> None:
    if clash := next((key for key in (*kind.keys, *kind.also) if _given(key, there)), ""):
        raise UserError(f"metric: {name!r} gives {clash}, which metric {other!r} gives; allowed: another key")


def _given(key: str, kind: type[Metric]) -> bool:
    return kind.gives(key) or any(fnmatchcase(own, key) for own in (*kind.keys, *kind.also))


def _check(name: str, kind: Any) -> None:
    if not (isinstance(kind, type) and issubclass(kind, Metric)):
        raise UserError(f"metric: {name!r} is no subclass of mvar.Metric; allowed: one")
    for needed in getattr(kind, "needs", ()):
        if needed not in NEEDS:
            raise one_of(f"metric {name!r}: needs", needed, NEEDS)
    if type(kind.version) is not int or kind.version < 1:
        raise UserError(f"metric {name!r}: version {quoted(kind.version)}; allowed: a whole number from 1 on")
    keys = getattr(kind, "keys", ())
    if not hasattr(kind, "needs") or not isinstance(keys, tuple) or not keys:
        raise UserError(f"metric {name!r}: says no `needs` or no `keys`; allowed: tuples, e.g. ('eval/{name}',)")
    for key in (*keys, *(pattern.replace("*", "x") for pattern in kind.also)):
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise UserError(f"metric {name!r}: key {quoted(key)}; allowed: eval/ and small letters, digits, _")


def checked(name: str, kind: type[Metric], values: Any) -> dict[str, float]:
    """What a metric gave, as floats.

    Raises:
        BadValue: not a finite number each, a key that it does not say, or one that it says and does not give.
    """
    if not isinstance(values, Mapping):
        raise BadValue(f"gave {quoted(values)}; allowed: a dict of its keys")
    for key in values:
        if not isinstance(key, str) or not kind.gives(key):
            raise BadValue(f"gave {quoted(key)}, which is not among its keys; allowed: {', '.join(kind.keys)}")
    if lacking := [key for key in kind.keys if key not in values]:
        raise BadValue(f"gave no {', '.join(lacking)}; allowed: all of its keys")
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise BadValue(f"{key} is {quoted(value)}; allowed: a finite number")
    return {key: float(value) for key, value in values.items()}
