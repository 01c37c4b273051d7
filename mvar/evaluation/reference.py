"""What samples are compared with: held-out images, or a file of reference as ADM (Dhariwal and Nichol 2021) publishes.

Such a file (`VIRTUAL_imagenet256_labeled.npz`) has statistics of a whole data set, of Inception's features (`mu`,
`sigma`) and of its spatial features (`mu_s`, `sigma_s`), and some of its images (`arr_0`, uint8 `(M, H, W, 3)`). FID,
FD-infinity and sFID are against the statistics; what needs single images, precision and recall say, is against these.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mvar.config import DataConfig, RunConfig
from mvar.data import npz
from mvar.data.sources.contract import find
from mvar.data.splits import load_images
from mvar.errors import UserError
from mvar.evaluation.extraction import BATCH_SIZE, statistics_of
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.fidelity import Statistics
from mvar.evaluation.images import Images, Spooled
from mvar.files import atomic_write, expand, known_digest

FIELD = "evaluation.reference"
WANTED = "allowed: an .npz file with arr_0, mu, sigma, mu_s and sigma_s, as ADM's VIRTUAL_imagenet256_labeled.npz"
SYMMETRIC = 1e-6  # of a covariance, relative to its largest entry


@dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    Args:
        images: uint8 `(M, ch, H, W)` or an image set.
        features: statistics of the extractor's features; None: those of the images.
        spatial: of its spatial features; None: those of the images.
        told: what a record says of it.
    """

    images: Any
    features: Statistics | None = None
    spatial: Statistics | None = None
    told: dict[str, Any] = field(default_factory=dict)


class FileImages:
    """The images of a file of reference, each read where it is used.

    Args:
        rows: uint8 `(M, H, W, 3)`.
        channels: of the data: of 1, the three of the file must be equal, and one of them is given.
    """

    def __init__(self, rows: np.ndarray, channels: int) -> None:
        self.rows, self.channels = rows, channels

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, i: int, rng: None) -> np.ndarray:
        """Image i, uint8 `(ch, H, W)`."""
        pixels = np.moveaxis(np.array(self.rows[i]), -1, 0)
        if self.channels == 3:
            return pixels
        if (pixels != pixels[:1]).any():
            raise UserError(f"{FIELD}: image {i} is coloured, data.channels is 1; allowed: grey images")
        return pixels[:1]


def reference_of(config: RunConfig) -> Reference:
    """What a config's samples are compared with.

    Raises:
        UserError: a file that is missing, damaged or none of reference; a data set that cannot be read, or one whose
            images are not resized, with `reference_resize_factor`.
    """
    if path := config.evaluation.reference:
        return read_reference(path, config.data.channels)
    images = load_images(_prepared(config), "heldout")
    factor = config.evaluation.reference_resize_factor
    told = {"split": "heldout", "num_images": len(images)}
    return Reference(images, told=told if factor is None else told | {"resize_factor": factor})


def check_asked(config: RunConfig) -> None:
    """Refuse, before anything is made, a reference that cannot be had; as `reference_of`, by what a file claims."""
    if path := config.evaluation.reference:
        read_reference(path, config.data.channels, whole=False)
    _prepared(config)


def _prepared(config: RunConfig) -> DataConfig:
    """The data as the reference has them."""
    factor = config.evaluation.reference_resize_factor
    if factor is None:
        return config.data
    if not find(config.data.name).resizes(config.data):
        raise UserError(
            f"evaluation.reference_resize_factor: images of data.name={config.data.name} are not resized; allowed: none"
        )
    return config.data.model_copy(update={"resize_factor": factor})


def file_of(path: str) -> Path:
    """A file of reference by its path; `~` and environment variables are expanded.

    Raises:
        UserError: it is not there.
    """
    file = expand(path)
    if not file.is_file():
        what = " (a directory)" if file.is_dir() else ""
        raise UserError(f"{FIELD}: no file {str(file)!r}{what}; {WANTED}")
    return file


