"""Which maps a page holds: those that were asked for, mean over heads first, as many as its size allows; and the rest.

The mean over heads of every layer and image comes first, then head 0 of all of them, and so on: what does not fit is
the last heads. One round of maps is made and packed at a time.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from mvar.analysis.explorer.packed import Means
from mvar.analysis.explorer.subjects import MEAN, Head, Subject
from mvar.errors import UserError, ranges
from mvar.probes.single_maps import ATTENTION, REACH
from mvar.progress import Progress

FEW_TOKENS = 128  # up to so many all layers are on a page, of more tokens so many layers:
FEW_LAYERS = 4


@dataclass(frozen=True)
class Choice:
    """Layers and heads; None: those that suit the number of tokens, and all heads."""

    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None

    def parts(self, subject: Subject) -> list[int]:
        """The numbers of the mixers whose maps are wanted.

        Raises:
            UserError: a layer that is not there.
        """
        depth = subject.model.config.depth
        layers = self.layers if self.layers is not None else _some_layers(depth, subject.schedule.num_tokens)
        for layer in layers:
            if not 0 <= layer < depth:
                raise UserError(f"layers: {layer}; allowed: 0 to {depth - 1}")
        return [number for number, part in enumerate(subject.parts) if part.layer in set(layers)]

    def wanted_heads(self, subject: Subject, part: int) -> list[Head]:
        """The heads of a mixer whose maps are wanted, their mean first.

        Raises:
            UserError: a head that no layer has.
        """
        most = subject.model.config.num_heads
        for head in self.heads or ():
            if not 0 <= head < most:
                raise UserError(f"heads: {head}; allowed: 0 to {most - 1}")
        return [h for h in subject.heads(part) if h is None or self.heads is None or h in self.heads]


def _some_layers(depth: int, num_tokens: int) -> list[int]:
    if num_tokens <= FEW_TOKENS or depth <= FEW_LAYERS:
        return list(range(depth))
    return [round(i * (depth - 1) / (FEW_LAYERS - 1)) for i in range(FEW_LAYERS)]


@dataclass
class Kept:
    """What a page holds: maps in text form and means, by `subject/picture[/mixer/head]`; and what it leaves out."""

    maps: dict[str, str] = field(default_factory=dict)
    means: dict[str, list[list]] = field(default_factory=dict)  # [mixer, head, own scale, entropy]
    left_out: list[str] = field(default_factory=list)
    peak_mib: float = float("nan")  # the most memory of the process that made it


class _Full(Exception):
    """The next map does not fit."""


def keep(subjects: Sequence[Subject], choice: Choice, room: int, progress: Progress | None = None) -> Kept:
    """Make what a page holds.

    Args:
        subjects: models and pictures.
        choice: of layers and heads.
        room: bytes that all maps may take, as text.
        progress: called with (maps made, of all that are wanted).
    """
    kept, left = Kept(), room
    rounds = _rounds(subjects, choice)
    total = sum(len(wanted) for heads in rounds.values() for wanted in heads.values())

    def take(place: str, part: int, head: Head, data: bytes, means: Means) -> None:
        nonlocal left
        text = b64encode(data).decode()
        key = f"{place}/{part}/{_named(head)}"
        if len(text) + len(key) + 6 > left:  # quotes, colon, comma
            raise _Full
        left -= len(text) + len(key) + 6
        kept.maps[key] = text
        if subjects[int(place.split("/")[0])].parts[part].kind == REACH:
            kept.means[place].append([part, MEAN, *means.listed()])
        if progress:
            progress(len(kept.maps), total)

    for number, subject in enumerate(subjects):
        for picture in range(len(subject.pictures)):
            kept.means[f"{number}/{picture}"] = means_of(subject, picture)
    try:
        for head, places in rounds.items():
            for place, parts in places.items():
                number, picture = map(int, place.split("/"))
                subjects[number].maps(picture, {part: [head] for part in parts}, partial(take, place))
    except _Full:
        pass
    kept.left_out = _left_out(subjects, choice, kept, total)
    return kept


def means_of(subject: Subject, picture: int) -> list[list]:
    """`[mixer, head, own scale, entropy]` of all attention maps of a picture, which are made and not kept."""
    return [[p, _named(h), *m.listed()] for (p, h), m in subject.means(picture, [ATTENTION]).items()]


def _named(head: Head) -> int | str:
    return MEAN if head is None else head


def _rounds(subjects: Sequence[Subject], choice: Choice) -> dict[Head, dict[str, list[int]]]:
    """The mixers wanted, by head and by subject and picture."""
    rounds: dict[Head, dict[str, list[int]]] = {}
    for number, subject in enumerate(subjects):
        for part in choice.parts(subject):
            for head in choice.wanted_heads(subject, part):
                for picture in range(len(subject.pictures)):
                    rounds.setdefault(head, {}).setdefault(f"{number}/{picture}", []).append(part)
    return rounds


def _left_out(subjects: Sequence[Subject], choice: Choice, kept: Kept, total: int) -> list[str]:
    """What the page lacks, in sentences."""
    said = []
    for subject in subjects:
        of = f" of {subject.name}" if len(subjects) > 1 else ""
        wanted = {subject.parts[part].layer for part in choice.parts(subject)}
        if missing := sorted(set(range(subject.model.config.depth)) - wanted):
            said.append(f"Maps of layers {ranges(missing)}{of} are not in this file: --layers chooses others.")
        heads = range(subject.model.config.num_heads)
        if choice.heads is not None and (missing := sorted(set(heads) - set(choice.heads))):
            said.append(f"Maps of heads {ranges(missing)}{of} are not in this file: --heads chooses others.")
    if dropped := total - len(kept.maps):
        said.append(
            f"{dropped:,} of {total:,} maps did not fit: the last heads. Fewer --layers, --heads or --images leave "
            "room, --max-mb makes more."
        )
    return said
