"""`mvar export`: a run's weights with the official names, for the official code."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from mvar.errors import OK, UserError


@dataclass(frozen=True)
class Export:
    """Write a trained run's generator, or its tokenizer, as a checkpoint that the official VAR or M-VAR code loads."""

    run: tyro.conf.Positional[str]
    """Run id, a unique beginning of one, or the run's directory."""
    out: Path
    """The file to write, .pth or .safetensors."""
    tokenizer: bool = False
    """Write the tokenizer instead of the generator."""
    results: Path = Path("results")
    """Where runs are kept."""

    def execute(self, arguments: list[str]) -> int:
        """Write the file; returns the exit code."""
        from experiments.store import Store
        from mvar.published import load_generator, load_tokenizer, official_state, write_official

        run = Store(self.results).find_run(self.run)
        store = run.store or Store(self.results)
        stage = store.stage("tokenizer", run.config().tokenizer_id)
        source = stage.path / "tokenizer.safetensors" if self.tokenizer else run.weights
        if not source.is_file():
            raise UserError(f"run: {run.name} is not trained yet ({run.state()}); allowed: a trained run")
        if self.tokenizer:
            write_official(self.out, load_tokenizer(source).state_dict())
        else:
            write_official(self.out, official_state(load_generator(source)[0]))
        print(f"{self.out}: {'tokenizer' if self.tokenizer else 'generator'} of {run.name}")
        return OK
