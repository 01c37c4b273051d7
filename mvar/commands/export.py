"""`mvar export`: a run's weights with the official names, or its images as ADM's evaluator takes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from mvar import layout
from mvar.commands.options import Count, File, InResults, Word
from mvar.commands.plugged import Plugged
from mvar.errors import OK, UserError, one_of, say

if TYPE_CHECKING:
    from mvar.runs.store import RunDirectory, Store


@dataclass(frozen=True)
class Export(Plugged, InResults):
    """Write a trained run's generator, or its tokenizer, as a checkpoint that the official VAR or M-VAR code loads.

    The file carries the run's configuration, so that `inspect`, `sample` and `evaluate` need no more than the file.
    Or write the images of an evaluation as the .npz that ADM's evaluator takes: `--what samples`.

    Example: `mvar export digits --out var_digits.pth`
    """

    run: tyro.conf.Positional[str]
    """Run id, a unique beginning of one, or the run's directory."""
    what: Literal["generator", "tokenizer", "samples"] = "generator"
    """Which of the two models, or images: uint8 (N, H, W, 3), rounded to the nearest grey level."""
    ema: Count = 0
    """Of the generator's weights the running mean of this half-life, one of the run's train.ema, instead of the last
    step's."""
    step: Count = 0
    """Of the generator the weights after so many steps, of a checkpoint that the run's training has left, whether one
    process has written it or several; default: the trained ones."""
    evaluation: Word = ""
    """Of the samples: the id of an evaluation; default: the run's own."""
    out: File = ""
    """The file to write, .pth, .safetensors, of samples .npz; default: generator-RUN.pth, samples-RUN.npz, ..."""

    def execute(self, arguments: list[str]) -> int:
        """Write the file; returns the exit code."""
        from mvar.checkpoints.published import load_generator, load_tokenizer, official_state, write_official
        from mvar.checkpoints.weights import read_safetensors
        from mvar.config import override
        from mvar.runs.stages.contract import way_out
        from mvar.runs.store import Store
        from mvar.runs.wiring import Stages

        is_tokenizer = self.what == "tokenizer"
        run, store = Store.locate(self.results, self.run)
        if self.what == "samples":
            return self._write_samples(store, run)
        if self.evaluation:
            raise UserError("evaluation: a model has none; allowed: --evaluation with --what samples")
        if self.step:
            return self._write_checkpoint(store, run)
        config = override(run.config(), {"sample.ema": self.ema})
        if self.ema and is_tokenizer:
            raise UserError(f"ema: {self.ema} of a tokenizer, which has no running means; allowed: what=generator")
        stage = store.stage("tokenizer", config.tokenizer_id)
        source = stage.path / layout.TOKENIZER if is_tokenizer else run.weights_of(self.ema)
        if not (source if is_tokenizer else run.weights).is_file():
            raise UserError(f"run: {run.name} is not trained yet ({run.state()}); allowed: a trained run")
        if is_tokenizer:
            Stages.of_run(store, run).train.check_tokenizer(keep=False)
        with way_out():
            metadata = read_safetensors(source)[1]  # with the whole configuration that the run has
        state = load_tokenizer(source).state_dict() if is_tokenizer else official_state(load_generator(source)[0])
        out = Path(self.out or f"{self.what}-{run.name}.pth")
        write_official(out, state, metadata)
        say(f"{out}: {self.what} of {run.name}" + f", mean of half-life {self.ema} images" * bool(self.ema))
        return OK

    def _write_checkpoint(self, store: "Store", run: "RunDirectory") -> int:
        from mvar.checkpoints.published import official_state, write_official
        from mvar.runs.stages.train import generator_at
        from mvar.runs.wiring import Stages

        if self.ema or self.what != "generator":
            raise UserError("step: of a generator's last weights; allowed: without --ema and --what")
        state = official_state(generator_at(run, self.step))
        out = Path(self.out or f"generator-{run.name}-{self.step}.pth")
        write_official(out, state, Stages.of_run(store, run).train.about())
        say(f"{out}: generator of {run.name} after {self.step} steps")
        return OK

    def _write_samples(self, store: "Store", run: "RunDirectory") -> int:
        from mvar.config import EvaluationConfig, SampleConfig, from_dict
        from mvar.data.npz import write_samples
        from mvar.runs.wiring import Stages

        if self.ema:
            raise UserError(
                f"ema: {self.ema} of samples, which were drawn; allowed: --evaluation, of one with sample.ema"
            )
        config, found = run.config(), run.evaluations()
        wanted = self.evaluation or config.evaluation_id
        if wanted not in found:
            raise one_of("evaluation", wanted, found) if found else UserError(f"run: {run.name} has no evaluation yet")
        sections = {"sample": SampleConfig, "evaluation": EvaluationConfig}
        read = {name: from_dict(kind, found[wanted][name], lenient=True) for name, kind in sections.items()}
        stage = Stages(config.model_copy(update=read), store, run=run).sample
        pixels, labels = stage.read()
        out = Path(self.out or f"samples-{run.name}.npz")
        write_samples(out, pixels, labels)
        say(f"{out}: {len(pixels):,} images of evaluation {wanted} of {run.name}, as ADM's evaluator takes them")
        return OK
