"""One stored picture: what its header says, and its pixels as grey or RGB. Files are of strangers: nothing is believed.

Sizes are checked from the header, before memory is taken: a picture has at most `MAX_PIXELS`, as it is stored and once
its shorter side is resized. Of animated pictures the first frame counts.

There are two readings (`DataConfig.reading`). The first drops transparency, so that the colours below it come out, and
leaves pictures as they lie in the file. The second puts them on white and turns them as their EXIF orientation says.
Pictures with neither have the same pixels in both.
"""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from mvar.errors import UserError, warn

Reading = Literal[1, 2]
MAX_PIXELS = 178_956_970  # Pillow's own bound: half a gigabyte as RGB
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # none that runs a program
DEFLATE_RATIO = 1032  # bytes that one byte of zlib's format can stand for, at most
PNG_BITS = {"L": 2, "LA": 16, "RGB": 24, "RGBA": 32}  # a pixel, at least; 1 in other modes
ORIENTATION = 0x0112  # EXIF tag; 1: upright

# Pillow warns in two lines, of what is said here in one or does not matter: broken EXIF, large pictures.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Header:
    """What can be known of a picture before it is decoded."""

    mode: str  # Pillow's name: L, RGB, P, RGBA, CMYK, ...
    transparent: bool  # has an alpha channel, or a colour that counts as transparent
    rotated: bool  # its EXIF orientation is not upright
    size: tuple[int, int]  # width and height as it is stored, pixels


@dataclass(frozen=True)
class Content:
    """A picture that is no file of its own: its bytes, and what it is called in messages."""

    shown: str
    data: bytes


Stored = Path | Content


def plain(path: Path | str) -> str:
    """A path as text that can be printed: bytes that are not UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def resized(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height once the shorter of them is `side`; the longer one is rounded down."""
    shorter = min(width, height)
    return side * width // shorter, side * height // shorter


def read_header(path: Stored, field: str, side: int | None = None) -> Header:
    """What a picture's header says.

    Raises:
        UserError: as `decode`, except of damage behind the header.
    """
    with _opened(path, field, side) as picture:
        return Header(picture.mode, picture.has_transparency_data, _is_rotated(picture), picture.size)


def is_see_through(path: Stored, field: str) -> bool:
    """Whether a picture with transparency has a pixel that is not opaque; it is decoded."""
    with _opened(path, field, None) as picture:
        low, _ = picture.convert("RGBA").getchannel("A").getextrema()
        return low != 255


def decode(path: Stored, field: str, mode: str, side: int | None = None, reading: Reading = 2) -> Image.Image:
    """A picture's pixels.

    Args:
        path: the file, or what would be in it.
        field: of the config, for messages.
        mode: `L` (grey) or `RGB`.
        side: what its shorter side will be resized to; None: not resized.
        reading: see the module's text.

    Raises:
        UserError: no such file, no picture, a damaged one, one of more than 8 bits a channel or of too many pixels;
            names the path.
    """
    with _opened(path, field, side) as picture:
        picture.load()
        transparent = picture.has_transparency_data
        if reading == 1:
            if transparent:
                _say_that_colours_come_out(field)
            return picture.convert(mode)
        upright = ImageOps.exif_transpose(picture) if _is_rotated(picture) else picture
        return (_on_white(upright) if transparent else upright).convert(mode)


@cache
def _say_that_colours_come_out(field: str) -> None:  # once a process
    warn(f"{field}: transparent pictures show their hidden colours; allowed: data.reading=2, which puts them on white")


def _on_white(picture: Image.Image) -> Image.Image:
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture.convert("RGBA"))
    return canvas.convert("RGB")


def _is_rotated(picture: Image.Image) -> bool:
    try:
        return picture.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # Pillow parses EXIF without checks; a picture is readable without it
        return False


@contextmanager
def _opened(path: Stored, field: str, side: int | None) -> Iterator[Image.Image]:
    """An open picture whose sizes are checked; whatever its decoder raises inside the block is one line."""
    try:
        num_bytes = len(path.data) if isinstance(path, Content) else _file_size(path, field)
        with Image.open(io.BytesIO(path.data) if isinstance(path, Content) else path, formats=_formats()) as picture:
            _check(picture, path, num_bytes, field, side)
            yield picture
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, field, str(error)) from None
    except Exception as error:  # decoders meet damage with nearly every kind of exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        reason = reason.replace(repr(str(path)), "the file").partition(" <_io.BytesIO")[0]
        raise UserError(f"{field}: {_shown(path)} is not a readable image ({reason}); mend or remove it") from None


def _file_size(path: Path, field: str) -> int:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise UserError(f"{field}: {plain(path)} is not a regular file; allowed: a picture")
    return found.st_size


def _shown(path: Stored) -> str:
    return path.shown if isinstance(path, Content) else plain(path)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check(picture: Image.Image, path: Stored, num_bytes: int, field: str, side: int | None) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise _too_large(path, field, f"{width:,} x {height:,} pixels")
    if side:
        new_width, new_height = resized(width, height, side)
        if new_width * new_height > MAX_PIXELS:
            now = f"{width:,} x {height:,} pixels, {new_width:,} x {new_height:,} with the shorter side resized"
            raise _too_large(path, field, now)
    if picture.mode.startswith(("I", "F")):  # conversion would saturate nearly every pixel without a word
        raise UserError(
            f"{field}: {_shown(path)} has more than 8 bits a channel (mode {picture.mode}); allowed: 8 bits"
        )
    least = width * height * PNG_BITS.get(picture.mode, 1) // 8  # bytes
    if picture.format == "PNG" and least > DEFLATE_RATIO * num_bytes:
        raise UserError(
            f"{field}: {_shown(path)} is not a readable image ({width:,} x {height:,} pixels cannot be in so few "
            "bytes); mend or remove it"
        )


def _too_large(path: Stored, field: str, found: str) -> UserError:
    return UserError(f"{field}: {_shown(path)} is too large ({found}); allowed: at most {MAX_PIXELS:,} pixels")
