"""Weights of a feature extractor from a stranger's file: tensors alone, read once, finite."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mvar.checkpoints.pickles import complain_of_tensors, read_pickle
from mvar.checkpoints.weights import complain_of_values
from mvar.errors import UserError


def state_of(path: Path, most_bytes: int) -> dict[str, Tensor]:
    """The tensors of a file that torch has written.

    The file is read once: what is checked and what is used are the same bytes, whatever becomes of it meanwhile.

    Args:
        path: of the file.
        most_bytes: that it may have.

    Raises:
        UserError: larger, no state dict, objects other than tensors in it, values that are not finite.
    """
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise UserError(f"more than {most_bytes} bytes")
    state = read_pickle(path, content)
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError("no state dict")
    complain_of_tensors(path, state, len(content))
    complain_of_values(path, state)
    return dict(state)
