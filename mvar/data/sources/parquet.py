"""`data.name=parquet`: Parquet files as Hugging Face data sets have them, read by pyarrow, which is optional.

A row holds a picture (a struct with its `bytes`) and a label. Names of the classes come from the description that
`datasets` writes into the files. Row groups are read as they are needed, and some are kept: in the order of the files a
group is read once, at random once for almost each picture, so groups of some hundred rows serve best.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from mvar.config import Config, DataConfig
from mvar.data.arrays import LENGTH
from mvar.data.encoded import DECODED, EncodedPictures, stamp_of
from mvar.data.pictures import Content, plain
from mvar.data.sources.rooted import RootedSource, named_classes
from mvar.errors import UserError
from mvar.files import digest

KEPT_GROUPS = 4
MAX_GROUP_BYTES = 2 << 30  # of one row group's pictures, uncompressed


class Parquet(RootedSource):
    """A folder of Parquet files, or one of them."""

    class Settings(Config):
        """Which columns."""

        image: str = Field(default="image", description="Column of the pictures: a struct with `bytes`, or binary.")
        label: str = Field(default="label", description="Column of the labels: whole numbers from 0.")

    name = "parquet"
    layout = "a .parquet file, or a folder of them, with a column of pictures and one of labels"

    def check(self, config: DataConfig, stored: bool = False, order_is_asked: bool = False) -> None:
        """Open both roots."""
        _pyarrow()
        super().check(config, stored, order_is_asked)

    def pictures(self, root: Path, field: str, config: DataConfig) -> "ParquetPictures":
        """All rows of all files, in order of file and row."""
        _pyarrow()
        settings = config.settings_of(self.name)
        files = sorted(path for path in root.rglob("*.parquet") if path.is_file()) if root.is_dir() else [root]
        if not files:
            raise UserError(f"{field}: {plain(root)} has no .parquet files; allowed: {self.layout}")
        labels, names = _labels(field, settings.image, settings.label, tuple(map(str, files)), stamp_of(files))
        names = named_classes(labels, names, config.num_classes, field)
        return ParquetPictures(field, labels, names, root if root.is_dir() else root.parent, files, settings.image)


class ParquetPictures(EncodedPictures):
    """Rows of Parquet files."""

    def __init__(
        self, field: str, labels: np.ndarray, names: list[str], root: Path, files: list[Path], column: str
    ) -> None:
        super().__init__(field, labels, names)
        self.root, self.files, self.column = root, files, column
        self.groups = [(path, g, rows) for path in files for g, rows in enumerate(_group_rows(path, field))]
        self.starts = np.cumsum([0, *(rows for _, _, rows in self.groups)])
        self.first: dict[Path, int] = {}  # row of each file
        for (path, _, _), start in zip(self.groups, self.starts.tolist(), strict=False):
            self.first.setdefault(path, start)
        self.kept: dict[int, Any] = {}
        self.lock = threading.Lock()  # pictures are decoded by threads

    def content(self, i: int) -> Content:
        """The bytes of a row."""
        group = int(np.searchsorted(self.starts, i, side="right")) - 1
        try:
            value = self._group(group)[i - int(self.starts[group])].as_py()
        except UnicodeDecodeError:
            raise UserError(f"{self.field}: {self._shown(i)} is damaged; allowed: a Parquet file") from None
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise UserError(f"{self.field}: {self._shown(i)} has no bytes; allowed: pictures that are in the file")
        return Content(self._shown(i), value)

    def stored_bytes(self, i: int) -> int:
        """Not known without reading it."""
        return 0

    def name(self, i: int) -> str:
        """Its file, and its row there."""
        group = int(np.searchsorted(self.starts, i, side="right")) - 1
        path = self.groups[group][0]
        return f"{path.relative_to(self.root).as_posix()}/{i - self.first[path]}"

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Of few pictures that of their pixels; of many, of files and labels: sizes of pictures would be read."""
        if len(indices) <= DECODED:
            return super().fingerprint(indices)
        sizes = [[path.name, path.stat().st_size] for path in self.files]
        return digest([sizes, list(map(int, indices)), self.labels[list(indices)].tolist()], length=LENGTH)

    def stamp(self) -> str:
        """Of the files."""
        return stamp_of(self.files, *self.class_names)

    def _shown(self, i: int) -> str:
        return f"{plain(self.root)}/{self.name(i)}"

    def _group(self, number: int) -> Any:
        with self.lock:
            if number not in self.kept:
                path, group, _ = self.groups[number]
                with _read(path, self.field) as file:
                    self.kept[number] = file.read_row_group(group, columns=[self.column]).column(0)
                while len(self.kept) > KEPT_GROUPS:
                    del self.kept[next(iter(self.kept))]
            return self.kept[number]


def _pyarrow() -> Any:
    """pyarrow's Parquet reader.

    Raises:
        UserError: it is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            "data.name: parquet needs pyarrow, which is not installed; allowed: after pip install pyarrow"
        ) from None
    return parquet


@contextmanager
def _read(path: Path | str, field: str) -> Iterator[Any]:
    """An open Parquet file; whatever its reader raises inside the block is one line."""
    try:
        with _pyarrow().ParquetFile(path) as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # pyarrow's own kinds, OSError, and of damaged strings UnicodeDecodeError
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{field}: {plain(path)} cannot be read ({reason}); allowed: a Parquet file") from None


def _group_rows(path: Path, field: str) -> list[int]:
    with _read(path, field) as file:
        groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
        for group in groups:
            if group.total_byte_size > MAX_GROUP_BYTES:
                raise UserError(
                    f"{field}: {plain(path)} has row groups of {group.total_byte_size:,} bytes; allowed: "
                    f"{MAX_GROUP_BYTES:,}"
                )
        return [group.num_rows for group in groups]


@lru_cache(maxsize=4)
def _labels(
    field: str, image: str, label: str, files: tuple[str, ...], stamp: str
) -> tuple[np.ndarray, list[str] | None]:
    """The labels of all rows, and the names of the classes where the first file describes them."""
    found: list[np.ndarray] = []
    names = None
    for number, path in enumerate(files):
        with _read(path, field) as file:
            columns = file.schema_arrow.names
            for setting, column in (("image", image), ("label", label)):
                if column not in columns:
                    raise UserError(
                        f"data.parquet.{setting}: {column!r} is no column of {plain(path)}; allowed: "
                        + ", ".join(columns)
                    )
            if number == 0:
                names = _class_names(file.schema_arrow.metadata or {}, label)
            values = file.read(columns=[label]).column(0)
            array = values.to_numpy() if values.null_count == 0 else np.array([None])
        if array.dtype.kind not in "iu":
            raise UserError(
                f"data.parquet.label: column {label!r} of {plain(path)} holds {values.type}, or rows without; allowed: "
                "whole numbers"
            )
        found.append(array.astype(np.int64))
    return np.concatenate(found), names


def _class_names(metadata: dict[bytes, bytes], label: str) -> list[str] | None:
    """What `datasets` says of a ClassLabel."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
