"""`data.name=ilsvrc`: ImageNet as ILSVRC2012 ships it, whose 50,000 validation pictures lie flat in one folder.

`data.root` is the training set, a subfolder a class (n01440764, ...), and `data.heldout_root` the flat folder; or
`data.root` is the flat folder alone. The labels of its pictures come from the development kit, whose class numbers are
in an order of its own: `meta.mat` says which synset each is. Or from a text file with a synset a line. Labels here are
those of everybody: synsets in order of text, from 0.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import Field

from mvar.config import Config, DataConfig
from mvar.data.encoded import EncodedPictures, stamp_of
from mvar.data.folders import EXTENSIONS, HIDDEN, OTHER, FolderSource, Listing, class_folders
from mvar.data.pictures import plain
from mvar.data.sources.contract import Pictures, check_num_classes
from mvar.data.sources.rooted import RootedSource, other_classes
from mvar.errors import UserError
from mvar.files import file_digest

TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
SYNSET = "a synset such as n01440764"
MAX_META_BYTES = 64 << 20  # the real one has 0.3 MB
READ_S = 60.0


class Ilsvrc(RootedSource):
    """Class subfolders for training, a flat folder for validation."""

    class Settings(Config):
        """Where the labels of the flat pictures are."""

        devkit: str | None = Field(
            default=None, description=f"The development kit, a folder that has (in data/) {TRUTH} and {META}."
        )
        labels: str | None = Field(
            default=None,
            description="In place of it: a text file, a line a picture: name and synset, or synset alone.",
        )

    name = "ilsvrc"
    layout = "a folder of class subfolders, or the flat folder of ILSVRC2012_val_00000001.JPEG and so on"

    def heldout(self, config: DataConfig, train: Pictures | None) -> Pictures:
        """Flat pictures get the classes of the training folder, where there is one, opened or not."""
        root = self._root(config.root, "data.root", config)
        names = None if is_flat(root) else class_folders(root, "data.root")
        if names is not None:
            check_num_classes(names, config, plain(root))
        flat = self._root(config.heldout_root, "data.heldout_root", config)
        found = _flat_or_folders(flat, "data.heldout_root", config, names)
        if names is not None and found.class_names != names:
            raise other_classes(names, found.class_names, config)
        return found

    def pictures(self, root: Path, field: str, config: DataConfig) -> Pictures:
        """Those of one root."""
        return _flat_or_folders(root, field, config, None)


def is_flat(root: Path) -> bool:
    """Whether a folder has no subfolders."""
    return root.is_dir() and not any(path.is_dir() and not path.name.startswith(".") for path in root.iterdir())


def _flat_or_folders(root: Path, field: str, config: DataConfig, names: Sequence[str] | None) -> Pictures:
    return FlatPictures(root, field, config, names) if is_flat(root) else FolderSource(root, field)


class FlatPictures(EncodedPictures):
    """Pictures of one folder, in order of name.

    Args:
        root: the folder.
        field: that names it, for messages.
        config: its settings say where the labels are.
        names: the synsets in the order of their labels; None: those that there are.
    """

    def __init__(self, root: Path, field: str, config: DataConfig, names: Sequence[str] | None) -> None:
        self.root, listing = root, Listing()
        self.files: list[str] = []
        for path in sorted(root.iterdir()):
            if path.name.startswith(".") or not path.name.lower().endswith(EXTENSIONS):
                listing.skip(HIDDEN if path.name.startswith(".") else OTHER, "")
            else:
                self.files.append(path.name)
        if not self.files:
            raise UserError(f"{field}: {plain(root)} has no images; allowed: {Ilsvrc.layout}")
        synsets, self.label_files = _synsets(self.files, root, field, config)
        numbers = {name: label for label, name in enumerate(names or sorted(set(synsets)))}
        if unknown := sorted(set(synsets) - set(numbers)):
            raise UserError(
                f"{field}: {plain(root)} has pictures of {unknown[0]}, which data.root has not; allowed: its classes"
            )
        super().__init__(field, np.array([numbers[synset] for synset in synsets]), list(numbers))
        self.listing = listing

    def content(self, i: int) -> Path:
        """Its file."""
        return self.root / self.files[i]

    def stored_bytes(self, i: int) -> int:
        """Size of its file."""
        return self.content(i).stat().st_size

    def name(self, i: int) -> str:
        """Its file's name."""
        return self.files[i]

    def stamp(self) -> str:
        """Of the files, and of those that the labels came from."""
        return stamp_of([*map(self.content, range(len(self.files))), *self.label_files])


