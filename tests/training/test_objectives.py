"""The two objectives: what they compute, and that they learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kill_driver import TOKENIZER, generator, tokenizer
from toy_objective import RUNTIME, rows_of

from mvar.config import DataConfig, ModelConfig, OptimConfig, TokenSpace, TrainConfig
from mvar.data.crops import to_float
from mvar.data.splits import load_images
from mvar.data.tokens import TokenCache
from mvar.tokenizer.model import Tokenizer
from mvar.training.generator import GeneratorObjective
from mvar.training.loop import fit
from mvar.training.tokenizer import TokenizerObjective, translate
from mvar.transformer import ScaleTransformer


def test_generator_metrics_are_those_of_the_logits():
    objective, *_ = generator()
    objective.train = objective.train.model_copy(update={"label_smoothing": 0.1})
    objective.module.eval()
    labels, tokens, inputs = objective.load(objective.batch(0, np.random.default_rng(0)))
    loss, metrics = objective.loss((labels, tokens, inputs), 0)
    logits, _ = objective.module(labels, inputs)
    log_p = logits.log_softmax(-1)
    nll = -log_p.gather(-1, tokens[..., None])[..., 0]
    smoothed = 0.9 * nll - 0.1 * log_p.mean(-1)  # each token 1 / L, mean over the batch
    torch.testing.assert_close(loss, smoothed.mean(1).mean())
    hits = (logits.argmax(-1) == tokens).float()
    torch.testing.assert_close(metrics["train/accuracy"], hits.mean())
    for k, part in enumerate([slice(0, 1), slice(1, 5), slice(5, 21)]):
        torch.testing.assert_close(metrics[f"train/loss_scale_{k:02d}"], smoothed[:, part].mean())
        torch.testing.assert_close(metrics[f"train/accuracy_scale_{k:02d}"], hits[:, part].mean())
    assert len(metrics) == 7


def test_metrics_are_computed_for_logged_steps_alone(tmp_path):
    """And the training's bits do not depend on it."""

    def train(name: str, log_every: int) -> tuple[dict[str, torch.Tensor], list[dict], list[bool]]:
        objective, optim, _ = generator()
        original, wanted = objective.loss, []
        objective.loss = lambda rows, step: (wanted.append(objective.wants_metrics), original(rows, step))[1]
        runtime = RUNTIME.model_copy(update={"log_every": log_every})
        assert fit(objective, optim, tmp_path / name, runtime, seed=3).finished
        return objective.module.state_dict(), rows_of(tmp_path / name), wanted

    weights, rows, wanted = train("each", 1)
    assert wanted == [True] * 7 and [row["step"] for row in rows] == list(range(1, 8))
    same, few, wanted = train("some", 3)
    assert wanted == [step in (1, 3, 6, 7) for step in range(1, 8)]
    assert few == [row for row in rows if row["step"] in (1, 3, 6, 7)] and "train/accuracy_scale_02" in few[0]
    assert all(torch.equal(same[name], value) for name, value in weights.items())


def test_labels_are_dropped_at_the_rate_and_only_to_no_class():
    objective, *_ = generator()
    objective.order.batch_size = 5000
    labels, numbers = objective.batch(0, np.random.default_rng(0))
    dropped = labels == 3
    assert 0.27 < dropped.float().mean() < 0.33
    original = torch.from_numpy(objective.labels)[numbers]
    assert torch.equal(labels[~dropped], original[~dropped])
    again, _ = objective.batch(0, np.random.default_rng(1))
    assert not torch.equal(labels, again)


def test_inputs_kept_and_made_each_step_are_the_same(monkeypatch):
    kept, *_ = generator()
    monkeypatch.setattr("mvar.training.generator.INPUTS_LIMIT", 0)
    made, *_ = generator()
    assert kept.inputs is not None
    assert made.inputs is None
    kept.module.eval(), made.module.eval()
    (a, _), (b, _) = (o.loss(o.load(o.batch(3, np.random.default_rng(7))), 3) for o in (kept, made))
    torch.testing.assert_close(a, b)


def test_the_generator_learns_what_the_class_says(tmp_path):
    """Tokens that are a function of the class: the loss falls to that of the dropped labels."""
    torch.manual_seed(0)
    quantizer = Tokenizer(TOKENIZER, 1).quantize
    model = ScaleTransformer(
        ModelConfig(depth=2, width=32, num_heads=2, init_adaln_gamma=0.5), TokenSpace((1, 2, 4), 16, 4, 3)
    )
    labels = np.arange(30) % 3
    tokens = ((labels[:, None] * 5 + np.arange(21)) % 16).astype(np.uint8)
    train = TrainConfig(steps=150, batch_size=16, base_lr=0.08, label_dropout=0.0, clip_norm=1.0)
    objective = GeneratorObjective(model, quantizer, TokenCache(Path(), tokens, labels, {}), train, seed=0)
    fit(objective, train, tmp_path, RUNTIME.model_copy(update={"checkpoint_every": 150}), seed=0)
    last = rows_of(tmp_path)[-1]
    assert last["train/loss"] < 0.1
    assert last["train/accuracy"] == 1


