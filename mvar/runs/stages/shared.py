"""Stages that several runs share: tokenizer, token cache, feature extractor with the floors. Each is built once.

A stage is a directory with an id of its own, built under its lock: whoever comes second finds it done. Every function
here may be called at any time, in any process, after any kill; it does what is missing and returns at once otherwise.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mvar.artefacts import complain_of
from mvar.checkpoints.weights import load_weights, save_weights
from mvar.config import Config, RunConfig, identity
from mvar.errors import UserError
from mvar.files import atomic_write, known_digest
from mvar.runs.documents import read_or_warn, write_document
from mvar.runs.sources import check_source, published_tokenizer, source_digest
from mvar.runs.states import DONE, FAILED, RUNNING, STOPPED, ShouldStop, Stopped
from mvar.runs.store import Directory, Store, one_line
from mvar.tokenizer.model import Tokenizer
from mvar.training.distributed import resolve_device

REMEDY = "delete that file, then the command that made it, or needs it, makes it again from the last checkpoint"
Progress = Callable[[str, int, int], None]  # (stage, done, total)
Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Context:
    """What every stage needs: what to make, where to keep it, whom to tell, when to stop."""

    config: RunConfig
    store: Store
    progress: Progress
    should_stop: ShouldStop

    def report(self, stage: str) -> Callable[[int, int], None]:
        """The `progress(done, total)` of one stage."""
        return lambda done, total: self.progress(stage, done, total)

    def heed(self, stage: str) -> Callable[[int, int], None]:
        """The `progress(done, total)` of work that keeps no part of itself when it is stopped: it raises `Stopped`."""

        def report(done: int, total: int) -> None:
            self.progress(stage, done, total)
            self.check()

        return report

    def check(self) -> None:
        """Raise `Stopped` if work was asked to stop."""
        if self.should_stop():
            raise Stopped("asked to stop")

    @property
    def device(self) -> torch.device:
        """Where models live."""
        return torch.device(resolve_device(self.config.runtime))


@contextmanager
def recorded(directory: Directory, stage: str) -> Iterator[None]:
    """Keep a directory's status true to what happens inside the block: running, then failed or stopped.

    The status has the reason as one line; `error.txt` beside it has the traceback of what is no user's mistake.
    """
    directory.write_status(RUNNING, stage)
    try:
        yield
    except BaseException as error:
        state = STOPPED if isinstance(error, Stopped | KeyboardInterrupt) else FAILED
        try:
            current = (directory.status() or {}).get("stage", stage)
            directory.write_status(state, current, reason=one_line(error))
            if state == FAILED and not isinstance(error, UserError):
                with atomic_write(directory.path / "error.txt") as file:
                    file.write(traceback.format_exc().encode(errors="replace"))
        except (OSError, UserError):
            pass  # a full disk, a damaged file: the failure itself matters more than its record
        raise


def images(config: RunConfig, split: Split):
    """The images of a split."""
    from mvar.data.splits import load_images

    return load_images(config.data, split)


@contextmanager
def way_out() -> Iterator[None]:
    """Weights that cannot be used, inside the block: say how to get them back."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; {REMEDY}") from None


def write_origin(directory: Directory, **sections: Config) -> None:
    """Keep what a stage is made from, beside its id: so it is found under every spelling of that."""
    write_document(directory.path / "config.json", {n: identity.as_document(s) for n, s in sections.items()})


# Tokenizer ----------------------------------------------------------------------------------------------------------


def build_tokenizer(context: Context) -> None:
    """Train the tokenizer, or take the published one that the config names; measure it on held-out images."""
    from mvar.evaluation.metrics import check_reference

    config = context.config
    directory = context.store.stage("tokenizer", config.tokenizer_id)
    weights = directory.path / "tokenizer.safetensors"
    if directory.state() == DONE:
        check_source(config, directory)
        if weights.is_file():
            return
    with directory.lock(context.should_stop):
        if directory.state() == DONE and weights.is_file():
            return
        with recorded(directory, "tokenizer"):
            check_reference(images(config, "heldout"), config.evaluation)  # all else would be for nothing
            write_origin(directory, data=config.data, tokenizer=config.tokenizer)
            if config.tokenizer.checkpoint:
                tokenizer, train_s = published_tokenizer(config), 0.0
                write_document(directory.path / "source.json", {"sha256": source_digest(config, directory)})
            else:
                tokenizer, train_s = _train_tokenizer(context, directory)
            metadata = {"tokenizer": identity.as_document(config.tokenizer)}
            save_weights(weights, tokenizer, metadata)
            write_document(directory.path / "quality.json", tokenizer_quality(context, tokenizer))
            directory.write_status(DONE, "tokenizer", train_s=train_s)


