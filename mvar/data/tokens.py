"""The token cache: the tokens of every image, written once and read through a memory map.

A cache is a folder with `tokens.bin`, `labels.bin` and `meta.json`. The last is written at the end and makes the
cache complete; before that there are `tokens.bin.partial` and `progress.json`, from which a killed build goes on.
Shapes: `R` rows = images times crops, row `i * crops + c` being crop c of image i; `L` tokens of all scales; `V`
codebook size.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from mvar import layout
from mvar.data.crops import ImageSet, to_float
from mvar.data.rounds import ALONE, Heed, Sharing, Together, alone, in_rounds, nothing
from mvar.errors import UserError, quoted, warn_once
from mvar.escaping import one_line
from mvar.files import atomic_write, known_digest, read_json, write_json
from mvar.progress import Progress
from mvar.rows import Rows
from mvar.tokenizer.model import Tokenizer, at_once

SCHEMA_VERSION = 1
BATCH_SIZE = 128  # images of a process's round, fewer where they are large: all processes get some
ADOPTED_ROWS, ADOPTED_SHARE = 64, 0.9
MAX_META_BYTES = 1 << 20


@dataclass(frozen=True)
class TokenCache:
    """A finished cache: `tokens` `(R, L)` and `labels` `(R,)` int64, both read-only memory maps, and `meta.json`."""

    directory: Path
    tokens: np.ndarray
    labels: np.ndarray
    meta: dict[str, Any]


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint8, uint16 and int32 (little-endian) that holds ids below `vocab_size`."""
    return np.dtype("u1" if vocab_size <= 1 << 8 else "<u2" if vocab_size <= 1 << 16 else "<i4")


def build_token_cache(
    directory: Path | str,
    images: ImageSet,
    tokenizer: Tokenizer,
    *,
    crops: int,
    seed: int,
    ids: dict[str, Any],
    batch_size: int = BATCH_SIZE,
    num_workers: int = 0,
    progress: Progress | None = None,
    together: Together = alone,
) -> TokenCache:
    """Write the tokens of `crops` random crops an image, or go on where a killed build was.

    A crop is drawn from (seed, image, crop) alone, so neither resuming nor the batch size changes it; nor does the
    number of processes, which share whole batches. A complete cache is opened, not built.

    Args:
        directory: the cache's folder.
        images: the images.
        tokenizer: on the device that it is to run on.
        crops: random crops an image (and flips, where the data config has them); 0 for one central crop.
        seed: of the crops.
        ids: what the cache is made from, as JSON values; opening asks for the same.
        batch_size: images of a process's round, fewer where they are large.
        num_workers: threads that decode images; 0 decodes between batches.
        progress: called with (rows done, rows in all).
        together: opened with the rows that are done, while others are encoded: the processes that share that, which
            all go through `token_rounds` from there.

    Raises:
        UserError: an unreadable image; a complete cache in `directory` with other ids or another shape.
        OSError: the disk is full, say. The build can be resumed.
    """
    directory = Path(directory)
    plan = {
        "schema_version": SCHEMA_VERSION,
        "ids": ids,
        "shape": [len(images) * max(crops, 1), tokenizer.schedule.num_tokens],
        "dtype": token_dtype(tokenizer.config.vocab_size).str,
        "vocab_size": tokenizer.config.vocab_size,
        "patch_sides": list(tokenizer.schedule.sides),
        "crops": crops,
        "seed": seed,
    }
    if (directory / layout.META).exists():
        return _open_existing(directory, plan)
    with _rows(directory, plan, images) as rows:
        _fill(rows, plan, images, tokenizer, batch_size, num_workers, progress, together)
        _finish(rows, directory, plan, images)
    return open_token_cache(directory, ids, verify=False)  # its digests were computed just now


def open_token_cache(directory: Path | str, expected_ids: dict[str, Any], verify: bool = True) -> TokenCache:
    """Open a finished cache.

    Args:
        directory: the cache's folder.
        expected_ids: ids that must be those it was built with; it may have more.
        verify: compare checksums: of small files at every opening, of large ones once for each size and time of
            change (`mvar.files.known_digest`). Sizes are always compared.

    Raises:
        UserError: no finished cache, other ids (names both), a truncated or corrupt file (names it).
    """
    directory = Path(directory)
    meta = check_token_cache(directory, expected_ids)
    rows, length = meta["shape"]
    arrays = []
    for name, dtype, shape in (
        (layout.TOKENS, np.dtype(meta["dtype"]), (rows, length)),
        (layout.LABELS, np.dtype("<i8"), (rows,)),
    ):
        num_bytes = dtype.itemsize * math.prod(shape)  # of any size: not numpy's, which wraps around
        _check_file(directory / name, num_bytes, meta["sha256"][name] if verify else None)
        arrays.append(np.memmap(directory / name, dtype, "r", shape=shape))
    tokens, labels = arrays
    return TokenCache(directory, tokens, labels, meta)


