"""Held-out likelihood and token error of the generator: what needs no images."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mvar.evaluation.metrics.contract import Metric

if TYPE_CHECKING:
    from mvar.evaluation.metrics.inputs import Inputs


class HeldoutLikelihood(Metric):
    """Negative log-likelihood in bits a token, and token error, of held-out images under teacher forcing."""

    needs = ("weights", "tokens")
    keys = ("eval/nll_bits_per_token",)
    also = ("eval/error", "eval/nll_bits_scale_*", "eval/error_scale_*")
    lower = ("eval/nll_bits_per_token", "eval/error")

    def compute(self, inputs: "Inputs") -> Mapping[str, float]:
        """Means over all tokens, and over those of each scale."""
        from mvar.evaluation.likelihood import heldout_nll

        of_model = inputs.model, inputs.quantizer
        return heldout_nll(*of_model, inputs.tokens, inputs.token_labels, progress=inputs.progress)
