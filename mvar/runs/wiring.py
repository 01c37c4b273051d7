"""The stages of a config, built from the store: the one place that knows which directory and which inputs each has."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from mvar import layout, plugin_records
from mvar.config import RunConfig
from mvar.errors import one_of
from mvar.probes.attention_mass import AttentionStats
from mvar.probes.knockout_kept import Knockout, kept_cuts
from mvar.probes.measurable import Measurable, kept_limits
from mvar.probes.probe_kept import Probed, kept_probe
from mvar.progress import Progress
from mvar.registries import PROBES
from mvar.runs.stages.attention import AttentionStage
from mvar.runs.stages.contract import LockedStage, Watch
from mvar.runs.stages.evaluate import EvaluateStage
from mvar.runs.stages.extractor import ExtractorStage
from mvar.runs.stages.floors import FloorStage
from mvar.runs.stages.reject import RejectStage
from mvar.runs.stages.sample import SampleStage
from mvar.runs.stages.tokenizer import TokenizerStage
from mvar.runs.stages.tokens import TokenStage
from mvar.runs.stages.train import TrainStage
from mvar.runs.stages.vectors import VectorStage
from mvar.runs.store import RunDirectory, Store

SHARED = ("tokenizer", "tokens", "extractor", "floors")  # that may be made for several runs, before any


class Stages:
    """The stages of one config, each made when it is asked for; nothing is read or written by that.

    Args:
        config: the run, with the settings of an evaluation.
        store: where everything is kept.
        watch: whom to tell how far work is, and who says when it is to stop; None: nobody.
        run: the run's directory; None: `store.run_of(config)`.
    """

    def __init__(
        self, config: RunConfig, store: Store, watch: Watch | None = None, run: RunDirectory | None = None
    ) -> None:
        self.config, self.store, self.watch = config, store, watch or Watch()
        self._run = run

    @classmethod
    def of_run(cls, store: Store, run: RunDirectory, watch: Watch | None = None) -> "Stages":
        """The stages of a run as it was made."""
        return cls(run.config(), store, watch, run)

    @cached_property
    def run(self) -> RunDirectory:
        """The run's directory."""
        return self._run or self.store.run_of(self.config)

    def shared(self, kind: str) -> LockedStage:
        """A stage that several runs share, by its kind.

        Raises:
            UserError: there is none of that kind.
        """
        if kind not in SHARED:
            raise one_of("stage", kind, SHARED)
        plugin_records.check(self.config, self.run.path)
        return getattr(self, kind)

    # Shared -----------------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> TokenizerStage:
        """The tokenizer."""
        config, directory = self.config, self.store.stage("tokenizer", self.config.tokenizer_id)
        sections = (config.data, config.tokenizer, config.evaluation, config.runtime)
        return TokenizerStage(directory, self.watch, *sections)

    @cached_property
    def tokens(self) -> TokenStage:
        """The token cache."""
        config, directory = self.config, self.store.stage("tokens", self.config.tokens_id)
        return TokenStage(directory, self.watch, config, self.tokenizer, self.store.checked)

    @cached_property
    def extractor(self) -> ExtractorStage:
        """The feature extractor."""
        directory = self.store.stage("extractor", self.config.extractor_id)
        return ExtractorStage(directory, self.watch, self.config)

    @cached_property
    def floors(self) -> FloorStage:
        """The floors, which lie in the extractor's directory."""
        needs = (self.tokenizer, self.extractor, self._vectors("floors"))
        return FloorStage(self.extractor.directory, self.watch, self.config, *needs)

    @cached_property
    def reject(self) -> RejectStage:
        """What picks images by the extractor, in its directory too."""
        watch, config = self.watch.under("extractor"), self.config
        return RejectStage(self.extractor.directory, watch, config.data, config.sample.candidates, self.extractor)

    def _vectors(self, stage: str) -> VectorStage:
        """The training images as they are compared; a part of the stage that compares."""
        directory = self.store.stage("vectors", self.config.data_id)
        data, workers = self.config.data, self.config.runtime.num_workers
        return VectorStage(directory, self.watch.under(stage), data, workers, self.store.checked)

    # Of the run -------------------------------------------------------------------------------------------------------

    @cached_property
    def train(self) -> TrainStage:
        """The generator's training."""
        return TrainStage(self.run, self.watch, self.config, self.tokenizer, self.tokens)

    @cached_property
    def sample(self) -> SampleStage:
        """The images of the evaluation."""
        return SampleStage(self.run, self.watch, self.config, self.train, self.reject)

    @cached_property
    def evaluate(self) -> EvaluateStage:
        """The evaluation's record."""
        needs = (self.sample, self.tokens, self.extractor, self._vectors("evaluate"))
        return EvaluateStage(self.run, self.watch, self.config, *needs)

    @cached_property
    def attention(self) -> AttentionStage:
        """Where the generator's attention goes."""
        return AttentionStage(self.run, self.watch, self.config, self.train, self.tokens, self.extractor)


def run_attention(store: Store, run: RunDirectory, progress: Progress | None = None) -> AttentionStats:
    """Attention of a finished run on its held-out images, measured once and kept in the run's directory.

    Raises:
        UserError: no weights, no tokenizer or no tokens, or a model without global attention.
    """
    watch = Watch(lambda _, done, total: progress(done, total)) if progress else Watch()
    return Stages.of_run(store, run, watch).attention.load()


def kept_knockout(store: Store, run: RunDirectory) -> Knockout | None:
    """What `mvar knockout` has measured on the held-out images of a finished run, of its weights; None: nothing."""
    if not (run.path / layout.KNOCKOUT_JSON).is_file():
        return None
    return kept_cuts(Stages.of_run(store, run).attention.heldout(), run.path)


def kept_knockouts(store: Store, run: RunDirectory) -> list[Knockout]:
    """The same of every number of held-out images that `mvar knockout` has measured on."""
    places = _measured_on_heldout(store, run, layout.KNOCKOUT, layout.KNOCKOUT_JSON)
    found = {kept.limit: kept for folder, what in places if (kept := kept_cuts(what, folder))}
    return [found[limit] for limit in sorted(found)]


def kept_probes(store: Store, run: RunDirectory) -> list[Probed]:
    """What `mvar probe` has measured on held-out images of a finished run: by probe and number of images."""
    found: dict[tuple[str, int], Probed] = {}
    for folder, what in _measured_on_heldout(store, run, layout.PROBES, f"{layout.PROBES}/*.json"):
        kept = (kept_probe(name, PROBES.find(name), what, folder) for name in PROBES.names())
        found |= {(probed.probe, probed.images): probed for probed in kept if probed}
    return [found[key] for key in sorted(found)]


def _measured_on_heldout(
    store: Store, run: RunDirectory, kind: str, documents: str
) -> Iterator[tuple[Path, Measurable]]:
    """Folders with documents of measurements on held-out images of a run, and what each is of; the run's own last."""
    folders = [*(store.root / kind).glob(f"{run.name}-heldout-*"), run.path]
    places = [(folder, limit) for folder in folders for limit in kept_limits(folder.glob(documents))]
    stage = Stages.of_run(store, run).attention if places else None
    return ((folder, stage.heldout(limit)) for folder, limit in places if stage)
