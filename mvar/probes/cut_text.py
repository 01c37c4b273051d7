"""What is cut in a model, as a text: `coarser`, `scale:2,queries=3`, `own,layer=0,head=1`, `branch:mamba,kind=mean`."""

import re
from dataclasses import dataclass, fields
from typing import Any

from mvar.errors import UserError, one_of, quoted

TARGETS = {
    "own": "keys of the query's own scale",
    "coarser": "keys of all coarser scales",
    "scale": "keys of scale K",
    "all": "all keys of a head or layer",
    "branch": "what mixer NAME adds to the tokens",
    "state": "the state before scale K, or before every scale",
}
OF_KEYS = ("own", "coarser", "scale", "all")
KINDS = {
    "cut": "keys are masked and the softmax renormalised; a state or a branch is zeros",
    "mean": "what is cut is its mean over the images instead",
    "resample": "what is cut is that of another image instead",
}
FORMS = ("own", "coarser", "scale:K", "all", "branch:NAME", "state", "state:K")
NUMBERS = re.compile(r"\d{1,6}(-\d{1,6}|(\+\d{1,6})*)")


@dataclass(frozen=True)
class Cut:
    """One intervention. `str` gives its text, `parse_cut` reads it.

    Attributes:
        target: of `TARGETS`.
        scale: K of `scale:K` and `state:K`; None: every one.
        mixer: only in mixers of this name; None: in all that have what is cut.
        layers, heads: only there; empty: in all.
        queries: only what queries of this scale see; None: all of them.
        kind: of `KINDS`.
    """

    target: str
    scale: int | None = None
    mixer: str | None = None
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    queries: int | None = None
    kind: str = "cut"

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise one_of("cut", self.target, FORMS)
        if self.kind not in KINDS:
            raise one_of(f"cut {quoted(self.text)}: kind", self.kind, KINDS)
        lacking = self.target == "branch" and self.mixer is None
        if lacking or (self.target == "scale" if self.scale is None else self.target not in SCALED):
            raise UserError(f"cut: {quoted(self.text)}; allowed: {', '.join(FORMS)}")
        for name in ("heads", "queries"):
            if self.target not in OF_KEYS and getattr(self, name) not in ((), None):
                told = f"{OPTIONS[name]}: only for keys; allowed: with {', '.join(OF_KEYS)}"
                raise UserError(f"cut {quoted(self.text)}: {told}")

    @property
    def text(self) -> str:
        """As `parse_cut` reads it, shortest."""
        value = self.mixer if self.target == "branch" else self.scale
        parts = [self.target if value is None else f"{self.target}:{value}"]
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            if value in (None, ()) or (name, value) == ("kind", "cut") or (name == "mixer" and self.target == "branch"):
                continue
            parts.append(f"{option}={'+'.join(map(str, value)) if isinstance(value, tuple) else value}")
        return ",".join(parts)

    __str__ = text.fget  # pyright: ignore[reportAssignmentType]


SCALED = ("scale", "state")
OPTIONS = {"mixer": "mixer", "layers": "layer", "heads": "head", "queries": "queries", "kind": "kind"}
assert set(OPTIONS) < {field.name for field in fields(Cut)}


def parse_cut(text: str) -> Cut:
    """The cut that a text stands for.

    Raises:
        UserError: no such target, kind or option; a value that is no number where one is wanted.
    """
    first, *options = text.split(",")
    target, colon, value = first.partition(":")
    if target not in TARGETS or (colon and not value):
        raise one_of("cut", first, FORMS)
    found: dict[str, Any] = {}
    if value and target == "branch":
        found["mixer"] = value
    elif value:
        found["scale"] = _numbers(text, "scale", value)[0]
    names = {option: name for name, option in OPTIONS.items()}
    for part in options:
        option, _, value = part.partition("=")
        if option not in names:
            raise one_of(f"cut {quoted(text)}: option", option, names)
        if names[option] in found:
            raise UserError(f"cut: {quoted(text)} gives {option} twice; allowed: once")
        found[names[option]] = value if option in ("mixer", "kind") else _numbers(text, option, value)
    if "queries" in found:
        found["queries"] = found["queries"][0]
    return Cut(target, **found)


def _numbers(text: str, option: str, value: str) -> tuple[int, ...]:
    if not NUMBERS.fullmatch(value):
        raise UserError(f"cut {quoted(text)}: {option} {quoted(value)}; allowed: a number, 0+2 or 0-3")
    first, dash, last = value.partition("-")
    numbers = range(int(first), int(last) + 1) if dash else map(int, value.split("+"))
    found = tuple(sorted(set(numbers)))
    if not found or (option in ("scale", "queries") and len(found) > 1):
        raise UserError(f"cut {quoted(text)}: {option} {quoted(value)}; allowed: a number")
    return found
