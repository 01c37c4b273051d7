"""`mvar export`: a run's weights with the official names, for the official code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from mvar import layout
from mvar.commands.options import Count, File, InResults
from mvar.commands.plugged import Plugged
from mvar.errors import OK, UserError, say


@dataclass(frozen=True)
class Export(Plugged, InResults):
    """Write a trained run's generator, or its tokenizer, as a checkpoint that the official VAR or M-VAR code loads.

    The file carries the run's configuration, so that `inspect`, `sample` and `evaluate` need no more than the file.

    Example: `mvar export digits --out var_digits.pth`
    """

    run: tyro.conf.Positional[str]
    """Run id, a unique beginning of one, or the run's directory."""
    what: Literal["generator", "tokenizer"] = "generator"
    """Which of the two models."""
    ema: Count = 0
    """Of the generator's weights the running mean of this half-life, one of the run's train.ema, instead of the last
    step's."""
    out: File = ""
    """The file to write, .pth or .safetensors; default: generator-RUN.pth or tokenizer-RUN.pth."""

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
