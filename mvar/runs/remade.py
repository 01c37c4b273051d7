"""Documents of finished stages, made anew from their weights and the data: what `mvar repair --yes` calls."""

from collections.abc import Callable

from mvar import layout
from mvar.runs.wiring import Stages

BY_DOCUMENT: dict[str, Callable[[Stages], None]] = {
    layout.QUALITY: lambda stages: stages.tokenizer.restore_quality(),
    layout.EXTRACTOR: lambda stages: stages.extractor.restore_description(),
    layout.FLOORS: lambda stages: stages.floors.run(),
    layout.CLASS_OUTPUTS: lambda stages: stages.reject.run(),
    layout.META: lambda stages: stages.tokens.run(),  # of a token cache
}
