"""Names what a file is that was taken for weights: a pointer of git-lfs, a web page, an archive, a text."""

import re
from pathlib import Path

HEAD = 4096  # bytes that are looked at
SHOWN = 40  # characters of a text
MAGIC = {
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"BZh": "a bzip2 archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"\x89HDF": "an HDF5 file, as Keras writes them",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
}
PAGE = re.compile(r"\s*(<!doctype html|<html|<head|<body|<!--)", re.IGNORECASE)


def describe_foreign(path: Path) -> str:
    """What a file is that holds no weights, and what to do about it; empty where it may hold some."""
    with path.open("rb") as file:
        return describe_head(file.read(HEAD))


def describe_head(head: bytes) -> str:
    """The same of a file's first `HEAD` bytes. A damaged file of weights is not told from a sound one."""
    if not head:
        return "an empty file; copy or download it again"
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if not head.strip(b"\0"):
        return "a file that begins with zeros, an unfinished download; download it again"
    text = _as_text(head)
    return _describe_text(text) if text is not None else ""


def _as_text(head: bytes) -> str | None:
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) < HEAD:  # a character that the end of the head cuts is none
            return None
        text = head[: error.start].decode(encoding)
    return text if all(c.isprintable() or c in "\t\r\n\f" for c in text) else None


def _describe_text(text: str) -> str:
    if text.startswith("version https://git-lfs"):
        size = re.search(r"^size (\d{1,15})\s*$", text, re.MULTILINE)
        whole = f" to a file of {size[1]} bytes" if size else ""
        return f"a pointer of git-lfs{whole}, which git clone leaves without git-lfs; fetch the file by git lfs pull"
    if re.match(r"\S*/?annex/objects/\S+\s*$", text):
        return "a pointer of git-annex; fetch the file by git annex get"
    if PAGE.match(text):
        return "a web page (HTML), such as a sign-in or error page; download the file itself"
    if text.lstrip().startswith("<?xml"):
        return "an XML text, such as a storage server's error; download the file itself"
    kind = "a JSON text" if text.lstrip()[:1] in ("{", "[") else "a text"
    line = text.strip()
    return f"{kind} that begins {line[:SHOWN]!r}{'...' if len(line) > SHOWN else ''}; download the file itself"
