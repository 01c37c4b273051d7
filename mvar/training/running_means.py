"""Running means of the weights: exponential, of several half-lives at once, kept beside the training.

The unit of a half-life is images, as Karras et al. 2022 (EDM) have it: after so many, what a step left counts half. The
mean is over the steps that there were, their weights scaled to a sum of one (as Adam corrects its moments): the values
before the first step are not in it, and a half-life far beyond the training is the plain mean of all steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class RunningMeans:
    """The means of a module's trained parameters, in fp32; in double precision where the module is.

    Args:
        module: what is trained; on the device that it stays on.
        half_lives: in images; none: nothing is kept.
        batch_size: images a step.
    """

    def __init__(self, module: nn.Module, half_lives: Sequence[int], batch_size: int) -> None:
        self._module = module
        self._batch_size = batch_size
        self._means: dict[int, dict[str, Tensor]] = {half_life: {} for half_life in half_lives}

    @property
    def half_lives(self) -> tuple[int, ...]:
        """Of the means that are kept."""
        return tuple(self._means)

    @property
    def _parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, done: int) -> None:
        """Take the weights in as they are after step number `done`, the first being 1."""
        now = self._parameters if self._means else {}
        for half_life, means in self._means.items():
            decay = 0.5 ** (self._batch_size / half_life)
            if done == 1 or not means:
                means.update({name: value.clone() for name, value in now.items()})
            else:
                share = (1 - decay) / (1 - decay**done)
                for name, value in now.items():
                    means[name].lerp_(value, share)

    def weights(self, half_life: int) -> dict[str, Tensor]:
        """The module's state dict with the means in the place of what is trained; the weights before any step."""
        return {**self._module.state_dict(), **self._means[half_life]}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside the rest: `means` by half-life, nothing where there are none."""
        return {"means": {str(h): dict(means) for h, means in self._means.items()}} if self._means else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them from a checkpoint's state.

        Raises:
            KeyError: a half-life, or a parameter, that it does not have.
        """
        now = self._parameters
        for half_life, means in self._means.items():
            kept = state["means"][str(half_life)]
            means.update({name: kept[name].to(value, copy=True) for name, value in now.items()})
