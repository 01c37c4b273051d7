"""Measures a finished set of samples and the model's held-out likelihood: an evaluation's record in `eval.json`."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mvar import cost
from mvar.config import RunConfig, identity
from mvar.data.splits import load_images
from mvar.evaluation.measure import measure_samples
from mvar.runs.stages.contract import RunStage
from mvar.runs.stages.extractor import ExtractorStage
from mvar.runs.stages.sample import SampleStage
from mvar.runs.stages.tokens import TokenStage
from mvar.runs.stages.vectors import VectorStage
from mvar.sampling.methods import is_guided


@dataclass(frozen=True)
class EvaluateStage(RunStage):
    """Adds the evaluation's record to `eval.json` of the run.

    Args:
        directory: of the run.
        config: the run, with the settings of the evaluation.
        sample: the images, and what drew them.
        tokens: of the held-out images.
        extractor: what judges.
        vectors: the training images that samples are compared with.
    """

    sample: SampleStage
    tokens: TokenStage
    extractor: ExtractorStage
    vectors: VectorStage
    name = "evaluate"

    def is_done(self) -> bool:
        """Whether the record is there."""
        return self.config.evaluation_id in self.directory.evaluations()

    def make(self) -> None:
        """Measure; nothing is kept of a part."""
        self.watch.check()
        config = self.config
        pixels, labels = self.sample.read()
        model, tokenizer = self.sample.artist
        heldout, tokens = load_images(config.data, "heldout"), self.tokens.open("heldout")
        vectors = self.vectors.load()
        metrics = measure_samples(
            np.moveaxis(pixels, -1, 1),
            labels,
            model=model,
            quantizer=tokenizer.quantize,
            heldout_tokens=tokens.tokens,
            heldout_labels=tokens.labels,
            train_images=vectors or load_images(config.data, "train"),
            heldout_images=heldout,
            extractor=self.extractor.load(),
            config=config.evaluation,
            progress=self.watch.heed(self.name),
        )
        drawn = self.sample.timing()
        record = {
            "sample": identity.as_document(config.sample),
            "evaluation": identity.as_document(config.evaluation),
            "extractor_id": config.extractor_id,
            "reference": {"split": "heldout", "num_images": len(heldout)},
            "execution": {"train": self.directory.execution(), "sample": drawn.get("execution", {})},
            "metrics": metrics,
            "cost": costs(config),
            "timing": self._timing(drawn),
        }
        self.directory.add_evaluation(config.evaluation_id, record)

    def _timing(self, drawn: dict[str, Any]) -> dict[str, float]:
        train_s = (self.directory.status() or {}).get("train_s", 0.0)
        known = {name: value for name, value in drawn.items() if name == "sample_s"}
        return {"train_s": train_s, **known, "train_step_ms": 1000 * train_s / max(self.config.train.steps, 1)}


def costs(config: RunConfig) -> dict[str, float]:
    """What the run costs by analysis: parameters; FLOPs of a forward pass, the training, one kept image; state."""
    model, space = config.model, config.token_space
    images = config.train.steps * config.train.batch_size
    an_image = cost.sample_flops(model, space, guided=is_guided(config.sample, space.schedule.num_scales))
    return {
        "num_params": cost.num_params(model, space),
        "forward_flops": cost.forward_flops(model, space),
        "train_flops": cost.train_flops(model, space, images),
        "sample_flops": an_image * config.sample.candidates,
        "acceptance_rate": config.sample.acceptance_rate,
        "state_bytes": cost.state_bytes(model, space),
    }
