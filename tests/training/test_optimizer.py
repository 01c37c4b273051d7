"""Parameter groups, schedules and the whole optimisation against the official code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toy_objective import RUNTIME, rows_of

from mvar.config import ModelConfig, OptimConfig, TokenizerConfig, TokenSpace, TrainConfig
from mvar.data.tokens import TokenCache
from mvar.errors import UserError
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.training.loop import fit
from mvar.training.objectives import GeneratorObjective
from mvar.training.optimizer import Schedule, build_adamw, lr_and_decay, param_groups
from mvar.transformer import ScaleTransformer

GOLDEN = Path(__file__).parents[1] / "golden"
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
    folder = GOLDEN / case
    facts = json.loads((folder / "config.json").read_text())
    optim, inputs = facts["optim"], load_file(folder / "inputs.safetensors")
    outputs = load_file(folder / "outputs.safetensors")
    sides = tuple(facts["patch_nums"])
    pattern = {"var": "global", "mvar": "intra+mamba"}[facts["kind"]]
    config = ModelConfig(
        depth=facts["depth"], width=facts["width"], num_heads=facts["heads"], pattern=pattern, attn_l2_norm=False
    )
    model = ScaleTransformer(config, TokenSpace(sides, facts["vocab_size"], facts["Cvae"], facts["num_classes"]))
    weights = {k: v.float() for k, v in load_file(folder / "state.safetensors").items()}
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    quantizer = ResidualQuantizer(
        TokenizerConfig(patch_sides=sides, vocab_size=facts["vocab_size"], code_channels=facts["Cvae"])
    )
    codes = load_file(folder / "vae.safetensors")
    quantizer.load_state_dict({k.removeprefix("quantize."): v.float() for k, v in codes.items()})
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


def test_order_covers_every_epoch_and_depends_on_nothing_else():
    from mvar.training.objective import DataOrder

    order = DataOrder(10, 4, seed=3)
    rows = np.concatenate([order.rows(step) for step in range(15)])
    for epoch in range(6):
        assert sorted(rows[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert (rows[:10] != rows[10:20]).any()
    for step in (14, 0, 7):  # any step alone, in any order
        assert (DataOrder(10, 4, seed=3).rows(step) == rows[4 * step : 4 * step + 4]).all()
    assert (DataOrder(10, 4, seed=4).rows(0) != order.rows(0)).any()
    assert len(DataOrder(3, 8, seed=0).rows(2)) == 8
