"""Reads other people's checkpoint files: finds the state dict inside, never runs code from the file.

A published file is a plain state dict, .pth or .safetensors, one in several shards with an index, or a training
checkpoint that nests it (VAR's `trainer.var_wo_ddp`, Lightning's `state_dict`), perhaps twice (`model` and `ema`). Its
keys may have the prefixes of wrappers (DDP, FSDP, torch.compile, activation checkpointing) anywhere, and of the
attribute that held the model in front. A file is read by what it contains, whatever its name ends in.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mvar.checkpoints.pickles import complain_of_tensors, read_pickle
from mvar.checkpoints.weights import METADATA, parse_metadata, read_safetensors
from mvar.errors import UserError, quoted
from mvar.files import expand

Kind = Literal["generator", "tokenizer"]
SIGNATURES: dict[Kind, tuple[str, ...]] = {
    "generator": ("pos_1LC", "word_embed.weight"),
    "tokenizer": ("quantize.embedding.weight",),
}
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|module|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
MAX_LISTED = 20
MAX_MODELS = 32
MAX_DEPTH = 16  # mappings inside one another
MAX_INDEX_BYTES = 16 << 20
MAX_NAME_BYTES = 255  # of a file, on the file systems that there are
SHARDS_INDEX = ".metadata"  # torch.distributed.checkpoint's name
CHOICE = "#"  # `file.pth#ema`: which of a file's models


class NotInside(UserError):
    """A sound file that holds no model of the kind."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model by official key, and what else the file says of it.

    `metadata` is the configuration that files written by this project carry; empty for others. `label` is where in
    the file the model lies, empty where the file is the model.
    """

    path: Path
    kind: Kind
    state: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    label: str = ""


def split_choice(path: Path | str) -> tuple[Path, str]:
    """The file and which of its models, of `file.pth#ema`; the second is empty where the path names a file alone."""
    whole = expand(path)
    name, sign, choice = str(whole).rpartition(CHOICE)
    return (whole, "") if not sign or whole.is_file() else (Path(name), choice)


def with_choice(path: str, weights: str) -> str:
    """What `split_choice` takes apart."""
    return f"{path}{CHOICE}{weights}" if weights else path


def read_checkpoint(path: Path | str, kind: Kind, weights: str = "") -> Checkpoint:
    """Read the generator or the tokenizer of a checkpoint file.

    Args:
        path: a .pth or .safetensors file, or the `.index.json` of its shards; `FILE#NAME` is `weights` NAME.
        kind: what is wanted.
        weights: which of several, e.g. `ema`: where in the file it lies, or a part of that.

    Raises:
        NotInside: no model of this kind.
        UserError: no such file, a truncated one, one that would run code, several to choose from; a line that names it.
    """
    path, choice = split_choice(path)
    if not path.is_file():
        what = " (a directory)" if path.is_dir() else ""
        if (path / SHARDS_INDEX).is_file():
            what = " (a folder of several processes' shards: mvar export RUN --step N makes a file of it)"
        raise UserError(f"checkpoint: no file {str(path)!r}{what}; allowed: a .pth or .safetensors file")
    content, header, num_bytes = _read(path)
    dicts = _state_dicts(content, header)
    clean = [(label, _unwrapped(state, path), metadata) for label, state, metadata in dicts]
    found = [model for part in clean for model in _models(path, kind, *part)]
    if not found:
        raise NotInside(
            f"checkpoint: {path} holds no {kind} of VAR or M-VAR ({_what_it_is(path, clean)}); {_allowed(kind)}"
        )
    chosen = _choose(found, weights or choice)
    complain_of_tensors(path, chosen.state, num_bytes)
    return chosen


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
        "not floating point": sorted(
            key for key in shared if expected[key].is_floating_point() and not state[key].is_floating_point()
        ),
    }
    if any(parts.values()):
        listed = "; ".join(f"{name}: {_shortened(keys)}" for name, keys in parts.items() if keys)
        raise UserError(f"checkpoint: {path} does not fit {what}; {listed}")


def _shortened(names: list[str]) -> str:
    more = len(names) - MAX_LISTED
    return ", ".join(name[:100] for name in names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _read(path: Path) -> tuple[Any, dict[str, Any], int]:
    """The content of a file, the configuration in its header, and its bytes."""
    if path.suffix == ".json":
        return _read_shards(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
    is_pickle = head[:2] == b"PK" or (head[:1] == b"\x80" and head[1:2] <= b"\x05")
    if head[5:] == b"\0\0\0{" or (path.suffix == ".safetensors" and not is_pickle):
        try:
            return *read_safetensors(path), size
        except UserError as error:
            raise UserError(f"checkpoint: {error}") from None
    return read_pickle(path), {}, size


def _read_shards(index: Path) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """The tensors of a checkpoint in several files, as their index says (`weight_map`: key to file)."""
    allowed = "allowed: a weight_map from keys to files beside it"
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise UserError(f"checkpoint: {index} has more than {MAX_INDEX_BYTES} bytes; {allowed}")
    try:
        names = json.loads(index.read_bytes())["weight_map"]
        shards = sorted(set(names.values()))
        if not all(isinstance(name, str) for name in shards):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"checkpoint: {index} is a JSON text, but no index of shards; {allowed}") from None
    for name in shards:
        if name != Path(name).name or name.endswith(".json") or len(os.fsencode(name)) > MAX_NAME_BYTES:
            raise UserError(f"checkpoint: {index} names the file {quoted(name)}; {allowed}")
    absent = [name for name in shards if not (index.parent / name).is_file()]
    if absent:
        raise UserError(
            f"checkpoint: {index} has {len(shards)} shards, {_shortened(absent)} missing beside it; allowed: all"
        )
    read = {name: _read(index.parent / name) for name in shards}
    parts = {name: content for name, (content, _, _) in read.items()}
    state = {}
    for key, name in names.items():
        tensor = parts[name].get(key) if isinstance(parts[name], Mapping) else None
        if not isinstance(tensor, Tensor):
            raise UserError(f"checkpoint: {index.parent / name} lacks {key[:80]!r}, which {index.name} says it holds")
        state[key] = tensor
    return state, {}, sum(size for _, _, size in read.values())


def _state_dicts(
    content: Any, header: dict[str, Any], label: str = "", depth: int = 0, seen: set[int] | None = None
) -> Iterator[tuple[str, dict[str, Tensor], dict[str, Any]]]:
    """Every mapping from names to tensors inside, once: where it lies, and the configuration that is told of it."""
    seen = set() if seen is None else seen
    if not isinstance(content, Mapping) or id(content) in seen or depth > MAX_DEPTH:
        return
    seen.add(id(content))
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield label, tensors, header or _attached(content)
    for key, value in content.items():
        name = str(key)[:80] if isinstance(key, str | int) else "?"
        yield from _state_dicts(value, {}, f"{label}.{name}" if label else name, depth + 1, seen)


def _attached(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The configuration in `_metadata`, which torch keeps with state dicts and asks for module names only."""
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        told = content._metadata  # pyright: ignore[reportAttributeAccessIssue]  torch's own name
        return parse_metadata(told[METADATA]["json"])
    return {}


