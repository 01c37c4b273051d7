"""Documents of finished stages, made anew from their weights: what `mvar repair --yes` calls, by name."""

from mvar.runs.documents import write_document
from mvar.runs.stages import shared as stages
from mvar.runs.stages.selection import prepare_scorer
from mvar.runs.stages.shared import Context, build_floors, build_tokens

__all__ = ["build_floors", "build_tokens", "prepare_scorer", "write_extractor", "write_quality"]


def write_quality(context: Context) -> None:
    """Measure a finished tokenizer again."""
    path = context.store.stage("tokenizer", context.config.tokenizer_id).path / "quality.json"
    if not path.is_file():
        write_document(path, stages.tokenizer_quality(context, stages.load_tokenizer(context)))


def write_extractor(context: Context) -> None:
    """Say again what a finished extractor is."""
    path = context.store.stage("extractor", context.config.extractor_id).path / "extractor.json"
    if not path.is_file():
        extractor = stages.load_extractor(context)
        write_document(path, {"id": extractor.id, "heldout_accuracy": extractor.heldout_accuracy})
