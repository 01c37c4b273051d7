"""Parameter groups, schedules and the whole optimisation against the official code."""

import json

import numpy as np
import pytest
import torch
from official import GOLDEN, load_model, load_quantizer
from torch import nn
from toy_objective import RUNTIME, rows_of

from mvar.config import ModelConfig, OptimConfig, TokenSpace, TrainConfig
from mvar.data.tokens import TokenCache
from mvar.errors import UserError
from mvar.training.generator import GeneratorObjective
from mvar.training.loop import fit
from mvar.training.optimizer import Schedule, build_adamw, lr_and_decay, param_groups
from mvar.transformer import ScaleTransformer

FACTS = json.loads((GOLDEN / "schedule_optim" / "config.json").read_text())


@pytest.mark.parametrize("table", FACTS["tables"], ids=lambda t: f"{t['sche']}-{t['wp_it']}")
def test_schedule_tables(table):
    for step, lr, decay in table["rows"]:
        fixed = {
            "steps": table["max_it"],
            "warmup_steps": round(table["wp_it"]),
            "peak_lr": table["peak_lr"],
            "warmup_start": table["wp0"],
            "end_ratio": table["wpe"],
            "weight_decay": table["wd"],
            "weight_decay_end": table["wd_end"],
        }
        assert lr_and_decay(step, schedule=table["sche"], **fixed) == pytest.approx((lr, decay), rel=1e-9)


@pytest.mark.parametrize("table", FACTS["tables"], ids=lambda t: f"{t['sche']}-{t['wp_it']}")
def test_schedule_from_config(table):
    optim = OptimConfig(
        steps=table["max_it"],
        batch_size=64,
        base_lr=table["peak_lr"] * 4,
        weight_decay=table["wd"],
        weight_decay_end=table["wd_end"],
        schedule=table["sche"],
        warmup_fraction=table["wp_it"] / table["max_it"],
        warmup_start=table["wp0"],
        end_ratio=table["wpe"],
    )
    schedule = Schedule(optim)
    for step, lr, decay in table["rows"]:
        assert (schedule.lr(step), schedule.weight_decay(step)) == pytest.approx((lr, decay), rel=1e-9)


