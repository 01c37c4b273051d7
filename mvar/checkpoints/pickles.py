"""Reads .pth files: tensors in plain containers, nothing else, and no more memory than the file has bytes.

Before torch's restricted reader (`weights_only`) opens a file it is looked through here: which Python objects it would
make is known from the pickle's opcodes alone, so that a message can name them, and what it claims is compared with
what it has. Limits: `MAX_PICKLE_BYTES` for the pickle that lists the tensors (0.2 MB for two billion parameters), no
compressed part (torch writes none), `MAX_SHARING` bytes of tensors for each byte of the file.
"""

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from mvar.checkpoints.foreign_files import HEAD, describe_head
from mvar.errors import UserError

MAX_PICKLE_BYTES = 16 << 20
MAX_SHARING = 4  # names of one tensor; a file whose tensors are views of one another asks for memory it has not
MAX_NAMED = 5
LEGACY_PICKLES = 5  # magic number, protocol, system, content, names of the storages
TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
PLAIN = re.compile(
    r"collections\.(OrderedDict|Counter)|torch\._utils\._rebuild_(tensor(_v[23])?|parameter(_with_state)?)"
    r"|torch\._tensor\._rebuild_from_type_v2|torch(\.cuda|\.storage)?\.\w+Storage|torch\.nn\.parameter\.Parameter"
    r"|torch\.(Size|Tensor|device|[a-z]+\d\w*|bool|half|float|double|int|long|short)"
    r"|torch\.serialization\._get_layout|_codecs\.encode|builtins\.(set|complex)"
)
SPECIAL = re.compile(r"torch\._utils\._rebuild_(\w+)")
ALLOWED = "allowed: a .pth or .safetensors file"


def read_pickle(path: Path, content: bytes | None = None, mapped: bool = True) -> Any:
    """What a .pth file holds: tensors on the CPU in plain containers.

    Args:
        path: the file.
        content: its bytes, where they have been read already: what is looked through is then what is loaded.
        mapped: whether the tensors of a ZIP file are memory-mapped, for those who copy them; else they are read.

    Raises:
        UserError: truncated, damaged, not torch's, with Python objects or special tensors, or with claims beyond it.
    """
    try:
        with path.open("rb") if content is None else io.BytesIO(content) as file:
            is_zip = _look_through(path, file)
            file.seek(0)
            # torch goes by the name of a file, this project by what it contains
            by_name = mapped and content is None and path.suffix != ".safetensors"
            with warnings.catch_warnings(action="ignore"):  # of foreign pickles: what cannot be read is said below
                source, mmap = (path, is_zip or None) if by_name else (file, None)
                return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # the kinds of damage are many (zip, pickle, storage) and all mean one thing
        text = [line for line in str(error).splitlines() if line.strip()]
        reason = text[0][:200] if text else type(error).__name__
    if "weights_only" in reason.lower() or "weights only" in reason.lower():
        reason = "not what torch.save writes, or damaged"
    raise UserError(f"checkpoint: {path} cannot be read (truncated or damaged: {reason}); {ALLOWED}")


def _look_through(path: Path, file: IO[bytes]) -> bool:
    """Complain of what the file would make or claims; returns whether it is a ZIP file, by torch's own rule."""
    head = file.read(HEAD)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    is_zip = head.startswith(b"PK\x03\x04")
    if not is_zip and (foreign := describe_head(head)):
        raise UserError(f"checkpoint: {path} cannot be read: it is {foreign}; {ALLOWED}")
    _complain_of_objects(path, _objects_in_zip(file, size) if is_zip else _objects_in_legacy(file, size))
    return is_zip


