"""One picture file: transparency, orientation, sizes, damage; and mutated files of every kind."""

import io
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mvar.data.pictures import MAX_PIXELS, decode, is_see_through, read_header
from mvar.errors import UserError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def message_of(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pixels(path: Path, mode: str = "RGB", reading: int = 2) -> np.ndarray:
    return np.asarray(decode(path, "data.root", mode, None, reading))


# Transparency and orientation ---------------------------------------------------------------------------------------


def half_red(mode: str) -> Image.Image:
    """4 x 4 pixels: the left half opaque red (or grey 76, as which it counts), the right half transparent."""
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[:, :2, 3] = 255, 255
    picture = Image.fromarray(rgba)
    if mode in ("RGBA", "LA"):
        return picture.convert(mode)
    if mode == "P":
        indexed = Image.new("P", (4, 4), 1)
        indexed.putpalette([255, 0, 0, 0, 0, 255])
        indexed.paste(0, (0, 0, 2, 4))
        indexed.info["transparency"] = bytes([255, 0])  # of each colour
        return indexed
    plain = Image.new(mode, (4, 4), 76 if mode == "L" else RED)
    hidden = 7 if mode == "L" else (0, 7, 255)
    plain.paste(hidden, (2, 0, 4, 4))
    plain.info["transparency"] = hidden
    return plain


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_pixels_are_white(tmp_path, mode):
    half_red(mode).save(tmp_path / "x.png", transparency=half_red(mode).info.get("transparency"))
    left = (76,) * 3 if mode in ("L", "LA") else RED
    found = pixels(tmp_path / "x.png")
    assert found.tolist() == [[list(left)] * 2 + [list(WHITE)] * 2] * 4
    assert pixels(tmp_path / "x.png", "L").tolist() == [[76] * 2 + [255] * 2] * 4
    assert read_header(tmp_path / "x.png", "f").transparent and is_see_through(tmp_path / "x.png", "f")


def test_half_transparent_pixels_are_blended(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 128)).save(tmp_path / "x.png")
    assert pixels(tmp_path / "x.png")[0, 0].tolist() == [255, 127, 127]


def test_transparent_gif_and_the_first_frame_of_animated_ones(tmp_path):
    frames = [Image.new("RGB", (3, 3), colour) for colour in (RED, WHITE, RED)]
    for kind in ("gif", "webp", "png"):
        options = {"lossless": True} if kind == "webp" else {}
        frames[0].save(tmp_path / f"x.{kind}", save_all=True, append_images=frames[1:], duration=9, **options)
        assert pixels(tmp_path / f"x.{kind}").tolist() == [[list(RED)] * 3] * 3
    half_red("P").save(tmp_path / "t.gif", transparency=1)
    assert pixels(tmp_path / "t.gif").tolist() == [[list(RED)] * 2 + [list(WHITE)] * 2] * 4


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_pictures_with_alpha_are_the_same_in_both_readings(tmp_path, mode):
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(tmp_path / "x.png")
    assert read_header(tmp_path / "x.png", "f").transparent and not is_see_through(tmp_path / "x.png", "f")
    for wanted in ("L", "RGB"):
        assert np.array_equal(pixels(tmp_path / "x.png", wanted, 1), pixels(tmp_path / "x.png", wanted, 2))


def test_the_first_reading_shows_hidden_colours_and_says_so_once(tmp_path, capsys):
    half_red("RGBA").save(tmp_path / "x.png")
    for _ in range(3):
        assert pixels(tmp_path / "x.png", reading=1).tolist() == [[list(RED)] * 4] * 4
    decode(tmp_path / "x.png", "told once", "RGB", None, 1)
    decode(tmp_path / "x.png", "told once", "RGB", None, 1)
    err = capsys.readouterr().err
    assert err.count("told once: transparent pictures show their hidden colours") == 1


@pytest.mark.parametrize(("kind", "orientation"), [("jpg", 6), ("png", 6), ("webp", 3), ("jpg", 8), ("jpg", 1)])
def test_pictures_stand_upright(tmp_path, kind, orientation):
    blocks = np.kron(np.array([[0, 80, 160]], np.uint8), np.ones((16, 16), np.uint8))  # 16 x 48: dark left, light right
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "webp" else {}
    Image.fromarray(blocks).convert("RGB").save(tmp_path / f"x.{kind}", exif=exif, **options)
    turned = {6: np.rot90(blocks, -1), 3: np.rot90(blocks, 2), 8: np.rot90(blocks), 1: blocks}[orientation]
    found = pixels(tmp_path / f"x.{kind}", "L").astype(int)
    assert found.shape == turned.shape and np.abs(found - turned).max() < 12
    assert pixels(tmp_path / f"x.{kind}", "L", 1).shape == blocks.shape
    assert read_header(tmp_path / f"x.{kind}", "f").rotated == (orientation != 1)


