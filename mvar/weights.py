"""The weights of finished models: .safetensors files that know their own configuration."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mvar.errors import UserError
from mvar.files import atomic_write


def save_weights(path: Path | str, module: nn.Module, metadata: dict[str, Any]) -> None:
    """Write a module's state dict as .safetensors, atomically, with `metadata` (JSON values) in the file's header."""
    from safetensors.torch import save as to_bytes

    # cloned: two names of one tensor (shared layers) are refused by the format
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in module.state_dict().items()}
    content = to_bytes(tensors, {"mvar": json.dumps(metadata, allow_nan=False)})
    with atomic_write(path) as file:
        file.write(content)


def load_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a .safetensors file: its tensors and the metadata of `save_weights` (empty for a foreign file)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get("mvar", "{}")
            names = file.keys()  # not a mapping: it cannot be iterated itself
            return {name: file.get_tensor(name) for name in names}, json.loads(metadata)
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable .safetensors file (truncated or damaged: {error}); allowed: a complete one"
        ) from None
