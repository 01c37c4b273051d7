"""Folders of images: one subfolder a class, pictures at any depth below it; hidden names are left out.

There are two readings (`DataConfig.reading`). The first follows every link, so that a link back to its own folder
counts pictures many times, knows fewer formats and takes empty files for pictures. The second counts a picture once:

- A folder that is reached twice is listed once. What lies in the folder itself goes before what is linked into it, and
  a link to a folder above it is not followed. Links to folders and files elsewhere, on another disk say, are followed.
- Two names of one file in one class are one picture. A file linked into two classes is a picture of both.
- Empty files, broken links and files of other kinds are left out and counted.
"""

import os
import re
import stat
import unicodedata
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from mvar.data.pictures import Header, Reading, decode, is_see_through, plain, read_header
from mvar.errors import UserError, warn
from mvar.files import digest, file_digest

ClassOrder = Literal["name", "number"]
EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")  # of the first reading
MORE_EXTENSIONS = (".apng", ".avif", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".pbm", ".pnm")
LAYOUT = "a folder with one subfolder of images a class"
MAX_REPEATS = 10_000  # of folders that the first reading lists again: two links back are 2^40 paths

HIDDEN, EMPTY, OTHER = "hidden", "empty", "no pictures by their names"
BROKEN, SPECIAL, AGAIN = "broken links", "no regular files", "reached twice through links"


@dataclass
class Listing:
    """The pictures of a folder.

    `skipped` counts what was left out by reason, `differs` what the first reading would have counted otherwise.
    """

    files: list[str] = field(default_factory=list)  # paths below the root, with forward slashes, class by class
    labels: list[int] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    differs: Counter[str] = field(default_factory=Counter)
    links: int = 0  # folders and files that were reached through one

    def skip(self, reason: str, name: str, differs: bool | None = None) -> None:
        """Count something that is left out; of a file the first reading differs where it would take its name."""
        self.skipped[reason] += 1
        if differs if differs is not None else name.lower().endswith(EXTENSIONS):
            self.differs[reason] += 1


