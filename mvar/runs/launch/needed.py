"""Files and packages that a run will need, looked at before anything is launched: a missing one would end it after
minutes.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING

from mvar.errors import UserError, in_field, warn

if TYPE_CHECKING:
    from mvar.checkpoints.published import GeneratorFacts
    from mvar.config import RunConfig
    from mvar.runs.store import Store


def check_files(configs: "Iterable[RunConfig]", store: "Store", dry_run: bool = False) -> None:
    """Look at the checkpoints and weights that runs which are not done yet begin with.

    Args:
        configs: the runs that are to be made.
        store: what is made already needs its file no more.
        dry_run: a mistake is a warning.

    Raises:
        UserError: a file that is not there, or whose header says that it does not fit; names field and path.
    """
    said: set[str] = set()
    facts = cache(_facts)  # the cells of a sweep start from one file
    for config in configs:
        try:
            _check(config, store, facts)
        except UserError as error:
            if not dry_run:
                raise
            if str(error) not in said:
                warn(f"{error}; a run would fail")
            said.add(str(error))


def _check(config: "RunConfig", store: "Store", facts: "Callable[..., GeneratorFacts]") -> None:
    evaluation, tokenizer = config.evaluation, config.tokenizer.checkpoint
    if not store.run_of(config).weights.is_file():
        from mvar.training.tracking import check_tracking

        check_tracking(config.runtime)
    if config.train.init_from and not store.run_of(config).weights.is_file():
        _check_start(config, facts)
    if tokenizer and not store.has_tokenizer(config):
        _existing("tokenizer.checkpoint", tokenizer)
    if evaluation.extractor != "classifier":  # which needs no file
        from mvar.evaluation.extractors.contract import kind_of

        kind_of(config).check()
    if evaluation.reference or evaluation.reference_resize_factor:
        from mvar.evaluation.reference import check_asked

        check_asked(config)


def _existing(field: str, path: str) -> None:
    from mvar.checkpoints.checkpoint_files import split_choice

    file, _ = split_choice(path)
    if not file.is_file():
        what = " (a directory)" if file.is_dir() else ""
        raise UserError(f"{field}: no file {str(file)!r}{what}; allowed: a file that is there")


def _check_start(config: "RunConfig", facts: "Callable[..., GeneratorFacts]") -> None:
    """Sizes of the checkpoint against those of the model; the weights are not loaded."""
    from mvar.checkpoints.warm_start import check_sizes

    path = config.train.init_from or ""
    _existing("train.init_from", path)
    space = config.token_space
    check_sizes(config.model, space, facts(path, space.patch_sides, config.model.num_heads), path)


def _facts(path: str, patch_sides: tuple[int, ...], num_heads: int) -> "GeneratorFacts":
    from mvar.checkpoints.checkpoint_files import read_checkpoint
    from mvar.checkpoints.published import infer_generator

    with in_field("train.init_from"):
        return infer_generator(read_checkpoint(path, "generator"), patch_sides=patch_sides, num_heads=num_heads)
