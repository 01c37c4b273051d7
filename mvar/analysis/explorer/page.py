"""The explorer as one HTML page: everything is inside, nothing is fetched, no server is needed."""

import json
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from mvar.analysis.explorer.chosen import Choice, Kept, keep
from mvar.analysis.explorer.subjects import Subject
from mvar.analysis.explorer.view import View
from mvar.errors import UserError
from mvar.escaping import one_line, printable
from mvar.files import atomic_write
from mvar.memory import peak_mib
from mvar.progress import Progress

TEMPLATE, STYLE = "page.html.jinja", "explorer.css"
# joined: a page and anywidget want one
PARTS = "maps", "elements", "fetched", "drawing", "look", "side", "picture", "matrix", "explorer"
MB = 1_000_000
NOTE = "Runs are looked for in $MVAR_RESULTS, else in results; files in the folder that Python runs in."
START = """\
const data = JSON.parse(document.getElementById("data").textContent);
window.explorer = mount(document.getElementById("explorer"), pageSource(data));"""


def resource(name: str) -> str:
    """A file beside this module: of the page, or of the widget too."""
    return (files(__package__ or "") / name).read_text()


def module() -> str:
    """The JavaScript module of page and widget."""
    return "\n".join(resource(f"{part}.js") for part in PARTS)


def description(subjects: Sequence[Subject], view: View, sent: bool = False) -> dict[str, Any]:
    """What page and widget know from the start, as JSON values; sent: to another machine, as a page is."""
    return {
        "sides": list(subjects[0].schedule.sides),
        "subjects": [subject.describe(sent) for subject in subjects],
        "view": view.to_json(),
    }


def write_page(
    subjects: Sequence[Subject],
    view: View,
    path: Path,
    max_mb: float = 20,
    choice: Choice | None = None,
    progress: Progress | None = None,
) -> Kept:
    """Write the page, of at most `max_mb` times 10^6 bytes; returns what it holds, and what it leaves out.

    Raises:
        UserError: the pictures alone take more.
    """
    described = description(subjects, view, sent=True)
    pictures = [(s, p) for s, subject in enumerate(subjects) for p in range(len(subject.pictures))]
    data = described | {
        "pictures": {f"{s}/{p}": subjects[s].pictures[p].urls() for s, p in pictures},
        "means": {},
        "maps": {},
        "leftOut": [],
        "note": NOTE,
    }
    cells = sum(len(subjects[s].parts) * (subjects[s].model.config.num_heads + 1) for s, _ in pictures)
    fixed = len(_html(data).encode()) + 60 * cells + 1000 * (len(subjects) + 1)  # and means, sentences
    room = int(max_mb * MB) - fixed
    if room < 0:
        raise UserError(
            f"max-mb: {max_mb:g}; allowed: {fixed / MB:.2f} or more for {len(pictures)} images without a map"
        )
    kept = keep(subjects, choice or Choice(), room, progress)
    data |= {"means": kept.means, "maps": kept.maps, "leftOut": kept.left_out}
    html = _html(data).encode()
    assert len(html) <= max_mb * MB
    with atomic_write(path) as file:
        file.write(html)
    kept.peak_mib = peak_mib()
    return kept


def _html(data: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    script = f"{module()}\n{START}\n"
    values = {
        "title": one_line("Attention: " + ", ".join(subject["name"] for subject in data["subjects"])),
        "style": Markup(resource(STYLE)),
        "script": Markup(script),
        "digest": b64encode(sha256(script.encode()).digest()).decode(),
        "data": Markup(for_script(data)),
    }
    return printable(environment.get_template(TEMPLATE).render(values))


def for_script(data: Any) -> str:
    """JSON that ends no script element and begins no comment in one, whatever its texts hold."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