# Labels -------------------------------------------------------------------------------------------------------------


def _synsets(files: Sequence[str], root: Path, field: str, config: DataConfig) -> tuple[list[str], list[Path]]:
    """The synset of each file, and the files that say so."""
    settings = config.settings_of(Ilsvrc.name)
    if bool(settings.devkit) == bool(settings.labels):
        given = "both are set" if settings.devkit else "neither is set"
        raise UserError(
            f"data.ilsvrc.devkit, data.ilsvrc.labels: {given}; allowed: one, for the labels of {plain(root)}"
        )
    if settings.labels:
        path = Path(config.path(settings.labels))
        return _from_text(path, files, root), [path]
    kit = Path(config.path(settings.devkit))
    folder = kit / "data" if (kit / "data" / TRUTH).is_file() else kit
    lines = _lines(folder / TRUTH, "data.ilsvrc.devkit")
    _check_count(len(lines), len(files), folder / TRUTH, root, "data.ilsvrc.devkit")
    synsets = _numbered(folder / META)
    wrong = next((line for line in lines if not line.isascii() or line not in synsets), None)
    if wrong is not None:
        raise UserError(
            f"data.ilsvrc.devkit: {plain(folder / TRUTH)} has class {wrong!r:.60}; allowed: a number that "
            f"{META} has, 1 to {len(synsets)}"
        )
    return [synsets[line] for line in lines], [folder / TRUTH, folder / META]


def _from_text(path: Path, files: Sequence[str], root: Path) -> list[str]:
    field = "data.ilsvrc.labels"
    rows = [line.replace(",", " ").split() for line in _lines(path, field)]
    if all(len(row) == 1 for row in rows):
        _check_count(len(rows), len(files), path, root, field)
        synsets = [row[0] for row in rows]
    else:
        named = {row[0].rpartition(".")[0] or row[0]: row[1] for row in rows if len(row) >= 2}
        stems = [name.rpartition(".")[0] for name in files]
        if (missing := next((stem for stem in stems if stem not in named), None)) is not None:
            raise UserError(f"{field}: {plain(path)} has no line for {missing}; allowed: a line for each picture")
        synsets = [named[stem] for stem in stems]
    wrong = next((s for s in synsets if not (s[:1] == "n" and s[1:].isdigit())), None)
    if wrong is not None:
        raise UserError(f"{field}: {plain(path)} has {wrong!r:.60}; allowed: {SYNSET}")
    return synsets


def _check_count(labels: int, pictures: int, path: Path, root: Path, field: str) -> None:
    if labels != pictures:
        raise UserError(
            f"{field}: {plain(path)} has {labels:,} labels, {plain(root)} {pictures:,} pictures; allowed: equally many"
        )


def _lines(path: Path, field: str) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise UserError(f"{field}: {plain(path)} cannot be read ({reason}); allowed: a text file") from None


def _numbered(path: Path) -> dict[str, str]:
    """The synset of each class number, of those that have no classes below them."""
    field = "data.ilsvrc.devkit"
    try:
        if (size := path.stat().st_size) > MAX_META_BYTES:
            raise UserError(f"{field}: {plain(path)} has {size:,} bytes; allowed: {MAX_META_BYTES:,}")
        return dict(_read(path, file_digest(path)))
    except UserError:
        raise
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:200]
        raise UserError(f"{field}: {plain(path)} cannot be read ({reason}); allowed: the kit's {META}") from None


READ = """
import json, sys
import numpy as np
from scipy.io import loadmat
rows = np.atleast_1d(loadmat(sys.argv[1], squeeze_me=True)["synsets"])
leaves = [row for row in rows if int(row["num_children"]) == 0]
json.dump([[str(int(row["ILSVRC2012_ID"])), str(row["WNID"])] for row in leaves], sys.stdout)
"""


@cache
def _read(path: Path, sha256: str) -> list[tuple[str, str]]:
    """Numbers and synsets of a file of MATLAB's, by scipy in a process of its own: damaged ones end the process.

    `sha256` is of the file: it is read once.
    """
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, timeout=READ_S, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(said[-1] if said and done.returncode == 1 else "damaged")
    return [(number, synset) for number, synset in json.loads(done.stdout)]
