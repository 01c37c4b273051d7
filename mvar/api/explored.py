"""`mvar.explore`: attention looked at with the mouse, of runs and checkpoints."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvar.analysis.explorer.core import Explorer
from mvar.analysis.explorer.effects import effects_of
from mvar.analysis.explorer.subjects import Picture, Python, Subject
from mvar.analysis.explorer.view import View, check_subjects, middle, side_of
from mvar.analysis.pictures import decoded
from mvar.api.trained import Trained
from mvar.data.crops import ImageSet, to_float
from mvar.data.pictures import decode
from mvar.errors import UserError, one_of
from mvar.probes.single_maps import parts_of
from mvar.runs import gallery
from mvar.training.numerics import as_in_its_run

COUNT = 4  # images, where none are chosen
NO_CLASS = "no class"


class _Files:
    """Pictures of one's own, as an image set reads them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.labels, self.class_names = np.zeros(len(paths), np.int64), [NO_CLASS]

    def picture(self, i: int, mode: str, side: int | None) -> Any:
        return decode(self.paths[i], "file", mode, side)

    def name(self, i: int) -> str:
        return str(self.paths[i])

    def fingerprint(self, indices: Sequence[int]) -> str:
        raise NotImplementedError


def explore(
    *runs: Trained,
    image: int | Sequence[int] | None = None,
    drawn: str | int | Sequence[str | int] | None = None,
    seed: int = 0,
    file: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    file_class: str | int | None = None,
    layer: int | None = None,
    mixer: str | None = None,
    head: int | None = None,
    query: int | None = None,
    beside: Mapping[str, Any] | None = None,
) -> Explorer:
    """Look at where tokens look: over the picture, layer by layer, head by head. In a notebook it is a widget.

    Examples:
        >>> import mvar
        >>> seen = mvar.explore(mvar.load("digits"), image=[0, 5], layer=1, head=0)
        >>> seen.weights(query=29).shape  # of the token that looks on all that it sees
        (30,)
        >>> seen.save("view.png")
        >>> seen.page("explorer.html").left_out
        []

    Args:
        runs: what `mvar.load` returned, one or more with equal scales.
        image: numbers of held-out images. Without `image`, `drawn` and `file`: four held-out images of different
            classes, or of a checkpoint four that it draws.
        drawn: classes of images that the model draws, by number or name.
        seed: of that drawing.
        file: pictures of your own; they are resized and cropped as the data are.
        file_class: the class that is given with them; None: none.
        layer, mixer, head: what is seen first: None: the first layer with attention maps, its first mixer, the mean.
        query: the token that looks; None: the middle of the finest scale.
        beside: what is seen beside it: `run` (0 is the first one given), `layer`, `mixer`, `head`.

    Raises:
        UserError: no run, runs of other scales; an image, class, layer, mixer, head or query that is not there; a file
            that is no picture.
    """
    if not runs:
        raise UserError("runs: none; allowed: one or more that mvar.load returned")
    subjects = [_subject(run, image, drawn, seed, file, file_class) for run in runs]
    check_subjects(subjects)
    query = middle(subjects[0]) if query is None else query
    subjects[0].scale_of(query)  # refused if it is not there
    sides = [side_of(subjects, 0, layer, mixer, head)]
    if beside is not None:
        allowed = ("run", "layer", "mixer", "head")
        for name in beside:
            if name not in allowed:
                raise one_of("beside", name, allowed)
        sides.append(side_of(subjects, **beside))
    elif len(subjects) > 1:
        sides.append(side_of(subjects, 1))
    return Explorer(subjects, View(0, query, tuple(sides)))


@as_in_its_run
def _subject(
    run: Trained,
    image: int | Sequence[int] | None,
    drawn: str | int | Sequence[str | int] | None,
    seed: int,
    file: Any,
    file_class: str | int | None,
) -> Subject:
    numbers, classes = _listed(image), _listed(drawn)
    paths = [Path(path) for path in _listed(file)]
    if file_class is not None and not paths:
        raise UserError("file_class: only for pictures of your own; allowed: with file")
    if not (numbers or classes or paths):
        numbers = heldout_of_classes(run, COUNT)
        classes = [] if numbers else list(range(min(COUNT, len(run.class_names))))
    pictures = [_heldout(run, number) for number in numbers]
    pictures += (
        [_drawn(run, number, seed) for number in gallery.class_numbers(classes, run.class_names)] if classes else []
    )
    pictures += _own(run, paths, file_class)
    loaded = Python(run.python(), run.python(here=False))
    effects = effects_of(parts_of(run.model), run.kept_cuts)
    return Subject(run.name, loaded, run.model, pictures, effects, run.config.runtime)


def heldout_of_classes(run: Trained, count: int) -> list[int]:
    """Numbers of held-out images of different classes, which are evenly spread; of more images than classes further
    ones of each."""
    by_class = [np.flatnonzero(run.heldout_labels == label) for label in np.unique(run.heldout_labels)]
    longest = max(map(len, by_class), default=0)
    in_turn = [[int(of[i]) for of in by_class if i < len(of)] for i in range(longest)]
    found: list[int] = []
    for numbers in in_turn:
        left = count - len(found)
        found += [numbers[i] for i in np.unique(np.linspace(0, len(numbers) - 1, min(left, len(numbers))).astype(int))]
        if len(found) >= count:
            break
    return found


def _listed(values: Any) -> list[Any]:
    if values is None:
        return []
    return list(values) if isinstance(values, Iterable) and not isinstance(values, (str, PathLike)) else [values]


def _heldout(run: Trained, number: int) -> Picture:
    label, codes = run.heldout_tokens(number)
    name, arguments = run.class_names[int(label)], f"image={number}"
    return _of_tokens(run, codes, label, f"held-out image {number}", name, Python(arguments, arguments))


def _of_tokens(
    run: Trained, codes: torch.Tensor, label: torch.Tensor, name: str, class_name: str, arguments: Python
) -> Picture:
    quantizer = run.tokenizer.quantize
    with torch.no_grad():
        inputs, stages = quantizer.inputs(codes)[0], decoded(run.tokenizer, quantizer.latents(codes))
    return Picture(name, class_name, label.reshape(()), inputs, stages[0], arguments)


def _drawn(run: Trained, number: int, seed: int) -> Picture:
    labels, inputs = run.drawn_inputs(number, seed, {})
    stages = run.grow([number], seed)[0]
    name, arguments = f"drawn, seed {seed}", f"drawn={number}" + (f", seed={seed}" if seed else "")
    return Picture(name, run.class_names[number], labels[0], inputs[0], stages, Python(arguments, arguments))


def _own(run: Trained, paths: Sequence[Path], file_class: str | int | None) -> list[Picture]:
    if not paths:
        return []
    images = ImageSet(_Files(paths), range(len(paths)), run.config.data, True, 2)
    if file_class is None:
        number, class_name, given = len(run.class_names), NO_CLASS, ""
    else:
        (number,) = gallery.class_numbers([file_class], run.class_names)
        class_name, given = run.class_names[number], f", file_class={number}"
    found = []
    for i, path in enumerate(paths):
        with torch.no_grad():
            codes = run.tokenizer.encode(to_float(images.image(i, None)[None]).to(run.device))
        label = torch.tensor(number, device=run.device)
        arguments = Python(*(f"file={file!r}{given}" for file in (str(path), path.name)))
        found.append(_of_tokens(run, codes, label, path.name, class_name, arguments))
    return found