def _train_tokenizer(context: Context, directory: Directory) -> tuple[Tokenizer, float]:
    from mvar.training.loop import fit
    from mvar.training.tokenizer import TokenizerObjective

    config, settings = context.config, context.config.tokenizer
    torch.manual_seed(settings.seed)
    tokenizer = Tokenizer(settings, config.data.channels)
    objective = TokenizerObjective(tokenizer, images(config, "train"), settings)
    result = fit(
        objective,
        settings.train,
        directory.path,
        config.runtime.for_batch(settings.train.batch_size),
        seed=settings.seed,
        progress=context.report("tokenizer"),
        should_stop=context.should_stop,
    )
    if not result.finished:
        raise Stopped(f"tokenizer: step {result.step} of {settings.train.steps}")
    return tokenizer, result.train_s


def tokenizer_quality(context: Context, tokenizer: Tokenizer) -> dict[str, Any]:
    """What `quality.json` says: the PSNR of held-out images and the codes that they use."""
    from mvar.evaluation.floors import psnr, reconstruct
    from mvar.evaluation.images import Images

    heldout = Images(images(context.config, "heldout"), "held-out images")

    def heed(done: int, total: int) -> None:  # without a report: the training's steps stay in sight
        context.check()

    shown, codes = reconstruct(tokenizer.to(context.device), heldout, heed)
    return {
        "psnr_db": psnr(shown, heldout, heed),
        "codes_used": len(codes),
        "vocab_size": context.config.tokenizer.vocab_size,
    }


def load_tokenizer(context: Context) -> Tokenizer:
    """The finished tokenizer, on the device, in evaluation mode; one whose weights were deleted is made again."""
    config = context.config
    directory = context.store.stage("tokenizer", config.tokenizer_id)
    weights = directory.path / "tokenizer.safetensors"
    if not weights.is_file() and directory.state() == DONE:
        build_tokenizer(context)
    with way_out():
        state, _ = load_weights(weights)
    tokenizer = Tokenizer(config.tokenizer, config.data.channels)
    tokenizer.load_state_dict(state)
    return tokenizer.to(context.device).eval()


# Token cache --------------------------------------------------------------------------------------------------------


def _num_crops(config: RunConfig, split: Split) -> int:
    return config.train.crops if split == "train" else 0  # 0: the central crop, as of every image that measures


def _weights_id(context: Context) -> dict[str, str]:
    """What tells the tokenizer that is there now from another one of the same config. UserError: a damaged one."""
    weights = context.store.stage("tokenizer", context.config.tokenizer_id).path / "tokenizer.safetensors"
    sha256 = known_digest(weights)
    with way_out():
        complain_of(weights, sha256)
    return {"tokenizer_sha256": sha256}


def _cache_ids(context: Context, path: Path, image_set, crops: int) -> dict[str, Any]:
    """What the cache at `path` must be made from; one from before the weights were recorded gets them, if it fits."""
    from mvar.data.tokens import adopt_token_cache, is_complete

    ids = {"tokenizer_id": context.config.tokenizer_id, "data": image_set.fingerprint, "crops": crops}
    ids |= _weights_id(context)
    if is_complete(path):
        adopt_token_cache(path, image_set, lambda: load_tokenizer(context), ids)
    return ids


def build_tokens(context: Context) -> None:
    """Write the tokens of the training images (random crops) and of the held-out ones (centre crops).

    Finished caches are held against the weights of the tokenizer that is there now.

    Raises:
        UserError: a finished cache is of another tokenizer.
    """
    from mvar.data.tokens import build_token_cache, check_token_cache, is_complete

    config = context.config
    directory = context.store.stage("tokens", config.tokens_id)
    splits: tuple[Split, ...] = ("train", "heldout") if config.train.steps else ("heldout",)

    def is_done() -> bool:
        return directory.state() == DONE and all(is_complete(directory.path / split) for split in splits)

    if is_done():
        weights = _weights_id(context)
        for split in splits:
            if weights.keys() <= check_token_cache(directory.path / split, {})["ids"].keys():
                check_token_cache(directory.path / split, weights)  # the images are not even listed
            else:
                open_tokens(context, split)
        return
    with directory.lock(context.should_stop):
        if is_done():
            return
        with recorded(directory, "tokens"):
            write_origin(directory, data=config.data, tokenizer=config.tokenizer)
            tokenizer = load_tokenizer(context)
            for split in splits:
                context.check()
                image_set, crops, path = images(config, split), _num_crops(config, split), directory.path / split
                build_token_cache(
                    path,
                    image_set,
                    tokenizer,
                    crops=crops,
                    seed=config.tokenizer.seed,
                    ids=_cache_ids(context, path, image_set, crops),
                    num_workers=config.runtime.num_workers,
                    progress=context.heed("tokens"),
                )
            directory.write_status(DONE, "tokens")


def load_tokenizer_of(context: Context, run: Directory) -> Tokenizer:
    """The tokenizer that a trained run draws with: the one that it is trained on. Nothing is recorded.

    Raises:
        UserError: as `load_tokenizer` and `check_tokenizer`.
    """
    tokenizer = load_tokenizer(context)
    check_tokenizer(context, run, keep=False)
    return tokenizer


