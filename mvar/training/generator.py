"""The generator's objective: next-scale prediction."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar import cost
from mvar.config import TrainConfig
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.training.contract import DataOrder, Objective, Tensors
from mvar.transformer import ScaleTransformer

if TYPE_CHECKING:
    from mvar.data.tokens import TokenCache

INPUTS_LIMIT = 2**28  # bytes of teacher-forcing inputs that are computed once and kept; above, they are made each step
INPUTS_CHUNK = 512  # images at once while they are computed


class GeneratorObjective(Objective):
    """Cross-entropy of every token given the coarser scales and the class, each token weighted 1 / L (official code).

    The class is replaced by "no class" with probability `label_dropout`, which is what guidance needs. Metrics:
    accuracy, and loss and accuracy of each scale.
    """

    module: ScaleTransformer

    def __init__(
        self,
        model: ScaleTransformer,
        quantizer: ResidualQuantizer,
        cache: "TokenCache",
        train: TrainConfig,
        seed: int,
    ) -> None:
        self.module, self.quantizer, self.cache, self.train = model, quantizer, cache, train
        self.labels = np.asarray(cache.labels, np.int64)
        self.order = DataOrder(len(cache.tokens), train.batch_size, seed)
        self.lengths = list(model.schedule.lengths)
        self.tokens = train.batch_size * model.schedule.num_tokens
        self.flops = cost.train_flops(model.config, model.space, train.batch_size)
        num_bytes = 4 * model.space.code_channels * (model.schedule.num_tokens - self.lengths[0]) * len(cache.tokens)
        self.inputs = self._all_inputs() if num_bytes <= INPUTS_LIMIT else None

    def units(self) -> Sequence[nn.Module]:
        """The layers."""
        return list(self.module.each_block())

    def batch(self, step: int, rng: np.random.Generator) -> Tensors:
        """Labels `(B,)` with dropped ones replaced, and numbers `(B,)` of the token sequences."""
        numbers = self.order.rows(step)
        dropped = rng.random(len(numbers)) < self.train.label_dropout
        labels = np.where(dropped, self.module.space.num_classes, self.labels[numbers])
        return torch.from_numpy(labels), torch.from_numpy(numbers)

    def load(self, rows: Tensors) -> Tensors:
        """Labels, tokens `(B, L)` and, where they are kept, inputs `(B, L - n_0, C)`."""
        labels, numbers = rows
        tokens = torch.from_numpy(self.cache.tokens[numbers.numpy()].astype(np.int64))
        return (labels, tokens) if self.inputs is None else (labels, tokens, self.inputs[numbers])

    def loss(self, batch: Tensors, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy in nats, averaged over tokens and images, with label smoothing."""
        labels, tokens, *rest = batch
        if self.quantizer.embedding.weight.device != tokens.device:
            self.quantizer.to(tokens.device)
        inputs = rest[0] if rest else self.quantizer.inputs(tokens)
        logits, _ = self.module(labels, inputs)
        losses = F.cross_entropy(
            logits.flatten(0, 1), tokens.flatten(), label_smoothing=self.train.label_smoothing, reduction="none"
        )
        metrics = self._metrics(losses.detach(), logits.detach(), tokens) if self.wants_metrics else {}
        return losses.mean(), metrics

    def _metrics(self, losses: Tensor, logits: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        per_token = losses.view(tokens.shape).mean(0)
        correct = (logits.argmax(-1) == tokens).to(losses.dtype).mean(0)
        metrics = {"train/accuracy": correct.mean()}
        for k, (part, hit) in enumerate(zip(per_token.split(self.lengths), correct.split(self.lengths), strict=True)):
            metrics[f"train/loss_scale_{k:02d}"] = part.mean()
            metrics[f"train/accuracy_scale_{k:02d}"] = hit.mean()
        return metrics

    def _all_inputs(self) -> Tensor:
        device = self.quantizer.embedding.weight.device
        parts = []
        for start in range(0, len(self.cache.tokens), INPUTS_CHUNK):
            tokens = torch.from_numpy(self.cache.tokens[start : start + INPUTS_CHUNK].astype(np.int64))
            parts.append(self.quantizer.inputs(tokens.to(device)).cpu())
        return torch.cat(parts)
