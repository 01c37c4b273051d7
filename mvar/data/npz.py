"""Arrays of an .npz file, whose sizes are looked at before memory is taken for them: the file may be a stranger's."""

import errno
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from mvar.errors import UserError
from mvar.files import atomic_write

MAX_INFLATED_BYTES = 64 << 20  # of a deflated array whose size nothing but the file itself says
AGAIN = "delete it and the images are drawn again"
DAMAGES = (
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(KeyError, ValueError, EOFError, NotImplementedError, RuntimeError, TypeError, OverflowError),
)


def write_samples(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Write images as ADM's evaluator takes them: `arr_0`, stored as they are; grey ones get three equal channels.

    Args:
        path: of the .npz file.
        pixels: uint8 `(N, H, W, 1 or 3)`; may be a memory map, and is read part by part.
        labels: classes `(N,)`, which the evaluator does not read.

    Raises:
        UserError: another ending than .npz.
    """
    if path.suffix != ".npz":
        raise UserError(f"out: {str(path)!r}; allowed: a name that ends in .npz")
    with atomic_write(path) as file:
        np.savez(file, arr_0=np.broadcast_to(pixels, (*pixels.shape[:-1], 3)), labels=labels)


@contextmanager
def opened(path: Path, remedy: str = AGAIN) -> Iterator[zipfile.ZipFile]:
    """An .npz file; whatever is wrong with it is one line, which ends with what can be done.

    Raises:
        UserError: damaged, or not such a file; names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (*DAMAGES, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that one: a place before the file's beginning
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path}: cannot be read ({reason}); {remedy}") from None


@contextmanager
def array(
    archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int | None, ...]
) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """An array of an archive, at its first element, and its shape.

    Args:
        archive: the .npz file.
        name: of the array.
        dtype: that it must have.
        shape: that it must have; None: any size of this axis.

    Raises:
        ValueError: another array than that, or one that claims more than its file holds.
    """
    info = archive.getinfo(f"{name}.npy")
    total = Path(archive.filename or "").stat().st_size
    stored = info.compress_type == zipfile.ZIP_STORED
    if info.compress_size > total or (stored and info.file_size != info.compress_size):
        raise ValueError(f"{name} claims {info.file_size:,} bytes in a file of {total:,}")
    with archive.open(info) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name}: not the header that numpy writes")
        found, fortran, kind = np.lib.format.read_array_header_1_0(file)
        fits = len(found) == len(shape) and all(b in (None, a) for a, b in zip(found, shape, strict=True))
        if not fits or fortran or kind != np.dtype(dtype):
            wanted = ", ".join("N" if size is None else str(size) for size in shape)
            raise ValueError(f"{name} is {kind} {list(found)}, wanted is {dtype} [{wanted}]")
        num_bytes = math.prod(found) * kind.itemsize
        if file.tell() + num_bytes != info.file_size:
            raise ValueError(f"{name} claims {num_bytes:,} bytes, {info.file_size:,} are in the file")
        if not stored and None in shape and num_bytes > MAX_INFLATED_BYTES:
            raise ValueError(f"{name} would grow to {num_bytes:,} bytes; stored as it is it may have any size")
        yield file, found


def whole(archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """All of an array; as `array`."""
    with array(archive, name, dtype, shape) as (file, found):
        data = np.empty(found, dtype)
        view, at = data.reshape(-1).view(np.uint8).data, 0
        # What `ZipFile.open` gives has readinto; its stub says IO[bytes].
        while count := file.readinto(view[at : at + (1 << 24)]):  # pyright: ignore[reportAttributeAccessIssue]
            at += count
        if at != data.nbytes:
            raise ValueError(f"{name} is cut")
        return data


def mapped(
    archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int | None, ...], check: bool = True
) -> np.ndarray:
    """An array that is read where it is used: a memory map, read-only, of one that is stored as it is; as `whole`.

    With `check` it is read through once, so that damage is told now. A deflated array is taken into memory.
    """
    if archive.getinfo(f"{name}.npy").compress_type != zipfile.ZIP_STORED:
        return whole(archive, name, dtype, shape)
    with array(archive, name, dtype, shape) as (file, found):
        start = file.tell()
        while check and file.read(1 << 24):  # to its end, where its checksum is compared
            pass
    path = Path(archive.filename or "")
    with path.open("rb") as file:
        file.seek(archive.getinfo(f"{name}.npy").header_offset)
        header = struct.unpack("<4s22xHH", file.read(30))
    offset = archive.getinfo(f"{name}.npy").header_offset + 30 + header[1] + header[2] + start
    return np.memmap(path, np.dtype(dtype), "r", offset, found)
