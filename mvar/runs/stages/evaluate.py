"""Measures a finished set of samples and the model's held-out likelihood: an evaluation's record in `eval.json`.

Metric by metric: each is written once it is computed, one that cannot be computed leaves the others, and what a record
has is not computed again. Images, weights and features are read where a metric that is missing needs them.
"""

import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mvar import cost, layout
from mvar.config import RunConfig, identity
from mvar.data.rounds import Heed
from mvar.data.splits import load_images
from mvar.errors import FAILURE, UserError, is_mistake
from mvar.evaluation.metrics.contract import Metric
from mvar.evaluation.metrics.inputs import Inputs, Parts, compute, shares
from mvar.evaluation.reference import Reference, reference_of
from mvar.files import atomic_write
from mvar.progress import Progress
from mvar.registries import METRICS
from mvar.runs.measured import of_same_weights, recalled, settings_of, to_measure, with_metric
from mvar.runs.stages.contract import RunStage, all_together, within_memory
from mvar.runs.stages.extractor import ExtractorStage
from mvar.runs.stages.sample import SampleStage
from mvar.runs.stages.tokens import TokenStage
from mvar.runs.stages.vectors import VectorStage
from mvar.runs.states import Stopped
from mvar.runs.store import one_line
from mvar.sampling.methods import is_guided
from mvar.training.distributed import Group, resolve_device


class MetricsFailed(UserError):
    """Metrics that could not be computed; the others are stored.

    Args:
        errors: by metric.
    """

    def __init__(self, errors: Mapping[str, Exception]) -> None:
        found = {name: one_line(error).removeprefix(f"metric {name!r} raises ") for name, error in errors.items()}
        self.reasons = found
        super().__init__(told_reasons(found))
        self.of_ours = any(name in METRICS.paths for name in errors)
        self.exit_code = UserError.exit_code if all(map(is_mistake, errors.values())) else FAILURE


def told_reasons(reasons: Mapping[str, str]) -> str:
    """Why metrics could not be computed, in one line; those that have one reason together."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"metric{'s' * (len(n) > 1)} {', '.join(n)}: {reason}" for reason, n in names.items())


@dataclass(frozen=True)
class EvaluateStage(RunStage):
    """Adds the evaluation's record to `eval.json` of the run, or to that record what it lacks.

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
        """Whether the record has every metric that there is now and that can be computed."""
        return self.config.evaluation_id in self.directory.evaluations() and not self._missing()

    def make(self) -> None:
        """Measure what is missing, and write each metric as it is computed.

        Raises:
            MetricsFailed: some could not be computed; the others are written.
        """
        self.watch.check()
        names, errors = self._missing(), {}
        needs = {needed for name in names for needed in METRICS.find(name).needs}
        record, inputs = self._record(), self._inputs("spatial" in needs, "features" in needs)
        for name, report in zip(names, shares(self.watch.heed(self.name), len(names)), strict=True):
            self.watch.check()
            try:
                known = recalled(record, name, self.config)
                known = known or of_same_weights(self.directory, name, record, self.config)
                values = known or self._measure(name, record, inputs, report)
            except Stopped:
                raise
            except Exception as error:
                errors[name] = error
                self._keep_traceback(error)
                continue
            record = with_metric(record, name, values, self.config)
            self.directory.add_evaluation(self.config.evaluation_id, record)
        if errors:
            raise MetricsFailed(errors)

    def take_part(self, spatial: bool) -> None:
        """Make another process's share of the features that the first one has called for; it ends where all stop."""
        with suppress(Stopped):
            self._inputs(spatial).share()

    def _missing(self) -> list[str]:
        return to_measure(self.directory, self.config)

    def _measure(self, name: str, record: dict[str, Any], inputs: Inputs, report: Progress) -> dict[str, float]:
        kind: type[Metric] = METRICS.find(name)
        with within_memory():
            return compute(name, kind(settings_of(record, name, self.config)), inputs, report)

    def _keep_traceback(self, error: Exception) -> None:
        """Of what is no user's mistake: `error.txt`, for who wrote the metric."""
        if not isinstance(error, UserError):
            with atomic_write(self.directory.path / layout.ERROR) as file:
                file.write("".join(traceback.format_exception(error)).encode(errors="replace"))

    def _inputs(self, spatial: bool, features: bool = True) -> Inputs:
        data = self.config.data
        parts = Parts(
            samples=self._samples,
            reference=lambda: self._reference,
            heldout=lambda: load_images(data, "heldout"),
            train=lambda: self.vectors.load() or load_images(data, "train"),
            weights=self._weights,
            tokens=self._tokens,
            extractor=self._extractor,
        )
        return Inputs(
            self.config.evaluation, parts, resolve_device(self.config.runtime), spatial, self._together, features
        )

    def _together(self, spatial: bool) -> AbstractContextManager[tuple[Group, Heed]]:
        """All processes of the run, which the first one calls."""
        call = {"evaluate": self.config.model_dump(mode="json"), "spatial": spatial, "run": str(self.directory.path)}
        return all_together(self.config.runtime, self.watch, call)

    @cached_property
    def _reference(self) -> Reference:
        return reference_of(self.config)

    def _samples(self) -> tuple[Any, Any]:
        pixels, labels = self.sample.read()
        return np.moveaxis(pixels, -1, 1), labels

    def _weights(self) -> tuple[Any, Any]:
        self.sample.train.check_tokenizer()
        model, tokenizer = self.sample.artist
        return model, tokenizer.quantize

    def _tokens(self) -> tuple[Any, Any]:
        self.tokens.run()
        found = self.tokens.open("heldout")
        return found.tokens, found.labels

    def _extractor(self) -> Any:
        self.extractor.run()
        return self.extractor.load()

    def _record(self) -> dict[str, Any]:
        """The record that is there, or one without metrics."""
        config = self.config
        if there := self.directory.evaluations().get(config.evaluation_id):
            self._check_reference(there)
            return there
        drawn = self.sample.timing()
        return {
            "sample": identity.as_document(config.sample),
            "evaluation": identity.as_document(config.evaluation),
            "extractor_id": config.extractor_id,
            "reference": self._reference.told,
            "execution": {"train": self.directory.execution(), "sample": drawn.get("execution", {})},
            "metrics": {},
            "cost": costs(config),
            "timing": self._timing(drawn),
        }

    def _check_reference(self, record: Mapping[str, Any]) -> None:
        """Refuse to add metrics against another file of reference than a record's others are against."""
        if self.config.evaluation.reference and record["reference"].get("sha256") != self._reference.told["sha256"]:
            raise UserError(
                f"evaluation.reference: {self.config.evaluation.reference!r} is another file than evaluation "
                f"{self.config.evaluation_id} has been compared with; allowed: that one, or another path"
            )

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
