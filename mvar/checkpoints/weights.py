"""The weights of finished models: .safetensors files that know their own configuration."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvar.artefacts import Wrong, read_artefact, read_record, write_artefact
from mvar.checkpoints.foreign_files import describe_foreign
from mvar.errors import UserError

METADATA = "mvar"  # the header's entry that holds the configuration, as JSON
INFINITE = "attn_bias_for_masking"  # the buffer of official files that holds -inf where attention must not look


def to_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """The content of a .safetensors file with `metadata` (JSON values) in its header; none where it is empty."""
    from safetensors.torch import save

    header = {METADATA: json.dumps(metadata, allow_nan=False)} if metadata else None
    found: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        found[name] = own.clone() if place in places else own  # two names of one tensor are refused by the format
        places.add(place)
    return save(found, header)


def save_weights(path: Path | str, module: nn.Module, metadata: dict[str, Any]) -> None:
    """Write a module's state dict as .safetensors, atomically, with `metadata` (JSON values) in the file's header."""
    save_tensors(path, module.state_dict(), metadata)


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """As `save_weights`, a state dict."""
    content = to_safetensors(tensors, metadata)
    with write_artefact(path) as file:
        file.write(content)


def load_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a .safetensors file: its tensors and the metadata of `save_weights` (empty for a foreign file).

    Raises:
        UserError: no such file, not a sound one, or a value in it that is not finite.
    """
    tensors, metadata = read_safetensors(path)
    complain_of_values(path, tensors)
    return tensors, metadata


def read_safetensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As `load_weights`, whatever the values. The format's own checks bound every tensor by the file's size.

    A file with a recorded digest is read once: what is compared is what is loaded.
    """
    from safetensors import safe_open

    try:
        if foreign := describe_foreign(Path(path)):
            raise UserError(f"{path}: is {foreign}; allowed: a .safetensors file")
        if Path(path).name in read_record(Path(path).parent):
            return _parse_safetensors(read_artefact(Path(path)))
        with safe_open(path, framework="pt") as file:
            metadata = parse_metadata((file.metadata() or {}).get(METADATA, "{}"))
            names = file.keys()  # not a mapping: it cannot be iterated itself
            return {name: file.get_tensor(name) for name in names}, metadata
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights file") from None
    except UserError as error:
        if not isinstance(error, Wrong):
            raise
        reason = str(error).removeprefix(f"{path}: damaged: ")
    except Exception as error:  # SafetensorError, OSError, and KeyError for types that torch does not have
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    raise UserError(
        f"{path}: not a readable .safetensors file (truncated or damaged: {reason}); allowed: a complete one"
    )


def _parse_safetensors(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors.torch import load

    tensors = load(content)  # checks the header
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, parse_metadata(header.get("__metadata__", {}).get(METADATA, "{}"))


def parse_metadata(text: str) -> dict[str, Any]:
    """The configuration in a file's header. ValueError: not a JSON object, or one that is nested without end."""
    try:
        metadata = json.loads(text)
    except RecursionError:
        raise ValueError("its metadata is nested too deeply") from None
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is no JSON object")
    return metadata


def complain_of_values(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """Raise one `UserError` that names the file and a tensor with NaN or infinity in it; return where there is none."""
    for name, tensor in tensors.items():
        if not name.endswith(INFINITE) and not is_finite(tensor):
            bad = tensor.numel() - int(tensor.isfinite().sum())
            raise UserError(
                f"{path}: {name} is not finite in {bad} of its {tensor.numel()} values (NaN or infinity: a training "
                "that diverged, or a damaged file); allowed: finite weights"
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are; the sum tells it in one pass without memory, but where it overflows."""
    return not tensor.is_floating_point() or bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())