def complain_of_tensors(path: Path, tensors: Mapping[str, Tensor], file_bytes: int) -> None:
    """Raise one `UserError` for tensors that are not dense numbers, or that claim more values than the file holds."""
    total = 0
    for name, tensor in tensors.items():
        kind = None
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
            kind = str(tensor.layout) if tensor.layout is not torch.strided else "quantized or nested"
        elif tensor.device.type != "cpu":
            kind = f"without values (on {tensor.device.type})"
        elif tensor.dtype not in TYPES:
            kind = f"of {tensor.dtype}"
        if kind:
            raise UserError(f"checkpoint: {path}: {name[:80]} is {kind}; allowed: dense tensors of usual numbers")
        size = tensor.numel() * tensor.element_size()
        total += size
        if size > tensor.untyped_storage().nbytes() or total > MAX_SHARING * file_bytes:
            raise UserError(
                f"checkpoint: {path}: {name[:80]} has shape {list(tensor.shape)}, more values than the file holds "
                f"({file_bytes} bytes); allowed: tensors that are stored whole"
            )


def _objects_in_zip(file: IO[bytes], size: int) -> list[str]:
    """Names of the Python objects that a file of torch.save's present format would make; checks what its parts claim.

    Raises:
        ValueError: another kind of archive, compressed or overlapping parts.
    """
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        names = [part.filename for part in parts]
        if any(name.endswith(".npy") for name in names):
            raise ValueError("a NumPy archive (.npz)")
        if any(re.fullmatch(r"[^/]+/(constants\.pkl|code/.*)", name) for name in names):
            raise ValueError("a TorchScript program, which runs code; save its state_dict() instead")
        pickles = [part for part in parts if re.fullmatch(r"[^/]+/data\.pkl", part.filename)]
        if len(pickles) != 1:
            raise ValueError("a ZIP archive that torch.save has not written; unpack it first")
        claimed = sum(part.file_size for part in parts)
        if claimed > size or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError(f"its parts claim {claimed} bytes, compressed or overlapping, the file has {size}")
        if pickles[0].file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"its list of tensors has {pickles[0].file_size} bytes, more than {MAX_PICKLE_BYTES}")
        return objects_of(io.BytesIO(archive.read(pickles[0])))


def _objects_in_legacy(file: IO[bytes], size: int) -> list[str]:
    """The same of a file of torch before 1.6 or of pickle itself: pickles one after the other, then numbers."""
    found: set[str] = set()
    for _ in range(LEGACY_PICKLES):
        begin = file.tell()
        if begin >= size or file.read(1) != b"\x80":
            break
        file.seek(begin)
        # a file object takes the memory that a length asks for before it reads; a buffer gives what is there
        content = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        found.update(_globals(content))
        file.seek(begin + content.tell())
    return sorted(found)


def objects_of(stream: IO[bytes]) -> list[str]:
    """What one pickle imports, `module.name`; nothing is loaded.

    Raises:
        ValueError: no pickle.
    """
    return sorted(set(_globals(stream)))


def _globals(stream: IO[bytes]) -> Iterator[str]:
    """What one pickle imports, `module.name`. A memo and the two texts that were pushed last are enough to know it.

    Raises:
        ValueError: no pickle, or one that is larger than any list of tensors.
    """
    texts: list[str] = []  # pushed last
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".").replace("__builtin__.", "builtins.")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(texts)
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = texts[-1] if texts else ""
        elif argument is not None and "PUT" in opcode.name:
            memo[int(argument)] = texts[-1] if texts else ""
        elif argument is not None and "GET" in opcode.name:
            texts = [*texts[-1:], memo.get(int(argument), "")]
        elif isinstance(argument, str):
            texts = [*texts[-1:], argument]


def _complain_of_objects(path: Path, objects: list[str]) -> None:
    foreign = [name for name in objects if not PLAIN.fullmatch(name)]
    special = [match[1] for name in foreign if (match := SPECIAL.fullmatch(name))]
    if special:
        what = ", ".join(name.replace("_", " ") for name in special[:MAX_NAMED])
        raise UserError(f"checkpoint: {path} holds special tensors ({what}); refused; allowed: files of dense tensors")
    if foreign:
        listed = ", ".join(name if re.fullmatch(r"[\w.]{1,80}", name) else repr(name[:80]) for name in foreign[:5])
        more = f" and {len(foreign) - MAX_NAMED} more" if len(foreign) > MAX_NAMED else ""
        raise UserError(
            f"checkpoint: {path} holds Python objects ({listed}{more}), which could run code when they are loaded; "
            "refused; allowed: files of tensors (whoever trusts the file can save its state dict alone)"
        )
