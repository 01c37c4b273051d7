"""The generator's objective, next-scale prediction: on the tokens of a cache, or of crops that are taken afresh."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar import cost
from mvar.config import TrainConfig
from mvar.tokenizer.flops import coding_flops
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.training.contract import DataOrder, Objective, Tensors
from mvar.transformer import ScaleTransformer

if TYPE_CHECKING:
    from mvar.data.online import FreshCrops
    from mvar.data.tokens import TokenCache

INPUTS_LIMIT = 2**28  # bytes of teacher-forcing inputs that are computed once and kept; above, they are made each step
INPUTS_CHUNK = 512  # images at once while they are computed


class NextScale(Objective):
    """Cross-entropy of every token given the coarser scales and the class, each token weighted 1 / L (official code).

    The class is replaced by "no class" with probability `label_dropout`, which is what guidance needs. Metrics:
    accuracy, and loss and accuracy of each scale. Subclasses say where the tokens come from.

    Args:
        model: what is trained.
        quantizer: of the tokenizer.
        labels: `(N,)` of the items that an epoch goes through.
        train: the recipe.
        seed: of the order.
    """

    module: ScaleTransformer

    def __init__(
        self, model: ScaleTransformer, quantizer: ResidualQuantizer, labels: np.ndarray, train: TrainConfig, seed: int
    ) -> None:
        self.module, self.quantizer, self.train = model, quantizer, train
        self.labels = np.asarray(labels, np.int64)
        self.order = DataOrder(len(self.labels), train.batch_size, seed)
        self.lengths = list(model.schedule.lengths)
        self.tokens = train.batch_size * model.schedule.num_tokens
        self.flops = cost.train_flops(model.config, model.space, train.batch_size)

    def units(self) -> Sequence[nn.Module]:
        """The layers."""
        return list(self.module.each_block())

    def batch(self, step: int, rng: np.random.Generator) -> Tensors:
        """Labels `(B,)` with dropped ones replaced, and numbers `(B,)` of the items."""
        numbers = self.order.rows(step)
        dropped = rng.random(len(numbers)) < self.train.label_dropout
        labels = np.where(dropped, self.module.space.num_classes, self.labels[numbers])
        return torch.from_numpy(labels), torch.from_numpy(numbers)

    @abstractmethod
    def load(self, rows: Tensors) -> Tensors:
        """Labels, and what `tokens_and_inputs` makes its tensors of."""

    @abstractmethod
    def tokens_and_inputs(self, *loaded: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `(B, L)` and teacher-forcing inputs `(B, L - n_0, C)`, on the device."""

    def loss(self, batch: Tensors, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy in nats, averaged over tokens and images, with label smoothing."""
        labels, *loaded = batch
        tokens, inputs = self.tokens_and_inputs(*loaded)
        logits, _ = self.module(labels, inputs)
        losses = F.cross_entropy(
            logits.flatten(0, 1), tokens.flatten(), label_smoothing=self.train.label_smoothing, reduction="none"
        )
        metrics = self._metrics(losses.detach(), logits.detach(), tokens) if self.wants_metrics else {}
        return losses.mean(), metrics

    def _inputs(self, tokens: Tensor) -> Tensor:
        if self.quantizer.embedding.weight.device != tokens.device:
            self.quantizer.to(tokens.device)
        return self.quantizer.inputs(tokens)

    def _metrics(self, losses: Tensor, logits: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        per_token = losses.view(tokens.shape).mean(0)
        correct = (logits.argmax(-1) == tokens).to(losses.dtype).mean(0)
        metrics = {"train/accuracy": correct.mean()}
        for k, (part, hit) in enumerate(zip(per_token.split(self.lengths), correct.split(self.lengths), strict=True)):
            metrics[f"train/loss_scale_{k:02d}"] = part.mean()
            metrics[f"train/accuracy_scale_{k:02d}"] = hit.mean()
        return metrics


class GeneratorObjective(NextScale):
    """On the rows of a token cache."""

    def __init__(
        self,
        model: ScaleTransformer,
        quantizer: ResidualQuantizer,
        cache: "TokenCache",
        train: TrainConfig,
        seed: int,
    ) -> None:
        super().__init__(model, quantizer, cache.labels, train, seed)
        self.cache = cache
        num_bytes = 4 * model.space.code_channels * (model.schedule.num_tokens - self.lengths[0]) * len(cache.tokens)
        self.inputs = self._all_inputs() if num_bytes <= INPUTS_LIMIT else None

    def load(self, rows: Tensors) -> Tensors:
        """Labels, tokens `(B, L)` and, where they are kept, inputs `(B, L - n_0, C)`."""
        labels, numbers = rows
        tokens = torch.from_numpy(self.cache.tokens[numbers.numpy()].astype(np.int64))
        return (labels, tokens) if self.inputs is None else (labels, tokens, self.inputs[numbers])

    def tokens_and_inputs(self, *loaded: Tensor) -> tuple[Tensor, Tensor]:
        """What was loaded; inputs that are not kept are made."""
        tokens, *rest = loaded
        return tokens, rest[0] if rest else self._inputs(tokens)

    def _all_inputs(self) -> Tensor:
        device = self.quantizer.embedding.weight.device
        parts = []
        for start in range(0, len(self.cache.tokens), INPUTS_CHUNK):
            tokens = torch.from_numpy(self.cache.tokens[start : start + INPUTS_CHUNK].astype(np.int64))
            parts.append(self.quantizer.inputs(tokens.to(device)).cpu())
        return torch.cat(parts)


class OnlineObjective(NextScale):
    """On training images themselves (`train.tokens=online`): of each, every epoch another crop, encoded on the device.

    Which crop that is depends on the seed, the image and the epoch alone.
    """

    decodes = True

    def __init__(self, model: ScaleTransformer, crops: "FreshCrops", train: TrainConfig, seed: int) -> None:
        super().__init__(model, crops.tokenizer.quantize, crops.images.labels, train, seed)
        self.crops = crops

    @property
    def encoding_flops(self) -> int:
        """As `mvar plan` counts them."""
        tokenizer = self.crops.tokenizer
        return self.train.batch_size * coding_flops(tokenizer.config, tokenizer.in_channels)[0]

    def batch(self, step: int, rng: np.random.Generator) -> Tensors:
        """As `NextScale.batch`, and `(B,)` the epochs."""
        return *super().batch(step, rng), torch.from_numpy(self.order.epochs(step))

    def load(self, rows: Tensors) -> Tensors:
        """Labels, and pixels uint8 `(B, ch, H, W)`."""
        labels, numbers, epochs = rows
        return labels, torch.from_numpy(self.crops.pixels(numbers.tolist(), epochs.tolist()))

    def tokens_and_inputs(self, *loaded: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded by the frozen tokenizer, in float32 whatever the model's precision is."""
        (pixels,) = loaded
        with torch.autocast(pixels.device.type, enabled=False):
            tokens = self.crops.encode(pixels)
            return tokens, self._inputs(tokens)