def _unwrapped(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    clean: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = WRAPPERS.sub("", key)
        if name in clean:
            raise UserError(f"checkpoint: {path} holds {name[:80]!r} twice, with and without a wrapper's prefix")
        clean[name] = tensor
    return clean


def _models(
    path: Path, kind: Kind, label: str, state: dict[str, Tensor], metadata: dict[str, Any]
) -> Iterator[Checkpoint]:
    """The models in one mapping: one without a prefix, or one for each prefix that all of its signature has."""
    first = SIGNATURES[kind][0]
    prefixes = [key.removesuffix(first) for key in state if key == first or key.endswith(f".{first}")]
    prefixes = [prefix for prefix in prefixes if all(prefix + key in state for key in SIGNATURES[kind])]
    if len(prefixes) > MAX_MODELS:
        raise UserError(f"checkpoint: {path} holds {len(prefixes)} {kind}s; allowed: at most {MAX_MODELS}")
    others = tuple(prefix for prefix in prefixes if prefix)
    for prefix in prefixes:
        own = {
            key.removeprefix(prefix): tensor
            for key, tensor in state.items()
            if key.startswith(prefix) and (prefix or not key.startswith(others))
        }
        where = ".".join(filter(None, (label, prefix.rstrip("."))))
        yield Checkpoint(path, kind, own, metadata, where)


def _choose(found: list[Checkpoint], weights: str) -> Checkpoint:
    """The one that is meant: by its whole label, a component of it, or a word in it, whichever names just one."""
    path, kind = found[0].path, found[0].kind
    if not weights and len(found) == 1:
        return found[0]
    labels = [repr(model.label) if model.label else "one without a name" for model in found]
    if not weights:
        example = min((model.label for model in found if model.label), key=len, default="")
        raise UserError(
            f"checkpoint: {path} holds {len(found)} {kind}s: {_shortened(labels)}; allowed: one of them, "
            f"by --weights {example}"
        )
    rules = (lambda label: [label], lambda label: label.split("."), lambda label: re.split(r"[._]", label))
    for rule in rules:
        meant = [model for model in found if weights in rule(model.label)]
        if len(meant) == 1:
            return meant[0]
    raise UserError(f"weights: {weights!r} names no one {kind} in {path}; allowed: {_shortened(labels)}")


def _what_it_is(path: Path, found: list[tuple[str, dict[str, Tensor], dict[str, Any]]]) -> str:
    for kind in SIGNATURES:
        if any(True for part in found for _ in _models(path, kind, *part)):
            return f"it holds a {kind}"
    names = [name for _, state, _ in found for name in state]
    if any(name.rpartition(".")[2].startswith("_flat_param") for name in names):
        return "its parameters are flattened by FSDP; save a full state dict"
    if re.search(r"-\d+-of-\d+\.\w+$", path.name):
        return "it is one of several shards; give their .index.json"
    return f"its keys are {_shortened(names[:5])}, ..." if names else "it holds no named tensors"


def _allowed(kind: Kind) -> str:
    example = "var_d16.pth" if kind == "generator" else "vae_ch160v4096z32.pth"
    return f"allowed: a {kind}'s state dict with the official keys, such as {example}"