def test_translation():
    images = torch.arange(2 * 2 * 3 * 3).view(2, 2, 3, 3).float()
    same = translate(images, torch.ones(2, 2, dtype=torch.long), 1)
    assert torch.equal(same, images)
    moved = translate(images, torch.tensor([[0, 1], [2, 0]]), 1)
    assert torch.equal(moved[0], F.pad(images[0], (0, 0, 1, 0), mode="replicate")[:, :3])  # one down
    up_right = F.pad(F.pad(images[1], (1, 0, 0, 0), mode="replicate")[:, :, :3], (0, 0, 0, 1), mode="replicate")[:, 1:]
    assert torch.equal(moved[1], up_right)
    assert translate(images, torch.zeros(2, 2, dtype=torch.long), 0) is images


def test_tokenizer_batches_are_shifted_training_images():
    objective, *_ = tokenizer()
    (images,) = objective.load(objective.batch(0, np.random.default_rng(0)))
    numbers, _, shifts = objective.batch(0, np.random.default_rng(0))
    assert images.shape == (8, 1, 8, 8)
    for image, number, shift in zip(images, numbers, shifts, strict=True):
        original = to_float(objective.images.image(int(number), None))
        dy, dx = (1 - shift).tolist()
        rows = (torch.arange(8) - dy).clamp(0, 7)
        columns = (torch.arange(8) - dx).clamp(0, 7)
        assert torch.equal(image, original[:, rows][:, :, columns])


def test_a_slice_of_a_batch_loads_as_in_the_whole():
    for objective, *_ in (tokenizer(), generator()):
        rows = objective.batch(4, np.random.default_rng(0))
        whole = objective.load(rows)
        part = objective.load(tuple(r[2:5] for r in rows))
        assert all(torch.equal(a[2:5], b) for a, b in zip(whole, part, strict=True))


def test_the_codebook_starts_from_data_and_dead_codes_restart():
    objective, *_ = tokenizer()
    quantizer, weight = objective.module.quantize, objective.module.quantize.embedding.weight
    optimizer = torch.optim.AdamW([weight], lr=0)
    before = weight.detach().clone()
    objective.before_step(0, np.random.default_rng(0), optimizer)
    started = weight.detach().clone()
    assert not torch.equal(started, before)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    quantizer.ema_vocab_hit_SV.fill_(1.0)
    quantizer.ema_vocab_hit_SV[:, 5] = 0
    objective.before_step(1, np.random.default_rng(1), optimizer)  # not a step that restarts
    assert torch.equal(weight, started)
    objective.before_step(2, np.random.default_rng(1), optimizer)
    changed = (weight != started).any(1)
    assert changed.nonzero().flatten().tolist() == [5]
    moments = optimizer.state[weight]["exp_avg"]
    assert (moments[5] == 0).all()
    assert (moments[4] != 0).all()
    objective.before_step(6, np.random.default_rng(1), optimizer)  # after RESTART_UNTIL of the steps
    assert (weight != started).any(1).sum() == 1


def test_phis_that_no_scale_uses_are_frozen():
    objective, *_ = tokenizer()  # three scales, four phis
    frozen = {n for n, p in objective.module.named_parameters() if not p.requires_grad}
    assert len({n.rsplit(".", 1)[0] for n in frozen}) == 1
    (images,) = objective.load(objective.batch(0, np.random.default_rng(0)))
    objective.loss((images,), 0)[0].backward()
    assert {n for n, p in objective.module.named_parameters() if p.grad is None} == frozen


@pytest.mark.slow
def test_a_small_tokenizer_learns_digits(tmp_path):
    config = TOKENIZER.model_copy(
        update={
            "patch_sides": (1, 2, 3, 4),
            "vocab_size": 32,
            "code_channels": 8,
            "width": 12,
            "train": OptimConfig(steps=200, batch_size=32, base_lr=0.064, warmup_fraction=0.1, clip_norm=1.0),
        }
    )
    torch.manual_seed(0)
    objective = TokenizerObjective(Tokenizer(config, 1), load_images(DataConfig(), "train"), config)
    fit(objective, config.train, tmp_path, RUNTIME.model_copy(update={"checkpoint_every": 200}), seed=0)
    last = rows_of(tmp_path)[-1]
    heldout = load_images(DataConfig(), "heldout")
    images = to_float(torch.from_numpy(np.stack([heldout.image(i, None) for i in range(len(heldout))])))
    with torch.no_grad():
        tokens = objective.module.encode(images)
        shown = objective.module.decode(objective.module.quantize.latents(tokens)[-1])
    assert F.mse_loss(shown, images) < 0.4 * images.var(0).mean()  # better than the mean image by far
    assert len(tokens.unique()) >= 28
    assert last["train/codes_used"] > 0.85
