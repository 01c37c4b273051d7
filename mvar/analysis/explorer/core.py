"""The explorer in Python: one view as numbers and as a figure, all of it as a page, and in a notebook as a widget."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvar.analysis.explorer.chosen import Choice, Kept
from mvar.analysis.explorer.page import write_page
from mvar.analysis.explorer.subjects import Subject
from mvar.analysis.explorer.view import Side, View
from mvar.analysis.explorer.widget import widget_class
from mvar.analysis.pictures import Look, looks_figure
from mvar.analysis.style import save
from mvar.errors import UserError
from mvar.files import check_place
from mvar.progress import Progress

KINDS = (".png", ".pdf")


@dataclass(frozen=True, repr=False)
class Explorer:
    """Models and pictures to look at, and the view that is seen first. Shown by a notebook as a widget."""

    subjects: Sequence[Subject]
    view: View

    def weights(self, query: int | None = None, side: int = 0) -> np.ndarray:
        """What a token looks at: `(V,)` float32 over the V tokens that it sees, which sum to 1.

        Of a mixer without attention maps: the shares of the token's reach.

        Args:
            query: the token; None: the view's.
            side: 0, or 1 for what is seen beside it.
        """
        return self._row(self.view.sides[side], self.view.query if query is None else query)

    def sees(self, query: int | None = None, side: int = 0) -> np.ndarray:
        """How many tokens of each scale a token sees through the mixer: `(scales up to its own,)`.

        Args:
            query: the token; None: the view's.
            side: 0, or 1 for what is seen beside it.
        """
        seen, query = self.view.sides[side], self.view.query if query is None else query
        subject = self.subjects[seen.subject]
        scale = subject.scale_of(query)
        return subject.parts[seen.part].sees(subject.schedule)[query, : scale + 1]

    def _row(self, side: Side, query: int) -> np.ndarray:
        subject = self.subjects[side.subject]
        scale, found = subject.scale_of(query), []

        def take(part: int, head: int | None, blocks: Any) -> None:
            found.append(next(islice(blocks, scale, None)))

        subject.each_map(self.view.picture, {side.part: [side.head]}, take)
        return found[0][query - subject.schedule.offsets[scale]].numpy()

    def figure(self) -> Any:
        """The view as a matplotlib figure: for each side a row, the picture after every scale under the weights."""
        shown = []
        for side in self.view.sides:
            subject = self.subjects[side.subject]
            part, picture = subject.parts[side.part], subject.pictures[self.view.picture]
            title = f"layer {part.layer}, {part.mixer}" + (
                ", reach" if not part.num_heads else ", mean over heads" if side.head is None else f", head {side.head}"
            )
            weights = torch.from_numpy(self._row(side, self.view.query))
            names = f"{subject.name}: " if len(self.subjects) > 1 else ""
            of = "mass" if part.num_heads else "reach"
            shown.append(Look(weights, picture.stages, f"{names}{title}", of))
        return looks_figure(shown, self.subjects[0].schedule, self.view.query)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the view as a figure, .png or .pdf.

        Raises:
            UserError: another kind of file, or a place that cannot be written to.
        """
        path = Path(path)
        if path.suffix not in KINDS:
            raise UserError(f"path: {path}; allowed: a name that ends in {' or '.join(KINDS)}")
        check_place("path", path)
        save(self.figure(), path.parent, path.stem, [path.suffix[1:]])

    def page(
        self,
        path: str | PathLike[str],
        max_mb: float = 20,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Kept:
        """Write everything as one HTML page that needs no server.

        Args:
            path: the file.
            max_mb: its largest size, in 10^6 bytes.
            layers: whose maps are in it; None: all, or of models with more than 128 tokens four.
            heads: besides their mean; None: all.
            progress: called with (maps made, maps wanted).

        Returns:
            What it holds; `left_out` says in sentences what it does not.

        Raises:
            UserError: a layer or head that is not there, a place that cannot be written to, too little room.
        """
        path = Path(path)
        check_place("path", path)
        return write_page(self.subjects, self.view, path, max_mb, Choice(layers, heads), progress)

    def widget(self) -> Any:
        """The explorer as a widget of a notebook. Ask it for `explorer`: the view that the mouse has come to.

        Raises:
            UserError: anywidget is not installed.
        """
        return widget_class()(self)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """A notebook shows the widget; where there is none, on a page of notebooks say, the view as a figure."""
        file = BytesIO()
        self.figure().savefig(file, format="png", dpi=100)
        data, metadata = {"image/png": b64encode(file.getvalue()).decode(), "text/plain": repr(self)}, {}
        try:
            shown = self.widget()._repr_mimebundle_(**options)
        except UserError as error:
            return data | {"text/plain": str(error)}
        if isinstance(shown, tuple):
            shown, metadata = shown
        return data | (shown or {}), metadata

    def __repr__(self) -> str:
        names = ", ".join(subject.name for subject in self.subjects)
        return f"<Explorer of {names}: {len(self.subjects[0].pictures)} images, token {self.view.query}>"

    def at(self, **changes: Any) -> "Explorer":
        """The same with another view: `picture`, `query` or `sides` of `View`."""
        return replace(self, view=replace(self.view, **changes))
