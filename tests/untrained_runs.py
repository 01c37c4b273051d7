"""Runs whose models are only initialised: all that sampling and attention need, in no time."""

from collections.abc import Sequence

import torch

from mvar.checkpoints.weights import save_weights
from mvar.config import RunConfig
from mvar.runs.states import DONE
from mvar.runs.store import RunDirectory, Store
from mvar.tokenizer.model import Tokenizer
from mvar.transformer import ScaleTransformer


def save_untrained(
    store: Store, config: RunConfig, class_names: Sequence[str] = ()
) -> tuple[RunDirectory, ScaleTransformer]:
    """The config, weights of the generator and of the tokenizer, whose status is not written; directory and model."""
    torch.manual_seed(0)
    stage, run = store.stage("tokenizer", config.tokenizer_id), store.run(config.run_id)
    stage.path.mkdir(parents=True, exist_ok=True)
    save_weights(stage.path / "tokenizer.safetensors", Tokenizer(config.tokenizer, config.data.channels), {})
    run.write_config(config)
    model = ScaleTransformer(config.model, config.token_space)
    save_weights(run.weights, model, {"class_names": list(class_names)} if class_names else {})
    return run, model


def save_stirred(store: Store, config: RunConfig) -> tuple[RunDirectory, ScaleTransformer]:
    """As `save_untrained`, its tokenizer done, with noise on every weight of digits: each part has some effect."""
    run, model = save_untrained(store, config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    save_weights(run.weights, model, {"class_names": [str(n) for n in range(10)]})
    finish_tokenizer(store, config)
    return run, model


def finish_tokenizer(store: Store, config: RunConfig) -> None:
    """Say that the tokenizer is done."""
    store.stage("tokenizer", config.tokenizer_id).write_status(DONE, "tokenizer")
