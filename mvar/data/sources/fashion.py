"""`data.name=fashion`: Fashion-MNIST, 60,000 training and 10,000 held-out grey pictures of 28 x 28 pixels.

Han Xiao, Kashif Rasul, Roland Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms" (2017); MIT licence. Its four IDX files are looked for in `data.root`, and in `FashionMNIST/raw` there, as
torchvision downloads them; without a root in `$FASHION_MNIST`, else where Debian's dataset-fashion-mnist has them.
Their contents are checked against known digests, so that it does not matter whence they come.
"""

import gzip
import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from mvar.config import DataConfig
from mvar.data.arrays import ArrayPictures
from mvar.data.pictures import plain
from mvar.data.sources.contract import DataSource, OpenedSource, Split, check_num_classes
from mvar.errors import UserError

SIDE = 28
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
COUNTS: dict[str, int] = {"train": 60_000, "t10k": 10_000}
PREFIXES: dict[Split, str] = {"train": "train", "heldout": "t10k"}
# SHA-256 of the uncompressed files. Debian's and those of the authors' repository are the same.
DIGESTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
VARIABLE = "FASHION_MNIST"
TORCHVISION = Path("FashionMNIST", "raw")  # below the root of torchvision's data sets
ALLOWED = (
    "allowed: a folder with its four IDX files, or with torchvision's FashionMNIST/raw; or none with Debian's "
    "dataset-fashion-mnist installed"
)


class Fashion(DataSource):
    """All images are in memory; at their own size, with or without a border, they are not resized."""

    def check(self, config: DataConfig, stored: bool = False, order_is_asked: bool = False) -> None:
        """The files are there, and their classes are ten."""
        check_num_classes(CLASSES, config, "Fashion-MNIST")
        folder(config)

    def open(self, config: DataConfig, split: Split | None = None) -> OpenedSource:
        """The pictures; a quarter of a second for those of training."""
        check_num_classes(CLASSES, config, "Fashion-MNIST")
        place = folder(config)
        train, heldout = (_pictures(place, part) if split in (None, part) else None for part in PREFIXES)
        return OpenedSource(train, heldout, apart=True)

    def resizes(self, config: DataConfig) -> bool:
        """Not where border and picture are the image."""
        return config.image_size != SIDE + 2 * config.pad_px


def folder(config: DataConfig) -> Path:
    """Where the four files are.

    Raises:
        UserError: not all of them are in one folder.
    """
    root = Path(config.path(config.root)) if config.root else Path(os.environ.get(VARIABLE) or DEBIAN)
    missing: list[str] = []
    for place in (root, root / TORCHVISION):
        missing = [name for name in DIGESTS if _file(place, name) is None]
        if not missing:
            return place
        if len(missing) < len(DIGESTS):
            raise UserError(f"data.root: {plain(place)} lacks {', '.join(missing)} of Fashion-MNIST; {ALLOWED}")
    given = plain(root) if config.root else f"not set, and {plain(root)}"
    raise UserError(f"data.root: {given} does not hold Fashion-MNIST; {ALLOWED}")


def _file(place: Path, name: str) -> Path | None:
    """A file as it is, else compressed."""
    return next((path for path in (place / name, place / f"{name}.gz") if path.is_file()), None)


def _pictures(place: Path, split: Split) -> ArrayPictures:
    prefix = PREFIXES[split]
    count = COUNTS[prefix]
    pixels = _read(place, f"{prefix}-images-idx3-ubyte", (count, SIDE, SIDE))
    return ArrayPictures(pixels, _read(place, f"{prefix}-labels-idx1-ubyte", (count,)), CLASSES)


def _read(place: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """What an IDX file holds: uint8 of a shape that is known.

    Raises:
        UserError: another file than the known one, or one that cannot be read.
    """
    path = _file(place, name) or place / name
    header = bytes((0, 0, 8, len(shape))) + np.array(shape, dtype=">i4").tobytes()  # 8: unsigned bytes
    most = len(header) + int(np.prod(shape))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise UserError(f"data.root: {plain(path)} cannot be read ({reason}); {ALLOWED}") from None
    if hashlib.sha256(content).hexdigest() != DIGESTS[name]:
        raise UserError(f"data.root: {plain(path)} is not Fashion-MNIST's {name} (another SHA-256); {ALLOWED}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