def check_tokenizer(context: Context, run: Directory, keep: bool = True) -> None:
    """Hold a run to the tokenizer whose tokens it is trained on: its codes mean nothing to another one.

    Args:
        context: whose store holds the tokenizer.
        run: the run's directory.
        keep: whether to record the tokenizer for a run of an earlier version, which has none on record.

    Raises:
        UserError: the tokenizer was made anew, differently, since the run began. A run of an earlier version, which
            recorded nothing, is held to the one that is there now.
    """
    path, now = run.path / "tokenizer.json", _weights_id(context)
    began = read_or_warn(path)
    if not began:
        if keep:
            write_document(path, now)
    elif began["tokenizer_sha256"] != now["tokenizer_sha256"]:
        raise UserError(
            f"run: {run.path} is trained on tokens of another tokenizer (SHA-256 {began['tokenizer_sha256'][:12]}...) "
            f"than the one that is there now ({now['tokenizer_sha256'][:12]}...); allowed: that one in its place "
            "again, or remove the run's folder and it is made again"
        )


def open_tokens(context: Context, split: Split):
    """The finished token cache of a split.

    Raises:
        UserError: no finished cache, one of another tokenizer or of other images, or a damaged one.
    """
    from mvar.data.tokens import open_token_cache

    config = context.config
    path = context.store.stage("tokens", config.tokens_id).path / split
    return open_token_cache(path, _cache_ids(context, path, images(config, split), _num_crops(config, split)))


# Feature extractor and floors ---------------------------------------------------------------------------------------


def build_extractor(context: Context) -> None:
    """Make what images are judged with: train the classifier, or check that the named network loads."""
    config = context.config
    directory = context.store.stage("extractor", config.extractor_id)

    def is_done() -> bool:
        return directory.state() == DONE and not _lacks_classifier(context)

    if is_done():
        return
    with directory.lock(context.should_stop):
        if is_done():
            return
        with recorded(directory, "extractor"):
            write_origin(directory, data=config.data, evaluation=config.evaluation)
            if config.evaluation.extractor == "classifier":
                from mvar.evaluation.classifier import train_classifier

                report, heed = context.report("extractor"), context.heed("extractor")
                if not train_classifier(config, directory.path, report, context.should_stop, heed):
                    raise Stopped("extractor: asked to stop")
            extractor = _open_extractor(context)
            write_document(
                directory.path / "extractor.json",
                {"id": extractor.id, "heldout_accuracy": extractor.heldout_accuracy},
            )
            directory.write_status(DONE, "extractor")


def load_extractor(context: Context):
    """The finished feature extractor; a classifier whose weights were deleted is made again."""
    if _lacks_classifier(context) and context.store.stage("extractor", context.config.extractor_id).state() == DONE:
        build_extractor(context)
    return _open_extractor(context)


def _lacks_classifier(context: Context) -> bool:
    from mvar.evaluation.classifier import WEIGHTS

    folder = context.store.stage("extractor", context.config.extractor_id).path
    return context.config.evaluation.extractor == "classifier" and not (folder / WEIGHTS).is_file()


def _open_extractor(context: Context):
    from mvar.evaluation.classifier import load_extractor as load

    folder = context.store.stage("extractor", context.config.extractor_id).path
    with way_out() if context.config.evaluation.extractor == "classifier" else nullcontext():
        return load(context.config, folder)


def build_floors(context: Context) -> None:
    """Measure what no generator can beat: the tokenizer's own reconstructions, and real images against real ones."""
    from mvar.evaluation.floors import floors
    from mvar.runs.stages.vectors import training_vectors

    config = context.config
    directory = context.store.stage("extractor", config.extractor_id)
    build_extractor(context)  # where its weights were deleted; not under the lock, which it takes itself
    with directory.lock(context.should_stop):
        found = context.store.all_floors(config)
        weights, record = _weights_id(context), found.get(config.floors_id)
        if record and weights.items() <= (weights | record).items():  # one of an earlier version has no weights' id
            return
        context.check()
        extractor, tokenizer = load_extractor(context), load_tokenizer(context)
        train, heldout = images(config, "train"), images(config, "heldout")
        heed = context.heed("floors")
        vectors = training_vectors(context, heed)
        values = floors(tokenizer, train, heldout, extractor, config.evaluation, heed, vectors)
        made_from = {n: identity.as_document(getattr(config, n)) for n in ("data", "tokenizer", "evaluation")}
        record = {"tokenizer_id": config.tokenizer_id, **weights, "config": made_from, "metrics": values}
        write_document(directory.path / "floors.json", {"floors": {**found, config.floors_id: record}})


BUILDERS: dict[str, Callable[[Context], None]] = {
    "tokenizer": build_tokenizer,
    "tokens": build_tokens,
    "extractor": build_extractor,
    "floors": build_floors,
}