def test_other_modes(tmp_path):
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    cmyk.save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(pixels(tmp_path / "cmyk.jpg").astype(int) - RED).max() < 6
    Image.new("1", (4, 4), 1).save(tmp_path / "bit.png")
    assert pixels(tmp_path / "bit.png", "L").tolist() == [[255] * 4] * 4
    Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(tmp_path / "deep.png")
    for read in (lambda: pixels(tmp_path / "deep.png"), lambda: read_header(tmp_path / "deep.png", "data.root")):
        assert f"data.root: {tmp_path / 'deep.png'} has more than 8 bits" in message_of(read)


# Sizes and damage ---------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = bytes(1000), colour_type: int = 0) -> bytes:
    """A PNG of 8 bits that declares a size and holds any data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


SIZES = [(1_000_000, 1), (1, 1_000_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (13_000, 13_000), (100_000, 20)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_declared_sizes_are_checked_before_memory_is_taken(tmp_path, width, height):
    path = tmp_path / "x.png"
    path.write_bytes(png(width, height, bytes((width + 1) * height if width * height < 3e6 else 1000)))
    assert path.stat().st_size < 4000
    before = peak_mb()
    for read in (decode, lambda path, field, mode, side: read_header(path, field, side)):
        message = message_of(lambda read=read: read(path, "data.root", "RGB", 288))
        assert message.startswith(f"data.root: {path} ") and ("pixels" in message)
    assert peak_mb() - before < 100


def test_a_long_picture_is_used_where_its_resized_form_is_not_too_large(tmp_path):
    Image.new("L", (20_000, 10), 9).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png", "f", "L", 18).size == (20_000, 10)
    assert MAX_PIXELS < 20_000 / 10 * 300**2
    message = message_of(lambda: decode(tmp_path / "x.png", "f", "L", 300))
    assert "600,000 x 300 with the shorter side resized" in message and f"at most {MAX_PIXELS:,} pixels" in message


def test_a_picture_that_packs_well_is_read(tmp_path):
    """Nearly as many pixels a byte as the format allows."""
    Image.new("1", (12_000, 12_000)).save(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size < 25_000
    assert decode(tmp_path / "x.png", "f", "L").size == (12_000, 12_000)


def test_no_file_and_no_regular_file(tmp_path):
    assert "is not a readable image (No such file" in message_of(lambda: pixels(tmp_path / "gone.png"))
    assert "is not a regular file" in message_of(lambda: pixels(tmp_path))


def test_formats_that_run_programs_are_not_opened(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert "x.png is not a readable image" in message_of(lambda: pixels(tmp_path / "x.png"))


def sample(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    options = {"PNG": {"exif": exif}, "JPEG": {"exif": exif, "progressive": True}, "WEBP": {"exif": exif}}
    if kind == "GIF":
        picture = picture.quantize(8)
        options[kind] = {"save_all": True, "append_images": [picture.rotate(90)], "transparency": 1}
    file = io.BytesIO()
    picture.save(file, kind, **options.get(kind, {}))
    return file.getvalue()


SAMPLES = {kind: sample(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")}
change = st.tuples(st.integers(0, 10**6), st.sampled_from(["set", "cut", "insert", "repeat"]), st.binary(max_size=8))


def mutate(data: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    for place, kind, new in changes:
        at = place % (len(data) + 1)
        if kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + new + data[at:]
        elif kind == "repeat":
            data = data[:at] + data[at : at + 64] * 3 + data[at + 64 :]
        else:
            data = data[:at] + new + data[at + len(new) :]
    return data


def check_mutated(folder: Path, kind: str, changes: list[tuple[int, str, bytes]]) -> None:
    path = folder / "mutated.png"
    path.write_bytes(mutate(SAMPLES[kind], changes))
    for reading in (1, 2):
        try:
            picture = decode(path, "data.root", "RGB", 18, reading)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert picture.mode == "RGB" and picture.width * picture.height <= MAX_PIXELS


FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
anything = given(st.sampled_from(sorted(SAMPLES)), st.lists(change, min_size=1, max_size=6))


@settings(max_examples=300, **FUZZ)
@anything
def test_mutated_pictures_are_pixels_or_one_line(tmp_path, kind, changes):
    check_mutated(tmp_path, kind, changes)


@pytest.mark.slow
@settings(max_examples=20_000, **FUZZ)
@anything
def test_many_mutated_pictures_are_pixels_or_one_line(tmp_path, kind, changes):
    before = peak_mb()
    check_mutated(tmp_path, kind, changes)
    assert peak_mb() - before < 2500  # MAX_PIXELS, with transparency
