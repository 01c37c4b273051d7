"""Documents of finished stages, made anew from their weights and the data: what `mvar repair --yes` calls."""

from collections.abc import Callable

from mvar.runs.wiring import Stages

BY_DOCUMENT: dict[str, Callable[[Stages], None]] = {
    "quality.json": lambda stages: stages.tokenizer.restore_quality(),
    "extractor.json": lambda stages: stages.extractor.restore_description(),
    "floors.json": lambda stages: stages.floors.run(),
    "class_outputs.json": lambda stages: stages.reject.run(),
    "meta.json": lambda stages: stages.tokens.run(),  # of a token cache
}
