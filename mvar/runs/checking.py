"""Every artefact of a results directory against its digest: what `mvar repair --check` shows."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mvar import layout
from mvar.artefacts import Check, compare, read_record, record_problem, wrong_reason
from mvar.errors import UserError
from mvar.files import file_digest, known_digest, read_json
from mvar.runs.store import Store

PLACES = (
    f"{layout.RUNS}/*",
    f"{layout.RUNS}/*/{layout.CHECKPOINTS}",
    f"{layout.RUNS}/*/{layout.SAMPLES}/*",
    f"{layout.STAGES}/*",
    f"{layout.STAGES}/*/{layout.CHECKPOINTS}",
    f"{layout.ATTENTION}/*",
)
FILES = ("*.safetensors", layout.CHECKPOINT_FILES, layout.SAMPLES_NPZ, layout.ATTENTION_ROWS)
SHARDED = tuple(
    f"{place}/*/{layout.CHECKPOINTS}/{layout.CHECKPOINTS_OF_STEPS}" for place in (layout.RUNS, layout.STAGES)
)
CACHES = (
    f"{layout.STAGES}/tokens-*/*",
    f"{layout.STAGES}/vectors-*",
)  # the digests of these are in their own description
AGAIN = "delete it and it is made again from the last checkpoint, by the command that made it or needs it"
REMEDIES = {
    ".safetensors": AGAIN,
    ".pt": "delete it; training goes on from the one before it, or anew",
    ".npz": "delete it; the images are drawn again by the next evaluation that needs them",
    ".npy": "delete it and `attention.json`; `mvar attention` measures again",
}
SHARDED_REMEDY = "delete the folder; training goes on from the one before it, or anew"
CACHE_REMEDY = "remove its folder and it is made again"


class Unsound(NamedTuple):
    """An artefact that is not what was written; as text, one line."""

    path: Path
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


def check_results(store: Store, full: bool = True) -> list[Unsound]:
    """What is damaged in a results directory. Nothing is written with `full`.

    Args:
        store: the results.
        full: read every file through, large ones too; else those anew whose size or time is another than when they
            were read last.
    """
    read: Callable[[Path], str] = file_digest if full else known_digest
    return [*_recorded(store, read), *_caches(store, read)]


def unchecked_artefacts(store: Store) -> list[Path]:
    """Artefacts that nobody can vouch for: of an earlier version, or put there by hand."""
    return [path for path in _artefacts(store) if path.name not in read_record(path.parent)]


def _artefacts(store: Store) -> Iterator[Path]:
    for place in PLACES:
        for folder in sorted(store.root.glob(place)):
            yield from sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})
    for place in SHARDED:  # each file, missing ones too
        for folder in sorted(path for path in store.root.glob(place) if path.is_dir()):
            yield from (folder / name for name in sorted(read_record(folder)))


def _remedy(path: Path) -> str:
    return REMEDIES.get(path.suffix, SHARDED_REMEDY) if path.name != layout.CHECKPOINT_REST else SHARDED_REMEDY


def _recorded(store: Store, read: Callable[[Path], str]) -> Iterator[Unsound]:
    for place in (*PLACES, *SHARDED):
        for path in sorted(store.root.glob(f"{place}/{layout.DIGESTS}")):
            if problem := record_problem(path.parent):
                yield Unsound(path, problem.removeprefix(f"{path}: "), "delete it; its files count as unchecked then")
    for path in _artefacts(store):
        try:
            if path.name in read_record(path.parent) and compare(path, sha256 := read(path)) is Check.WRONG:
                yield Unsound(path, wrong_reason(path, sha256), _remedy(path))
        except OSError as error:
            yield Unsound(path, f"cannot be read ({error.strerror})", _remedy(path))


def _caches(store: Store, read: Callable[[Path], str]) -> Iterator[Unsound]:
    for place in CACHES:
        for meta in sorted(store.root.glob(f"{place}/{layout.META}")):
            try:
                recorded = _digests(read_json(meta))
            except (UserError, OSError, KeyError, TypeError):
                yield Unsound(meta, "not the description of a cache", CACHE_REMEDY)
                continue
            for name, sha256 in recorded.items():
                path = meta.parent / name
                try:
                    if (found := read(path)) != sha256:
                        yield Unsound(path, f"wrong checksum, SHA-256 {found[:12]}...", CACHE_REMEDY)
                except OSError as error:
                    yield Unsound(path, f"cannot be read ({error.strerror})", CACHE_REMEDY)


def _digests(meta: dict[str, Any]) -> dict[str, str]:
    """By file name; a cache of tokens has several files, one of vectors a single one."""
    sha256 = meta["sha256"]
    return (
        {layout.VECTORS: sha256} if isinstance(sha256, str) else {n: sha256[n] for n in (layout.TOKENS, layout.LABELS)}
    )
