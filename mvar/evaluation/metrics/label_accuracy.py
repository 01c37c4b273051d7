"""Label accuracy: whether a classifier sees what was to be drawn."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mvar.evaluation.metrics.contract import Metric
from mvar.registries import EXTRACTORS

if TYPE_CHECKING:
    from mvar.config import RunConfig
    from mvar.evaluation.metrics.inputs import Inputs


class LabelAccuracy(Metric):
    """Share of samples that the extractor gives the class they were drawn for; where it knows the classes."""

    needs = ("features",)
    keys = ("eval/label_accuracy",)
    higher = ("eval/label_accuracy",)

    @classmethod
    def applies(cls, config: "RunConfig") -> bool:
        """Where the extractor's logits are over the classes of the data."""
        return EXTRACTORS.find(config.evaluation.extractor).knows_labels

    def compute(self, inputs: "Inputs") -> Mapping[str, float]:
        """A share, 0 to 1."""
        found = inputs.features.logits.argmax(1).numpy() == inputs.labels
        return {"eval/label_accuracy": float(found.mean())}
