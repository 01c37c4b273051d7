"""What a form of guidance is: how strong classifier-free guidance is at each scale."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from mvar.config import Config


class Guidance(ABC):
    """A form of guidance. A name of `sample.guidance` stands for a class; it is made without arguments.

    At every scale images are drawn from `(1 + t) conditional - t unconditional` logits. The form gives t. It is asked
    before anything is drawn, and not at all where `sample.cfg_scale` is 0: that switches every form off.
    """

    Settings: ClassVar[type[Config] | None] = None
    """Fields of its own, if it has any: a section of `sample` that is called after the form."""

    @abstractmethod
    def weight(self, scale: int, num_scales: int, cfg_scale: float, settings: Any) -> float:
        """The t of a scale.

        Args:
            scale: 0, the coarsest, to `num_scales` - 1.
            num_scales: S.
            cfg_scale: the strength that is asked for, above 0.
            settings: of the class `Settings`; None where the form has none.

        Returns:
            A finite number; 0 draws from the conditional logits alone.
        """


def position(scale: int, num_scales: int) -> float:
    """Where a scale stands among all, from 0 for the coarsest to 1 for the finest; a single one is the finest."""
    return scale / (num_scales - 1) if num_scales > 1 else 1.0
