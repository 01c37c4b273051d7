"""`mvar.load`: a trained run, or a checkpoint and its tokenizer."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import overload

from mvar import layout
from mvar.api.trained_files import TrainedFiles
from mvar.api.trained_run import TrainedRun
from mvar.config import RunConfig
from mvar.errors import UserError, existing_directory
from mvar.place import results_directory
from mvar.runs.store import Store

FILES = (".pth", ".pt", ".safetensors", ".json")  # what a checkpoint's name ends in; it may end in #MODEL too


@overload
def load(what: str | PathLike[str] | RunConfig, *, results: str | PathLike[str] | None = ...) -> TrainedRun: ...
@overload
def load(
    what: str | PathLike[str],
    tokenizer: str | PathLike[str],
    *,
    results: str | PathLike[str] | None = ...,
    patch_sides: Sequence[int] | None = ...,
    num_heads: int | None = ...,
    weights: str = ...,
) -> TrainedFiles: ...
def load(
    what: str | PathLike[str] | RunConfig,
    tokenizer: str | PathLike[str] = "",
    *,
    results: str | PathLike[str] | None = None,
    patch_sides: Sequence[int] | None = None,
    num_heads: int | None = None,
    weights: str = "",
) -> TrainedRun | TrainedFiles:
    """A trained run, or a checkpoint of VAR, M-VAR or this project with its tokenizer.

    Drawing two images takes two lines:

    Examples:
        >>> import mvar
        >>> images = mvar.load("digits", results="results").sample(classes=[3], per_class=2)
        >>> images.shape
        (2, 8, 8, 1)

    Args:
        what: a run's id, a unique beginning of one, its directory, or its config; or a checkpoint's file.
        tokenizer: of a checkpoint: its tokenizer's file.
        results: where runs are kept (None: `$MVAR_RESULTS`, else `results`), and what is measured on checkpoints.
        patch_sides, num_heads, weights: what a checkpoint's file cannot tell: the scales, the attention heads, which of
            several models in it.

    Raises:
        UserError: an unknown run (lists those that there are), or one that is not trained; a file that cannot be used;
            a checkpoint without a tokenizer.
    """
    root = Path(results or results_directory())
    if isinstance(what, RunConfig):
        store = Store(root)
        return TrainedRun(store, store.run_of(store.as_stored(what)))
    name, vae = str(what), str(tokenizer)
    if vae or _is_file(name):
        if not vae:
            raise UserError("tokenizer: not given; allowed: the tokenizer's file, which a checkpoint needs")
        return TrainedFiles(name, vae, root, patch_sides=patch_sides, num_heads=num_heads, weights=weights)
    if patch_sides or num_heads or weights:
        raise UserError("patch_sides, num_heads, weights: a run has its own; allowed: with a checkpoint")
    if not Path(name, layout.CONFIG).is_file():  # a run's own directory says where it lies
        existing_directory("results", root, "one that `mvar run` has made")
    run, store = Store.locate(root, name)
    return TrainedRun(store, run)


def _is_file(name: str) -> bool:
    return name.partition("#")[0].endswith(FILES) or Path(name).is_file()
