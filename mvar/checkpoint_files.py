"""Reads other people's checkpoint files: finds the state dict inside, never runs code from the file.

A published file is a plain state dict, .pth or .safetensors, or a training checkpoint that nests it (VAR's
`trainer.var_wo_ddp`, `trainer.vae_local`), perhaps with the prefixes of torch.compile (`_orig_mod.`) and of DDP
(`module.`).
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mvar.errors import UserError
from mvar.files import expand
from mvar.weights import load_weights

Kind = Literal["generator", "tokenizer"]
SIGNATURES: dict[Kind, tuple[str, ...]] = {
    "generator": ("pos_1LC", "word_embed.weight"),
    "tokenizer": ("quantize.embedding.weight",),
}
WRAPPERS = re.compile(r"(^|\.)(?:_orig_mod|module)\.")
MAX_LISTED = 20


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model by official key, and what else the file says of it.

    `metadata` is the configuration that files written by this project carry; empty for others.
    """

    path: Path
    kind: Kind
    state: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path | str, kind: Kind) -> Checkpoint:
    """Read the generator or the tokenizer of a checkpoint file.

    Raises:
        UserError: no such file, a truncated one, one that would run code, one of another model; a line that names it.
    """
    path = expand(path)
    if not path.is_file():
        raise UserError(f"checkpoint: no file {str(path)!r}; allowed: a .pth or .safetensors file")
    if path.suffix == ".safetensors":
        content, metadata = load_weights(path)
    else:
        content, metadata = _load_pickle(path), {}
    found = [_unwrapped(state, path) for state in _state_dicts(content)]
    fitting = [state for state in found if all(key in state for key in SIGNATURES[kind])]
    if len(fitting) == 1:
        return Checkpoint(path, kind, fitting[0], metadata)
    if fitting:
        raise UserError(f"checkpoint: {path} holds {len(fitting)} {kind}s; allowed: one")
    raise UserError(f"checkpoint: {path} holds no {kind} of VAR or M-VAR ({_what_it_is(found)}); {_allowed(kind)}")


def complain_of_keys(path: Path, expected: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Raise one `UserError` that lists every missing, unexpected and mis-shaped key; return where all fit."""
    shared = expected.keys() & state.keys()
    shapes = sorted(
        f"{key} {list(state[key].shape)} instead of {list(expected[key].shape)}"
        for key in shared
        if state[key].shape != expected[key].shape
    )
    parts = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "of another shape": shapes,
    }
    if any(parts.values()):
        listed = "; ".join(f"{name}: {_shortened(keys)}" for name, keys in parts.items() if keys)
        raise UserError(f"checkpoint: {path} does not fit {what}; {listed}")


def _shortened(names: list[str]) -> str:
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _load_pickle(path: Path) -> Any:
    """Tensors and plain containers of a .pth file; `weights_only` refuses everything else."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of foreign pickles: what cannot be read is said below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"(?:GLOBAL|[Uu]nsupported (?:global|class|operand)|REDUCE)\W*(\S*)", str(error))
        if unsafe:
            raise UserError(
                f"checkpoint: {path} holds Python objects, which could run code when they are loaded ({unsafe[0]}); "
                "refused; allowed: files of tensors"
            ) from None
        reason = "not a checkpoint, or damaged"
    except Exception as error:  # the kinds of damage are many (zip, pickle, storage) and all mean one thing
        text = str(error).splitlines()
        reason = f"truncated or damaged: {text[0][:120] if text else type(error).__name__}"
    raise UserError(f"checkpoint: {path} cannot be read ({reason}); allowed: a .pth or .safetensors file")


def _state_dicts(content: Any) -> Iterator[dict[str, Tensor]]:
    """Every mapping from names to tensors inside, however deep."""
    if not isinstance(content, Mapping):
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield tensors
    for value in content.values():
        yield from _state_dicts(value)


def _unwrapped(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    clean: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key
        while WRAPPERS.search(name):
            name = WRAPPERS.sub(r"\1", name)
        if name in clean:
            raise UserError(f"checkpoint: {path} holds {name!r} twice, with and without a wrapper's prefix")
        clean[name] = tensor
    return clean


def _what_it_is(found: list[dict[str, Tensor]]) -> str:
    for kind, keys in SIGNATURES.items():
        if any(all(key in state for key in keys) for state in found):
            return f"it holds a {kind}"
    names = [name for state in found for name in state]
    return f"its keys are {_shortened(names[:5])}, ..." if names else "it holds no named tensors"


def _allowed(kind: Kind) -> str:
    example = "var_d16.pth" if kind == "generator" else "vae_ch160v4096z32.pth"
    return f"allowed: a {kind}'s state dict with the official keys, such as {example}"