class FolderSource:
    """The pictures of a folder, in order of class and name.

    Args:
        root: the folder.
        where: the field that names it, for messages.
        reading: see the module's text.
        class_order: of the labels, where `class_names` does not give it.
        class_names: the class subfolders in the order of their labels.

    Raises:
        UserError: the folder is missing, has no class subfolder, or one of them has no image; in the second reading
            also class subfolders that are one folder or one name.
    """

    def __init__(
        self,
        root: Path | str,
        where: str,
        reading: Reading = 2,
        class_order: ClassOrder = "name",
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.root, self.field = Path(root), where
        self.reading: Reading = reading
        self.class_names = list(class_names or class_folders(self.root, where, reading, class_order))
        if reading == 1:
            self.listing = _first_listing(self.root, self.class_names, where)
        else:
            self.listing = _Walk(self.root, self.class_names, where).listing
        self.files = self.listing.files
        self.labels = np.array(self.listing.labels, dtype=np.int64)
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        if not counts.all():
            folder = self.root / self.class_names[int(np.argmin(counts))]
            known = EXTENSIONS if reading == 1 else sorted(EXTENSIONS + MORE_EXTENSIONS)
            raise UserError(f"{where}: {plain(folder)} has no images; allowed: files {', '.join(known)}")

    def picture(self, i: int, mode: str, side: int | None) -> Image.Image:
        """Image i as `L` or `RGB`; a file that cannot be decoded is a `UserError` that names it (`decode`)."""
        return decode(self.root / self.files[i], self.field, mode, side, self.reading)

    def name(self, i: int) -> str:
        """Its path below the root, with forward slashes."""
        return self.files[i]

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Digest of names and sizes; contents are not read, ImageNet's would take long."""
        return digest([[self.files[i], os.path.getsize(self.root / self.files[i])] for i in indices], length=16)

    def header(self, i: int, side: int | None) -> Header:
        """What the header of image i says, as `read_header`."""
        return read_header(self.root / self.files[i], self.field, side)

    def is_see_through(self, i: int) -> bool:
        """Whether image i, which has transparency, has a pixel that is not opaque."""
        return is_see_through(self.root / self.files[i], self.field)

    def stored_bytes(self, i: int) -> int:
        """Size of its file."""
        return os.path.getsize(self.root / self.files[i])

    def content_digest(self, i: int) -> str:
        """SHA-256 of its file."""
        return file_digest(self.root / self.files[i])

    def stamp(self) -> str:
        """Digest of names, sizes and times of change, and of what was left out: the same while nothing was written."""
        found = (os.stat(self.root / name) for name in self.files)
        stamps = [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in zip(self.files, found, strict=True)]
        beside = [self.listing.skipped, self.listing.differs, self.listing.links]
        return digest([self.class_names, stamps, beside], length=16)


# Classes ------------------------------------------------------------------------------------------------------------


def class_folders(root: Path, where: str, reading: Reading = 2, class_order: ClassOrder = "name") -> list[str]:
    """The names of the class subfolders, in the order of their labels.

    Raises:
        UserError: no folder, or none in it; in the second reading also two that are one folder, or whose names are
            one text in Unicode's two forms.
    """
    if not root.is_dir():
        raise UserError(f"{where}: {plain(root)} is not a folder; allowed: {LAYOUT}")
    names = [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if reading == 2:
        names = [name for name in names if not leads_back(root, name)]
        _check_distinct(root, names, where)
    if not names:
        raise UserError(f"{where}: {plain(root)} has no class subfolders; allowed: {LAYOUT}")
    return in_order(names, class_order)


def in_order(names: Sequence[str], class_order: ClassOrder) -> list[str]:
    """Names as text, or with each run of digits as the number that it is: 2 before 10."""
    return sorted(names, key=lambda name: (_by_number(name), name)) if class_order == "number" else sorted(names)


def _by_number(name: str) -> list[tuple[int, int, str]]:
    parts = (part for part in re.split("([0-9]+)", name) if part)
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts]


def leads_back(root: Path, name: str) -> bool:
    """Whether a class subfolder is a link to the folder that it lies in, or to one above."""
    real = Path(os.path.realpath(root))
    return (root / name).is_symlink() and Path(os.path.realpath(root / name)) in (real, *real.parents)


def one_form(name: str) -> str:
    """A name in Unicode's composed form: Linux writes é as one character, macOS as two."""
    return unicodedata.normalize("NFC", name)


def spelled(name: str) -> str:
    """A name in quotes, and once more in escapes where it is not plain: names may look the same and differ."""
    return repr(name) if name.isascii() else f"{name!r} = {name!a}"


def _check_distinct(root: Path, names: list[str], where: str) -> None:
    forms: dict[str, str] = {}
    places: dict[str, str] = {}
    for name in sorted(names):
        place = os.path.realpath(root / name)
        for known, key, why in ((forms, one_form(name), "one name"), (places, place, "one folder")):
            if (other := known.setdefault(key, name)) != name:
                raise UserError(
                    f"{where}: {plain(root)} has two class subfolders that are {why}: {spelled(other)} and "
                    f"{spelled(name)}; allowed: one of them"
                )


# Files --------------------------------------------------------------------------------------------------------------


def _first_listing(root: Path, class_names: Sequence[str], where: str) -> Listing:
    listing, repeats = Listing(), 0
    for label, name in enumerate(class_names):
        found: list[str] = []
        known: set[str] = set()
        for folder, subfolders, names in os.walk(root / name, followlinks=True):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            relative = Path(folder).relative_to(root).as_posix()
            found += [f"{relative}/{n}" for n in names if n.lower().endswith(EXTENSIONS) and not n.startswith(".")]
            real = os.path.realpath(folder)
            repeats += real in known
            known.add(real)
            if repeats > MAX_REPEATS:
                raise UserError(f"{where}: {plain(root / name)} has links back to itself; allowed: data.reading=2")
        listing.files += sorted(found)
        listing.labels += [label] * len(found)
    if repeats:
        _say_that_pictures_repeat(where, str(root))
    return listing


@cache
def _say_that_pictures_repeat(where: str, root: str) -> None:  # once a process
    warn(
        f"{where}: {plain(root)} has links back: pictures count many times; allowed: data.reading=2, which counts once"
    )


Key = tuple[int, int]  # device and number of a file or folder


def _key(found: os.stat_result) -> Key:
    return found.st_dev, found.st_ino


class _Walk:
    """The second reading's walk: first all that lies in the class folders, then what is linked into them."""

    def __init__(self, root: Path, class_names: Sequence[str], where: str) -> None:
        self.root, self.where = root, where
        self.listing = Listing()
        real = Path(os.path.realpath(root))
        self.above = {_key(os.stat(path)) for path in (real, *real.parents)}
        self.listed: set[Key] = set()  # folders that lie in a class folder
        self.files_lie_here = False
        self.names: list[list[str]] = [[] for _ in class_names]
        self.links: list[deque[str]] = [deque() for _ in class_names]
        self.known: list[set[Key]] = [set() for _ in class_names]  # linked folders, and files that have several names
        for entry in os.scandir(root):
            if entry.name.startswith("."):
                self.listing.skip(HIDDEN, "")
            elif not entry.is_dir():
                self.listing.skip(OTHER, "")
            elif leads_back(root, entry.name):
                self.listing.skip(AGAIN, "", differs=True)
        for label, name in enumerate(class_names):
            self.listing.links += (root / name).is_symlink()
            self._folders_below(name, label, self.listed)
        for label, names in enumerate(self.names):
            self._follow(label)
            self.listing.files += sorted(names)
            self.listing.labels += [label] * len(names)

    def _folders_below(self, start: str, label: int, listed: set[Key]) -> None:
        """List a folder and those in it; links are kept for later."""
        waiting = [start]
        while waiting:
            relative = waiting.pop()
            try:
                key = _key(os.stat(self.root / relative))
                if key in self.above or key in self.listed or key in listed:
                    self.listing.skip(AGAIN, "", differs=True)
                    continue
                listed.add(key)
                with os.scandir(self.root / relative) as entries:
                    for entry in entries:
                        self._entry(entry, f"{relative}/{entry.name}", label, waiting)
            except OSError as error:
                path = plain(self.root / relative)
                message = f"{self.where}: {path} cannot be listed ({error.strerror}); allowed: readable folders"
                raise UserError(message) from None

    def _entry(self, entry: os.DirEntry[str], path: str, label: int, folders: list[str]) -> None:
        if entry.name.startswith("."):
            self.listing.skip(HIDDEN, "")
        elif entry.is_symlink():
            self.links[label].append(path)
        elif entry.is_dir(follow_symlinks=False):
            folders.append(path)
        else:
            self._file(path, entry.stat(follow_symlinks=False), label)

    def _file(self, path: str, found: os.stat_result, label: int, linked: bool = False) -> None:
        """Count a file as a picture of a class, or among the skipped."""
        name = path.lower()
        several = linked or found.st_nlink > 1
        if not stat.S_ISREG(found.st_mode):
            self.listing.skip(SPECIAL, name)
        elif not name.endswith(EXTENSIONS + MORE_EXTENSIONS):
            self.listing.skip(OTHER, name)
        elif not found.st_size:
            self.listing.skip(EMPTY, name)
        elif several and _key(found) in self.known[label]:
            self.listing.skip(AGAIN, name)
        else:
            if several:
                self.known[label].add(_key(found))
            if name.endswith(MORE_EXTENSIONS):
                self.listing.differs["in formats that were left out"] += 1
            self.files_lie_here = self.files_lie_here or not linked
            self.listing.links += linked
            self.names[label].append(path)

    def _follow(self, label: int) -> None:
        """Count what the links of a class lead to: folders first, so that a link to a file in one is known."""
        files: list[tuple[str, os.stat_result]] = []
        links = self.links[label]  # grows while folders are listed
        while links:
            path = links.popleft()
            try:
                found = os.stat(self.root / path)
            except OSError:  # leads nowhere, or to itself
                self.listing.skip(BROKEN, path)
                continue
            if not stat.S_ISDIR(found.st_mode):
                files.append((path, found))
                continue
            before = len(self.known[label])
            self._folders_below(path, label, self.known[label])
            self.listing.links += len(self.known[label]) > before
        for path, found in sorted(files):
            if self.files_lie_here and self._is_counted(Path(os.path.realpath(self.root / path)), label):
                self.listing.skip(AGAIN, path)
            else:
                self._file(path, found, label, linked=True)

    def _is_counted(self, real: Path, label: int) -> bool:
        """Whether a file lies, under a picture's name, in a folder that is listed."""
        if real.name.startswith(".") or not real.name.lower().endswith(EXTENSIONS + MORE_EXTENSIONS):
            return False
        folder = _key(os.stat(real.parent))
        return folder in self.listed or folder in self.known[label]
