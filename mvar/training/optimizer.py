"""AdamW's parameter groups, and the learning rate and weight decay of every step, as in VAR's official code."""

import math
from typing import Any

import torch
from torch import nn

from mvar.config import OptimConfig
from mvar.errors import UserError

# Official keys: parameters whose name contains one of them are not decayed, whatever their shape.
NO_DECAY = ("pos_start", "pos_1LC", "lvl_embed", "ada_gss", "scale_mul")


def param_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two AdamW groups: decayed (`decay_scale` 1) and not decayed (0): official code, `filter_params`.

    Not decayed are 1-D tensors, names that end in `bias`, and names that contain a key of `module.no_decay` (default
    `NO_DECAY`). Frozen parameters are in neither group. Each group lists its parameters' `names` too.
    """
    keys = getattr(module, "no_decay", NO_DECAY)
    decay: dict[str, nn.Parameter] = {}
    no_decay: dict[str, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = parameter.ndim == 1 or name.endswith("bias") or any(key in name for key in keys)
        (no_decay if spared else decay)[name] = parameter
    groups = [
        {"params": list(group.values()), "names": list(group), "decay_scale": scale}
        for group, scale in ((decay, 1.0), (no_decay, 0.0))
    ]
    return [group for group in groups if group["params"]]


def build_adamw(module: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `param_groups(module)`; `Schedule.apply` sets learning rate and decay before each step.

    Fused: on CPU it takes a third of the time of the loop over tensors, and it gives the same bits every time.
    """
    groups = [{k: v for k, v in group.items() if k != "names"} for group in param_groups(module)]
    if not groups:
        raise UserError("objective: the module has no trainable parameters")
    return torch.optim.AdamW(groups, lr=0.0, betas=(optim.beta1, optim.beta2), eps=1e-8, weight_decay=0.0, fused=True)


def lr_and_decay(
    step: int,
    *,
    schedule: str,
    steps: int,
    warmup_steps: int,
    peak_lr: float,
    warmup_start: float,
    end_ratio: float,
    weight_decay: float,
    weight_decay_end: float,
) -> tuple[float, float]:
    """Learning rate and weight decay of one step: official code, `lr_wd_annealing`.

    Args:
        step: 0 .. steps - 1.
        schedule: `cos`, `lin` (flat for 15 % of the steps after warm-up, then linear), `lin0` (flat for 5 %), `lin00`
            (never flat), `lin0.X` (linear to half way at that share of the steps, then linear to the end), `exp`.
        steps: optimizer steps in all; the last one has the learning rate `peak_lr * end_ratio`.
        warmup_steps: linear warm-up from `peak_lr * warmup_start`.
        weight_decay, weight_decay_end: ends of a cosine over all steps.
    """
    cosine = 0.5 + 0.5 * math.cos(math.pi * step / max(steps - 1, 1))
    decay = weight_decay_end + (weight_decay - weight_decay_end) * cosine
    if step < warmup_steps:
        return peak_lr * (warmup_start + (1 - warmup_start) * step / warmup_steps), decay
    passed = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
    return peak_lr * _after_warmup(schedule, passed, end_ratio), decay


def _after_warmup(schedule: str, passed: float, end: float) -> float:
    """Learning rate relative to the peak, when the share `passed` of the steps after warm-up is behind."""
    left = 1 - passed
    if schedule == "cos":
        return end + (1 - end) * (0.5 + 0.5 * math.cos(math.pi * passed))
    if schedule == "exp":
        return 1.0 if passed < 0.15 else math.exp((passed - 0.15) / 0.85 * math.log(end))
    if schedule in ("lin", "lin0", "lin00"):
        flat = {"lin": 0.15, "lin0": 0.05, "lin00": 0.0}[schedule]
        return 1.0 if passed < flat else end + (1 - end) * left / (1 - flat)
    bend = float(schedule.removeprefix("lin"))
    middle = (1 + end + (1 - end) * (1 - bend)) / 2
    return 1 + (middle - 1) * passed / bend if passed < bend else end + (middle - end) * left / (1 - bend)


class Schedule:
    """`lr_and_decay` of an `OptimConfig`."""

    def __init__(self, optim: OptimConfig) -> None:
        if optim.schedule == "exp" and optim.end_ratio == 0:
            raise UserError("end_ratio: 0 does not fit schedule 'exp'; allowed: more than 0")
        self.optim = optim
        end = optim.weight_decay if optim.weight_decay_end is None else optim.weight_decay_end
        self._fixed: dict[str, Any] = {
            "schedule": optim.schedule,
            "steps": optim.steps,
            "warmup_steps": round(optim.warmup_fraction * optim.steps),
            "peak_lr": optim.peak_lr,
            "warmup_start": optim.warmup_start,
            "end_ratio": optim.end_ratio,
            "weight_decay": optim.weight_decay,
            "weight_decay_end": end,
        }

    def lr(self, step: int) -> float:
        """Learning rate of a step, 0 .. steps - 1."""
        return lr_and_decay(step, **self._fixed)[0]

    def weight_decay(self, step: int) -> float:
        """Weight decay of a step, for the group that is decayed."""
        return lr_and_decay(step, **self._fixed)[1]

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> tuple[float, float]:
        """Set a step's learning rate and weight decay in the optimizer; returns both."""
        lr, decay = lr_and_decay(step, **self._fixed)
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, decay * group["decay_scale"]
        return lr, decay