def read_reference(path: str, channels: int, whole: bool = True) -> Reference:
    """A file of reference; its images are read where they are used.

    Args:
        path: of the file; `~` and environment variables are expanded.
        channels: of the images that are wanted, 1 or 3.
        whole: whether its digest is taken and its statistics are read; else only what it says it has.

    Raises:
        UserError: not there, damaged, or not such a file; names it.
    """
    file = file_of(path)
    with npz.opened(file, WANTED) as archive:
        names = {info.filename.removesuffix(".npy") for info in archive.infolist()}
        if lacking := [name for name in ("arr_0", "mu", "sigma", "mu_s", "sigma_s") if name not in names]:
            raise UserError(f"{FIELD}: {str(file)!r} has no {', '.join(lacking)}; {WANTED}")
        images = FileImages(npz.mapped(archive, "arr_0", "uint8", (None, None, None, 3), check=whole), channels)
        if not whole:
            return Reference(images)
        pool, spatial = _statistics(archive, "mu", "sigma"), _statistics(archive, "mu_s", "sigma_s")
    return Reference(
        images, pool, spatial, {"file": file.name, "sha256": known_digest(file), "num_images": len(images)}
    )


def fitting(found: Statistics | None, width: int) -> Statistics | None:
    """Statistics of a file of reference, held against the extractor's number of features."""
    if found and len(found["mu"]) != width:
        raise UserError(
            f"evaluation.reference: statistics of {len(found['mu'])} features, the extractor has {width}; allowed: a "
            "file of this extractor's"
        )
    return found


def _statistics(archive: Any, mean: str, covariance: str) -> Statistics:
    mu, sigma = _float64(archive, mean, 1), _float64(archive, covariance, 2)
    if sigma.shape != 2 * mu.shape:
        raise ValueError(f"{covariance} is {list(sigma.shape)}, {mean} {list(mu.shape)}")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{mean} or {covariance} is not finite")
    if np.abs(sigma - sigma.T).max() > SYMMETRIC * np.abs(sigma).max():
        raise ValueError(f"{covariance} is not symmetric")
    return {"mu": mu, "sigma": sigma}


def _float64(archive: Any, name: str, axes: int) -> NDArray[np.float64]:
    """float64, or float32 as `np.mean` gives of float32: ADM takes its means so."""
    try:
        return npz.whole(archive, name, "<f8", (None,) * axes)
    except ValueError:
        return npz.whole(archive, name, "<f4", (None,) * axes).astype(np.float64)


def write_reference(path: Path, images: Any, extractor: Extractor, keep: int | None = None) -> None:
    """Write a file of reference of one's own images, in the form that ADM's have; a batch of them is in memory.

    Args:
        path: the .npz file.
        images: uint8 `(M, ch, H, W)` or an image set; grey ones become three equal channels in the file.
        extractor: whose features and spatial features the statistics are of.
        keep: how many images, the first ones, the file holds; None: all. The statistics are of all.

    Raises:
        UserError: an extractor without spatial features, or fewer than two images.
    """
    images = Images(images, "reference images")
    count, kept = min(keep or len(images), len(images)), Spooled()
    pool, spatial = statistics_of(extractor, _keeping(images, count, kept), spatial=True)
    with atomic_write(path) as file:
        np.savez(
            file,
            arr_0=kept.mapped(count, *images.image_shape[1:], 3),
            mu=pool["mu"],
            sigma=pool["sigma"],
            mu_s=spatial["mu"],
            sigma_s=spatial["sigma"],
        )


def _keeping(images: Images, count: int, kept: Spooled) -> Iterator[Tensor]:
    """The batches of a set; the first images of it are kept on the way, with three channels, the last axis."""
    for start, batch in zip(range(0, len(images), BATCH_SIZE), images.batches(BATCH_SIZE), strict=True):
        kept.add(batch[: max(0, count - start)].expand(-1, 3, -1, -1).movedim(1, -1))
        yield batch