def is_complete(directory: Path | str) -> bool:
    """Whether a build has ended there; one whose description is damaged is to be built again, and is said so once."""
    path = Path(directory) / layout.META
    if not path.is_file():
        return False
    meta = None
    try:
        _check_meta(path, meta := read_json(path))
    except UserError as error:
        version = meta.get("schema_version") if isinstance(meta, dict) else None
        if type(version) is int and version != SCHEMA_VERSION:  # of another version: whoever opens it is told so
            return True
        warn_once(f"{error}; the cache is built again where it is needed, or by `mvar repair --yes`")
        return False
    return True


def check_token_cache(directory: Path | str, expected_ids: dict[str, Any]) -> dict[str, Any]:
    """What a finished cache says of itself, its `meta.json`; tokens are not looked at.

    Raises:
        UserError: no finished cache, or other ids (names both).
    """
    directory = Path(directory)
    try:
        if (size := (directory / layout.META).stat().st_size) > MAX_META_BYTES:
            raise UserError(f"token cache: {directory / layout.META} has {size:,} bytes; allowed: {MAX_META_BYTES:,}")
        meta = read_json(directory / layout.META)
    except FileNotFoundError:
        raise UserError(
            f"token cache: {directory} holds no finished cache ({layout.META} is missing); build it first"
        ) from None
    _check_meta(directory / layout.META, meta)
    wrong = [
        f"{name} is {quoted(meta['ids'].get(name))}, needed is {value!r}"
        for name, value in expected_ids.items()
        if meta["ids"].get(name) != value
    ]
    if wrong:
        raise UserError(
            f"token cache: {directory} was built from something else: {'; '.join(wrong)}; "
            "remove the folder and it is built again, or restore what it was built from"
        )
    return meta


def adopt_token_cache(
    directory: Path | str, images: ImageSet, load_tokenizer: Callable[[], Tokenizer], ids: dict[str, Any]
) -> None:
    """Give a finished cache of an earlier version the ids that were not recorded then, if they can be vouched for.

    `ADOPTED_ROWS` rows, evenly spread, are encoded anew. Another tokenizer agrees in few tokens; the same one on
    another device, in all but a few that rounding decides. A cache that has all of `ids` by name is left alone.

    Args:
        directory: the cache's folder.
        images: what it was built from.
        load_tokenizer: gives what it is said to be built by; called only where ids are missing.
        ids: as for `open_token_cache`.

    Raises:
        UserError: recorded ids that differ; a damaged cache; tokens of another tokenizer.
    """
    directory = Path(directory)
    recorded = check_token_cache(directory, {})["ids"]
    missing = {name: value for name, value in ids.items() if name not in recorded}
    if not missing:
        return
    cache = open_token_cache(directory, {name: value for name, value in ids.items() if name not in missing})
    rows, plan = len(cache.tokens), cache.meta
    if rows != (needed := len(images) * max(plan["crops"], 1)):
        raise UserError(f"token cache: {directory} has {rows:,} rows, needed are {needed:,}; remove the folder")
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, ADOPTED_ROWS)).round().astype(int))
    pixels = np.stack([_load(images, plan["crops"], plan["seed"], int(row)) for row in chosen])
    tokenizer = load_tokenizer()
    device = next(tokenizer.parameters()).device
    tokens = tokenizer.encode(to_float(torch.from_numpy(pixels)).to(device)).cpu().numpy()
    share = float((tokens == cache.tokens[chosen]).mean())
    if share < ADOPTED_SHARE:
        raise UserError(
            f"token cache: {directory} was built by another tokenizer than the one that is there now: {share:.0%} of "
            f"the tokens of {len(chosen)} rows agree; remove the folder and it is built again"
        )
    with suppress(OSError):  # another user's results: it is looked at again the next time
        write_json(directory / layout.META, {**cache.meta, "ids": {**recorded, **missing}})


def _check_file(path: Path, num_bytes: int, sha256: str | None) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != num_bytes:
        state = (
            "is missing" if found is None else f"is {'truncated' if found < num_bytes else 'too long'}: {found} bytes"
        )
        raise UserError(f"token cache: {path} {state}, needed are {num_bytes}; remove the folder and build it again")
    if sha256 and known_digest(path) != sha256:
        raise UserError(f"token cache: {path} is corrupt (wrong checksum); remove the folder and build it again")


