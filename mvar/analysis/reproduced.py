"""A measured row beside a printed one: how far off it is, and which of the settings that were published differ."""

from collections.abc import Mapping
from typing import Any

from mvar.analysis.compare import Measured
from mvar.escaping import code, markdown
from mvar.runs.experiment import paper_rows

SETTINGS = "settings"  # of experiments/paper: artefact, model, setting, value, source
OURS = {"reference.file": "held-out images"}  # what a row without that setting has in its place
OF_EVALUATION = ("evaluation.num_images", "evaluation.extractor", "reference.file")
BESIDE = ("sample.", "evaluation.reference_")
NAMES = {"fid": "FID", "is": "IS", "precision": "precision", "recall": "recall"}


def published_settings(artefact: str, model: str) -> dict[str, str]:
    """The settings that are published of a printed row, by name, as text; empty where none are.

    Args:
        artefact: `Table 2` and so on.
        model: of the row, `M-VAR-d16`; settings are the same for every depth.
    """
    family = model.rpartition("-d")[0] or model
    rows = (row for row in paper_rows(SETTINGS) if (row["artefact"], row["model"]) == (artefact, family))
    return {str(row["setting"]): str(row["value"]) for row in rows}


def beside_printed(
    artefact: str,
    model: str,
    printed: Mapping[str, Any],
    measured: Mapping[str, Measured | None],
    settings: Mapping[str, Any],
) -> str:
    """One sentence on a measured row whose model is printed, as Markdown; it says nothing of chance.

    Args:
        artefact: `Table 2` and so on.
        model: as the row is printed.
        printed: printed values by name (`fid`, `is`, `precision`, `recall`).
        measured: ours, by the same names; None where there is none.
        settings: ours, as `mvar.analysis.records.shared_settings` has them.
    """
    told = [
        f"{NAMES[name]} {found.text(3)}, printed {value:g} ({found.mean - value:+.3g})"
        for name, value in printed.items()
        if name in NAMES and isinstance(value, int | float) and (found := measured.get(name))
    ]
    return (
        f"**{markdown(model)}**: {'; '.join(told) or 'nothing to compare'}. {_differences(artefact, model, settings)}"
    )


def _differences(artefact: str, model: str, ours: Mapping[str, Any]) -> str:
    wanted = published_settings(artefact, model)
    if not wanted:
        return "The settings of the printed row are not published."
    differ = []
    for name, value in wanted.items():
        found = ours.get(name, OURS.get(name, "not recorded"))
        if _text(found) != _text(value):
            differ.append(f"{name} {code(_text(found))} (published: {code(_text(value))})")
    # What is in our record beside them is not at its default, which is what the published code does.
    others = sorted(name for name in ours if name.startswith(BESIDE) and name not in wanted)
    differ += [f"{name} {code(_text(ours[name]))} (published: the default)" for name in others]
    silent = [name for name in OF_EVALUATION if name not in wanted]
    unsaid = f" Not published: {', '.join(silent)}." if silent else ""
    if not differ:
        return f"All {len(wanted)} settings that are published are the same.{unsaid}"
    return f"Other settings than the published ones: {', '.join(differ)}.{unsaid}"


def _text(value: Any) -> str:
    """A setting as it is compared: numbers by their value, truth values in small letters."""
    text = str(value)
    try:
        return f"{float(text):g}"
    except ValueError:
        return text.lower() if text in ("True", "False") else text
