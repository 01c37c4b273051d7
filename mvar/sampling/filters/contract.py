"""What a filter is: which codes a token may be drawn from."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from mvar.config import Config, SampleConfig

if TYPE_CHECKING:
    from torch import Tensor


class Filter(ABC):
    """A filter of codes. A name of `sample.filter` stands for a class; it is made without arguments.

    `top_k` and `top_p` are fields of every filter's: one that does not heed them says so.
    """

    Settings: ClassVar[type[Config] | None] = None
    """Fields of its own, if it has any: a section of `sample` that is called after the filter."""

    @abstractmethod
    def kept(
        self, logits: "Tensor", scale: int, num_scales: int, sample: SampleConfig, settings: Any
    ) -> "Tensor | None":
        """What is kept of a scale's logits.

        Args:
            logits: guided, `(B, n, V)`, fp32 or fp64. They stay as they are.
            scale: 0, the coarsest, to `num_scales` - 1.
            num_scales: S.
            sample: how images are drawn.
            settings: of the class `Settings`; None where the filter has none.

        Returns:
            The smallest logit that is kept `(B, n, 1)`, which is the faster one; or which ones are, `(B, n, V)` bool;
            None for all. Of each token at least one code is kept. An image's do not depend on others of its batch.
        """