class _Meta(BaseModel):
    """What `meta.json` may say: it decides how bytes are read, and how much memory they take."""

    model_config = ConfigDict(strict=True)

    schema_version: Literal[1]
    ids: dict[str, Any]
    shape: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=2, max_length=2)]
    dtype: Literal["|u1", "<u2", "<i4"]  # no other: of "O" each element is an address
    vocab_size: Annotated[int, Field(ge=2)]
    patch_sides: list[Annotated[int, Field(gt=0, le=1 << 15)]]
    crops: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0)]
    sha256: dict[Literal["tokens.bin", "labels.bin"], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.sha256) != 2:
            raise ValueError("sha256: of both files")
        if self.vocab_size - 1 > np.iinfo(self.dtype).max:
            raise ValueError(f"vocab_size: {self.vocab_size} tokens do not fit dtype {self.dtype}")
        if sum(side * side for side in self.patch_sides) != self.shape[1]:
            raise ValueError(f"shape: {self.shape[1]} tokens an image are not those of the scales")
        return self


def _check_meta(path: Path, meta: Any) -> None:
    version = meta.get("schema_version") if isinstance(meta, dict) else None
    if type(version) is int and version != SCHEMA_VERSION:
        raise UserError(f"token cache: {path} has schema {version}; allowed: {SCHEMA_VERSION}")
    try:
        _Meta.model_validate(meta)
    except ValidationError as error:
        first = error.errors()[0]
        where = one_line(".".join(map(str, first["loc"])))
        reason = f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"token cache: {path} is not the description of a cache ({reason[:300]}); remove the folder"
        ) from None


def _open_existing(directory: Path, plan: dict[str, Any]) -> TokenCache:
    cache = open_token_cache(directory, plan["ids"])
    for field in plan:
        if cache.meta.get(field) != plan[field]:
            raise UserError(
                f"token cache: {directory} was built with {field} {cache.meta.get(field)!r}, "
                f"needed is {plan[field]!r}; remove the folder"
            )
    return cache


def _rows(directory: Path, plan: dict[str, Any], images: ImageSet) -> Rows:
    """The rows that a killed build of the same plan and data left, or none yet."""
    of = {name: value for name, value in plan.items() if name != "schema_version"} | {"data": images.fingerprint}
    row_bytes = np.dtype(plan["dtype"]).itemsize * plan["shape"][1]
    return Rows(
        directory / layout.TOKENS_PARTIAL, directory / layout.PROGRESS, of, row_bytes, final=directory / layout.TOKENS
    )


def _fill(
    rows: Rows,
    plan: dict[str, Any],
    images: ImageSet,
    tokenizer: Tokenizer,
    batch_size: int,
    num_workers: int,
    progress: Progress | None,
    together: Together,
) -> None:
    total, dtype = plan["shape"][0], np.dtype(plan["dtype"])
    if progress:
        progress(rows.done, total)
    if rows.done == total:
        return
    with together(rows.done) as (group, heed):
        for tokens in token_rounds(
            images,
            tokenizer,
            plan["crops"],
            plan["seed"],
            batch_size=batch_size,
            num_workers=num_workers,
            done=rows.done,
            group=group,
            heed=heed,
        ):
            rows.append(tokens.numpy().astype(dtype).tobytes(), is_last=rows.done + len(tokens) == total)
            if progress:
                progress(rows.done, total)


def token_rounds(
    images: ImageSet,
    tokenizer: Tokenizer,
    crops: int,
    seed: int,
    *,
    batch_size: int = BATCH_SIZE,
    num_workers: int = 0,
    done: int = 0,
    group: Sharing = ALONE,
    heed: Heed = nothing,
) -> Iterator[Tensor]:
    """Tokens int64 `(<= batch_size, L)` of the rows of a cache, batch by batch in order; in other processes than the
    first nothing.

    Args:
        images, tokenizer, crops, seed, batch_size, num_workers: as for `build_token_cache`.
        done: rows that are there already.
        group: the processes that share the work; all of them use this up.
        heed: what all heed before each round.
    """
    device = next(tokenizer.parameters()).device

    def load(row: int) -> Tensor:
        return torch.tensor(_load(images, crops, seed, row))  # a copy: sources may give read-only views

    def encode(pixels: Tensor) -> tuple[Tensor]:
        return (tokenizer.encode(to_float(pixels.to(device))),)

    total, side = len(images) * max(crops, 1), tokenizer.schedule.sides[-1] * tokenizer.config.downsample
    size = at_once((side, side), batch_size)
    for (tokens,) in in_rounds(load, total, size, encode, group, None, heed, done, num_workers):
        yield tokens


def _load(images: ImageSet, crops: int, seed: int, row: int) -> np.ndarray:
    image, crop = divmod(row, max(crops, 1))
    return images.crop(image, crop, seed) if crops else images.image(image, None)


def _finish(rows: Rows, directory: Path, plan: dict[str, Any], images: ImageSet) -> None:
    sha256 = rows.finish()
    with atomic_write(directory / layout.LABELS) as file:
        file.write(np.repeat(images.labels, max(plan["crops"], 1)).astype("<i8").tobytes())
    write_json(
        directory / layout.META,
        {**plan, "sha256": {layout.TOKENS: sha256, layout.LABELS: known_digest(directory / layout.LABELS)}},
    )
    rows.forget()
