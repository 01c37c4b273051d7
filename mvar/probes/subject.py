"""What a probe measures on: a model, real images of its data as tokens, images that it draws, and their FID.

Shapes: `N` images, `L` tokens of an image, `S` scales.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mvar.config import SampleConfig
from mvar.data.crops import to_float, to_uint8
from mvar.data.sources.contract import Split
from mvar.evaluation.images import spread_indices
from mvar.evaluation.judge import Judge
from mvar.probes.contract import check_split
from mvar.probes.interval import t_factor
from mvar.probes.knockout import Bench
from mvar.probes.measurable import Batch, Opened
from mvar.sampling import generate
from mvar.tokenizer.model import Tokenizer
from mvar.transformer import ScaleTransformer


class Subject:
    """A model and all that a probe may look at; each thing is read or computed when it is first asked for.

    Attributes:
        sample: how images are drawn for the case that is being measured.

    Args:
        opened: the model and its held-out images.
        batch_size: images at a time.
    """

    def __init__(self, opened: Opened, batch_size: int) -> None:
        self.sample: SampleConfig = opened.sample
        self._opened, self._batch_size = opened, batch_size
        self._benches: dict[tuple[Split, int], Bench] = {}

    @property
    def model(self) -> ScaleTransformer:
        """The generator, in evaluation mode."""
        return self._opened.model

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self._opened.tokenizer

    @cached_property
    def bench(self) -> Bench:
        """The held-out images that everything is measured on."""
        return Bench(self._opened, self._batch_size)

    def real(self, split: Split, limit: int) -> Bench:
        """At most `limit` images of a split of the data, evenly spread, centre crops, as the floors have them.

        Raises:
            UserError: a checkpoint's training images.
        """
        if (split, limit) not in self._benches:
            if self._opened.images is None:
                check_split(split, ("heldout",))
                return self.bench
            self._benches[split, limit] = Bench(self._of_split(split, limit), self._batch_size)
        return self._benches[split, limit]

    def _of_split(self, split: Split, limit: int) -> Opened:
        assert self._opened.images is not None
        found = self._opened.images(split)
        chosen, device = spread_indices(len(found), limit), self.model.pos_1LC.device

        def codes(numbers: Sequence[int]) -> Tensor:
            pixels = np.stack([found.image(int(i), None) for i in chosen[list(numbers)]])
            with torch.no_grad():
                return self.tokenizer.encode(to_float(pixels).to(device))

        def batch(numbers: Sequence[int]) -> Batch:
            labels = torch.from_numpy(np.asarray(found.labels)[chosen[list(numbers)]]).to(device)
            return labels, self.tokenizer.quantize.inputs(codes(numbers))

        return replace(self._opened, num_images=len(chosen), batch=batch, codes=codes)

    # Images that are drawn --------------------------------------------------------------------------------------------

    def draw(
        self, labels: Tensor, prefix: Tensor, inside: Callable[[range], AbstractContextManager[None]] | None = None
    ) -> np.ndarray:
        """Draw an image a label, by `sample`: image i has the stream `(sample.seed, i)`.

        Never by CUDA graphs: what a probe has changed in the model may need the host at every step.

        Args:
            labels: `(N,)`.
            prefix: `(N, n)` tokens of the coarsest scales that are given; n = 0: nothing is.
            inside: the context in which images of these numbers are drawn.

        Returns:
            uint8 `(N, channels, H, W)`.
        """
        found = []
        for start in range(0, len(labels), self._batch_size):
            part = slice(start, start + self._batch_size)
            seeds = [(self.sample.seed, start + number) for number in range(len(labels[part]))]
            numbers = range(start, start + len(seeds))
            with inside(numbers) if inside else nullcontext():
                drawn = generate(
                    self.model, self.tokenizer.quantize, labels[part], seeds, self.sample, prefix=prefix[part]
                )
            with torch.no_grad():
                found.append(to_uint8(self.tokenizer.decode(drawn.latent)).cpu().numpy())
        return np.concatenate(found)

    @property
    def has_fid(self) -> bool:
        """Whether something judges images, and so there is FID."""
        return self._opened.judge is not None

    def fid(self, images: np.ndarray) -> float | None:
        """FID of images uint8 `(N, channels, H, W)` against the reference of the evaluation; None: nothing judges."""
        return self._judge.fid(images) if self._judge else None

    @cached_property
    def _judge(self) -> Judge | None:
        return self._opened.judge() if self._opened.judge else None


def over_images(name: str, values: np.ndarray | Iterable[float]) -> dict[str, float]:
    """The mean of `(N,)` values, and half of its 95 % interval, as a row has them."""
    values = np.asarray(values, dtype=float)
    half = float(values.std(ddof=1)) * t_factor(len(values)) if len(values) > 1 else float("nan")
    return {name: float(values.mean()), f"{name}_half_width": half}
