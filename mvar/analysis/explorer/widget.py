"""The explorer in a notebook: the page's module as a widget (anywidget), which asks Python for what it shows.

Every question is a message `{"id", "ask", "subject", "picture", ...}`, answered with the same id: `ask` is `pictures`
(urls), `means` (`[mixer, head, own, entropy]` of all attention) or `map` (a packed map as the only buffer, and its
`[own, entropy]`). What cannot be answered is
`{"id", "error"}`.
"""

from functools import cache
from typing import Any

from mvar.analysis.explorer.chosen import means_of
from mvar.analysis.explorer.page import STYLE, description, module, resource
from mvar.analysis.explorer.subjects import MEAN, Head, Subject
from mvar.analysis.explorer.view import Side, View
from mvar.errors import UserError

INSTALL = "pip install anywidget"


def answer(subjects: list[Subject], question: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """What the module asks for: a message, and the buffers that go with it."""
    reply: dict[str, Any] = {"id": question.get("id")}
    try:
        subject, picture = subjects[question["subject"]], question["picture"]
        if question["ask"] == "pictures":
            return reply | {"urls": subject.pictures[picture].urls()}, []
        if question["ask"] == "means":
            return reply | {"means": means_of(subject, picture)}, []
        data, means = subject.map(picture, question["part"], _head(question["head"]))
        return reply | {"means": means.listed()}, [data]
    except (UserError, LookupError, TypeError, ValueError, RuntimeError) as error:
        return {"id": question.get("id"), "error": str(error) or type(error).__name__}, []


def _head(value: Any) -> Head:
    return None if value == MEAN else int(value)


def view_of(values: dict[str, Any]) -> View:
    """A view as the module has it."""
    sides = tuple(Side(side["subject"], side["part"], _head(side["head"])) for side in values["sides"])
    return View(values["picture"], values["query"], sides)


@cache
def widget_class() -> type:
    """The widget's class, made when it is first asked for: nothing else needs anywidget.

    Raises:
        UserError: it is not installed.
    """
    try:
        import anywidget
        import traitlets
    except ImportError:
        raise UserError(
            f"anywidget: not installed; allowed: {INSTALL}, or page() and save(), which need it not"
        ) from None

    class ExplorerWidget(anywidget.AnyWidget):
        """An explorer that is seen in a notebook; `explorer` is the view as it is now."""

        _esm = module()
        _css = resource(STYLE)
        data = traitlets.Dict().tag(sync=True)
        view = traitlets.Dict().tag(sync=True)

        def __init__(self, explorer: Any) -> None:
            first = description(explorer.subjects, explorer.view)
            super().__init__(data=first, view=first["view"])
            self._explorer = explorer
            self.on_msg(self._asked)

        def _asked(self, _: Any, content: Any, buffers: Any) -> None:
            self.send(*answer(list(self._explorer.subjects), content))

        @property
        def explorer(self) -> Any:
            """The view that is seen now, to be saved or measured."""
            now = view_of(self.view)
            return self._explorer.at(picture=now.picture, query=now.query, sides=now.sides)

    return ExplorerWidget
