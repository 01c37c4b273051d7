"""The token cache: of the training images random crops, of the held-out ones the central crop. Runs share it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from mvar.config import Config, RunConfig, RuntimeConfig
from mvar.data.crops import ImageSet
from mvar.data.rounds import Heed
from mvar.data.sources.contract import Split
from mvar.data.splits import load_images
from mvar.data.tokens import (
    TokenCache,
    adopt_token_cache,
    build_token_cache,
    check_token_cache,
    is_complete,
    open_token_cache,
    token_rounds,
)
from mvar.errors import UserError
from mvar.runs.stages.contract import SharedStage, all_together
from mvar.runs.stages.tokenizer import TokenizerStage
from mvar.runs.states import DONE, Stopped
from mvar.training.distributed import Group


@dataclass(frozen=True)
class TokenStage(SharedStage):
    """Writes a cache for each split, in a folder of the split's name.

    Args:
        config: of a run that needs it.
        tokenizer: whose tokens they are.
        checked: the ids of caches that were held against their images in this job, by folder; `open` adds to it.
    """

    config: RunConfig
    tokenizer: TokenizerStage
    checked: dict[Path, dict[str, Any]]
    name = "tokens"

    @property
    def splits(self) -> tuple[Split, ...]:
        """That are needed: a run without training steps, or on fresh crops, does without `train`."""
        return ("train", "heldout") if self.config.cached_crops else ("heldout",)

    @property
    def origin(self) -> Mapping[str, Config]:
        """Data and tokenizer."""
        return self.tokenizer.origin

    def is_done(self) -> bool:
        """Whether each split has a complete cache."""
        return self.directory.state() == DONE and all(is_complete(self._path(split)) for split in self.splits)

    def confirm(self) -> None:
        """Hold finished caches against the weights of the tokenizer that is there now.

        Raises:
            UserError: a finished cache is of another tokenizer.
        """
        weights = self.tokenizer.weights_id()
        for split in self.splits:
            if weights.keys() <= check_token_cache(self._path(split), {})["ids"].keys():
                check_token_cache(self._path(split), weights)  # the images are not even listed
            else:
                self.open(split)

    def build(self) -> Mapping[str, float]:
        """Write what is missing of each cache."""
        tokenizer = self.tokenizer.load()
        for split in self.splits:
            self.watch.check()
            images = self._images(split)
            built = build_token_cache(
                self._path(split),
                images,
                tokenizer,
                crops=self._num_crops(split),
                seed=self.tokenizer.settings.seed,
                ids=self._ids(split, images),
                num_workers=self._runtime.num_workers,
                progress=self.watch.heed(self.name),
                together=partial(self._together, split),
            )
            self.checked[self._path(split)] = built.meta["ids"]
        return {}

    def take_part(self, split: Split, done: int) -> None:
        """Encode another process's share of what the first one has called for, from row `done` on; it ends where all
        stop."""
        with suppress(Stopped), self._together(split, done) as (group, heed):
            rounds = token_rounds(
                self._images(split),
                self.tokenizer.load(),
                self._num_crops(split),
                self.tokenizer.settings.seed,
                num_workers=self._runtime.num_workers,
                done=done,
                group=group,
                heed=heed,
            )
            for _ in rounds:
                pass

    def _together(self, split: Split, done: int) -> AbstractContextManager[tuple[Group, Heed]]:
        """All processes of the job, which the first one calls."""
        call = {"tokens": self.config.model_dump(mode="json"), "split": split, "done": done}
        return all_together(self._runtime, self.watch, call)

    @property
    def _runtime(self) -> RuntimeConfig:
        return self.tokenizer.runtime

    def open(self, split: Split) -> TokenCache:
        """The finished cache of a split; looked through and held against its images once a job, whatever runs use it.

        Raises:
            UserError: no finished cache, one of another tokenizer or of other images, or a damaged one.
        """
        if split not in self.splits:
            have = "the run has fresh crops (train.tokens=online), or no training"
            raise UserError(f"split: {split}: no cache of it is kept, {have}; allowed: {', '.join(self.splits)}")
        if split not in self._opened:
            path = self._path(split)
            known = self.checked.get(path, {})
            if known and check_token_cache(path, {})["ids"] == known and self._own_ids(split).items() <= known.items():
                self._opened[split] = open_token_cache(path, known)
            else:
                self._opened[split] = open_token_cache(path, self._ids(split, self._images(split)))
                self.checked[path] = self._opened[split].meta["ids"]
        return self._opened[split]

    def take(self, split: Split, ids: dict[str, Any]) -> None:
        """`open` a cache that another process of this job has checked, without looking at the images again.

        Args:
            split: whose.
            ids: of the cache that the other process has.

        Raises:
            UserError: another cache, or none.
        """
        self._opened[split] = open_token_cache(self._path(split), ids, verify=False)

    @cached_property
    def _opened(self) -> dict[Split, TokenCache]:
        return {}

    def _path(self, split: Split) -> Path:
        return self.directory.path / split

    def _images(self, split: Split) -> ImageSet:
        return load_images(self.tokenizer.data, split)

    def _num_crops(self, split: Split) -> int:
        return (
            self.config.cached_crops if split == "train" else 0
        )  # 0: the central crop, as of every image that measures

    def _ids(self, split: Split, images: ImageSet) -> dict[str, Any]:
        """What a cache must be made from; one from before the weights were recorded gets them, if it fits."""
        ids = {**self._own_ids(split), "data": images.fingerprint}
        if is_complete(self._path(split)):
            adopt_token_cache(self._path(split), images, self.tokenizer.load, ids)
        return ids

    def _own_ids(self, split: Split) -> dict[str, Any]:
        """`_ids` without that of the images."""
        tokenizer = {"tokenizer_id": self.config.tokenizer_id} | self.tokenizer.weights_id()
        return tokenizer | {"crops": self._num_crops(split)}
