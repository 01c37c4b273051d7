"""`mvar evaluate`: samples and metrics of a trained run or a published checkpoint, through the one pipeline."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvar.commands.checkpoint import CheckpointFiles, check_source, check_unused, sampling_preset
from mvar.commands.options import Answer, InResults, RunName, Settings, Word
from mvar.commands.outcome import conclude
from mvar.errors import OK, one_of
from mvar.runs.launch.datasets import DataSets

if TYPE_CHECKING:
    from mvar.config import RunConfig


@dataclass(frozen=True)
class Evaluate(CheckpointFiles, InResults, Answer):
    """Sample and measure a trained run with other settings, or a published checkpoint; what is done is not repeated.

    A checkpoint becomes a run of the results directory with no training steps: status, report and attention know it.

    Example: `mvar evaluate digits --set sample.cfg_scale=0.5`
    """

    run: RunName = ""
    """Run id, a unique beginning of one, or the run's directory."""
    preset: str = "imagenet256-d16"
    """For a checkpoint: where data, evaluation and sampling come from."""
    sampling: Word = ""
    """Published settings: fid (cfg 1.5, top-k 900, top-p 0.96) or visual (cfg 4, more smooth)."""
    set: Settings = ()
    """FIELD=VALUE ..., e.g. sample.cfg_scale=2 evaluation.num_images=10000; for a checkpoint also data fields."""

    def execute(self, arguments: list[str]) -> int:
        """Evaluate and print the metrics; returns the exit code."""
        check_source(self.run, self.checkpoint)
        if self.run:
            check_unused(self)
        from mvar.runs.launch.evaluation import evaluation_of
        from mvar.runs.launch.needed import check_files
        from mvar.runs.store import Store, check_writable

        store = Store(self.results)
        if self.run:
            run, store = Store.locate(self.results, self.run)
            config = evaluation_of(store, run, self._overrides())
            data_sets = DataSets(store, stored=True)
        else:
            data_sets = DataSets(store)
            config = store.as_stored(self._of_checkpoint(data_sets))
            run = store.run_of(config)
        check_writable(store.root)
        if not run.is_done(config.evaluation_id):
            check_files([config], store)
            data_sets.check([config])
        from mvar.runs.runner import run_all

        code = conclude(run_all([config], store, 1, directory=run), store)
        if code == OK or run.is_done(config.evaluation_id):
            from mvar.commands.evaluation_table import print_evaluation

            if self.json:
                where = {"run": run.name, "evaluation": config.evaluation_id}
                self.answer(where | run.evaluations()[config.evaluation_id])
            else:
                print_evaluation(run, config)
        return code

    def _overrides(self) -> dict[str, object]:
        from mvar.config.parsing import parse_overrides

        named = {f"sample.{name}": value for name, value in sampling_preset(self.sampling).items()}
        return named | parse_overrides(setting for group in self.set for setting in group)

    def _of_checkpoint(self, data_sets: DataSets) -> "RunConfig":
        from mvar.config import override
        from mvar.presets import PRESETS

        if self.preset not in PRESETS:
            raise one_of("preset", self.preset, PRESETS)
        overrides = self._overrides()
        config = self.config(override(PRESETS[self.preset], overrides), adapt_data=False)
        return data_sets.settled_config(config, overrides)