@pytest.mark.parametrize("name", ["lin0", "lin", "lin00", "cos", "exp", "lin0.8", "lin0.0"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_trainings_have_a_schedule(name, steps):
    schedule = Schedule(OptimConfig(steps=steps, schedule=name, warmup_fraction=0.9))
    assert all(0 < schedule.lr(step) <= schedule.optim.peak_lr for step in range(steps))


def test_exponential_schedule_cannot_end_at_zero():
    with pytest.raises(UserError, match="end_ratio: 0 "):
        Schedule(OptimConfig(schedule="exp", end_ratio=0))


@pytest.mark.parametrize("case", FACTS["param_groups"])
def test_parameter_groups(case):
    facts = FACTS["param_groups"][case]
    config = ModelConfig(
        depth=facts["depth"],
        width=64,
        num_heads=2,
        pattern="intra+mamba" if case.startswith("mvar") else "global",
        attn_l2_norm=facts["attn_l2_norm"],
        shared_adaln=facts["shared_aln"],
    )
    decay, spared = param_groups(ScaleTransformer(config, TokenSpace((1, 2), 16, 8, 4)))
    assert (decay["decay_scale"], spared["decay_scale"]) == (1, 0)
    assert set(decay["names"]) == set(facts["decay"])
    assert set(spared["names"]) == set(facts["no_decay"])


def test_groups_skip_frozen_parameters_and_adamw_needs_some():
    module = nn.Linear(3, 3)
    module.weight.requires_grad_(False)
    (group,) = param_groups(module)
    assert group["names"] == ["bias"]
    module.bias.requires_grad_(False)
    with pytest.raises(UserError, match="no trainable parameters"):
        build_adamw(module, OptimConfig())


@pytest.mark.parametrize("case", ["var_plain", "mvar_plain"])
def test_optimisation_trace(case, tmp_path):
    """Six steps of the real loop on one batch: losses, norms, rates, and the parameters they end in."""
    facts, model, inputs, outputs = load_model(case)
    optim, quantizer = facts["optim"], load_quantizer(case)
    train = TrainConfig(
        steps=optim["max_it"],
        batch_size=2,
        base_lr=optim["peak_lr"] * 128,
        weight_decay=optim["wd"],
        weight_decay_end=optim["wd_end"],
        warmup_fraction=optim["wp_it"] / optim["max_it"],
        clip_norm=optim["grad_clip"],
        label_dropout=0,
    )
    cache = TokenCache(tmp_path, inputs["tf.gt_idx"].numpy(), inputs["tf.label"].numpy(), {})
    objective = GeneratorObjective(model, quantizer, cache, train, seed=0)
    torch.testing.assert_close(objective.inputs, inputs["tf.x"])
    fit(objective, train, tmp_path, RUNTIME.model_copy(update={"log_every": 1}), seed=0)

    rows = rows_of(tmp_path)
    assert len(rows) == len(optim["trace"])
    for row, expected in zip(rows, optim["trace"], strict=True):
        names = {"loss": "train/loss", "grad_norm": "train/grad_norm", "lr": "train/lr", "wd": "train/weight_decay"}
        for name, key in names.items():
            assert row[key] == pytest.approx(expected[name], rel=5e-6 if name != "grad_norm" else 2e-5), name
    parameters = dict(model.named_parameters())
    names = [name for name in outputs if name.startswith("optim.param.")]
    assert names
    for name in names:
        torch.testing.assert_close(
            parameters[name.removeprefix("optim.param.")].detach(), outputs[name], rtol=0, atol=2e-6
        )
    logits = model(inputs["tf.label"], inputs["tf.x"])[0].detach()
    assert (logits - outputs["optim.final_logits"]).abs().max() <= 8 * optim["final_logits_fp32_vs_fp64"]


@pytest.mark.parametrize("case", ["var_plain", "var_plain_shared", "var_l2", "var_l2_shared", "mvar_plain", "mvar_l2"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_trainers_loss(case, smoothing, tmp_path):
    facts, model, inputs, outputs = load_model(case)
    cache = TokenCache(tmp_path, inputs["tf.gt_idx"].numpy(), inputs["tf.label"].numpy(), {})
    train = TrainConfig(label_smoothing=smoothing, label_dropout=0)
    objective = GeneratorObjective(model, load_quantizer(case), cache, train, seed=0)
    loss, metrics = objective.loss((inputs["tf.label"], inputs["tf.gt_idx"], inputs["tf.x"]), 0)
    expected = outputs["tf.loss_label_smoothing_0.1" if smoothing else "tf.loss"]
    torch.testing.assert_close(loss.detach(), expected.view(()), rtol=1e-5, atol=1e-6)
    if not smoothing:
        last = f"{len(facts['patch_nums']) - 1:02d}"
        names = {"acc_mean": "accuracy", "Lt": f"loss_scale_{last}", "acc_tail": f"accuracy_scale_{last}"}
        for official, name in names.items():
            logged = facts["train_metrics"][official] / (100 if official.startswith("acc") else 1)
            assert metrics[f"train/{name}"].item() == pytest.approx(logged, rel=1e-5), name


def test_order_covers_every_epoch_and_depends_on_nothing_else():
    from mvar.training.contract import DataOrder

    order = DataOrder(10, 4, seed=3)
    rows = np.concatenate([order.rows(step) for step in range(15)])
    for epoch in range(6):
        assert sorted(rows[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert (rows[:10] != rows[10:20]).any()
    for step in (14, 0, 7):  # any step alone, in any order
        assert (DataOrder(10, 4, seed=3).rows(step) == rows[4 * step : 4 * step + 4]).all()
    assert (DataOrder(10, 4, seed=4).rows(0) != order.rows(0)).any()
    assert len(DataOrder(3, 8, seed=0).rows(2)) == 8
