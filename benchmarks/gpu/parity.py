"""Every mixer on the device, by every back end of every kernel: output, gradients and state against fp64 on the CPU."""

from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.gpu.settings import Settings
from mvar.config import MambaConfig, ModelConfig, RuntimeConfig
from mvar.errors import UserError
from mvar.mixers.base import Chosen, Mixer
from mvar.mixers.room import tensors_in
from mvar.registries import MIXERS
from mvar.scales import ScaleSchedule

ALLOWED = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}  # of the largest value; a wrong kernel is off by all of it
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Passed = dict[str, list[Tensor]]


def back_ends(name: str) -> list[RuntimeConfig]:
    """The settings of kernels that a mixer is run with: torch's alone, and each other one forced."""
    plain = RuntimeConfig.model_validate(dict.fromkeys(_kernels(), "torch"))
    found = [plain]
    used = {"global": "attention_backend", "intra": "attention_backend", "markov": "attention_backend"}
    for field, choices in _kernels().items():
        if field == used.get(name, "") or (name == "mamba" and field != "attention_backend"):
            found += [plain.model_copy(update={field: one}) for one in choices if one not in ("auto", "torch")]
    return found


def _kernels() -> dict[str, tuple[str, ...]]:
    """The fields of `runtime` that choose a kernel, with what they allow."""
    fields = RuntimeConfig.model_fields.items()
    return {name: get_args(field.annotation) for name, field in fields if name.endswith("_backend")}


def passes(mixer: Mixer, x: Tensor, schedule: ScaleSchedule, half: torch.dtype | None) -> Passed:
    """Of two pieces of an image: the output, the state between them, and the gradients of the input and all weights."""
    x = x.clone().requires_grad_()
    first, second = schedule.span(0, schedule.num_scales - 1), schedule.span(schedule.num_scales - 1)
    with torch.autocast(x.device.type, half, enabled=half is not None):
        y, state = mixer(x[:, : first.length], first)
        z, _ = mixer(x[:, first.length :], second, state)
        whole, _ = mixer(x, schedule.span())
    outputs = torch.cat((y, z), 1)
    weights = torch.linspace(-1, 1, whole.numel(), device=x.device, dtype=x.dtype).view_as(whole)
    gradients = torch.autograd.grad((whole.to(x.dtype) * weights).sum(), [x, *mixer.parameters()])
    known = [t[:, :, : first.length] if hasattr(state, "filled") else t for t in tensors_in(state)]
    return {"forward": [outputs, whole], "backward": list(gradients), "state": known}


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest difference, of a tensor's largest value."""
    pairs = [(a.detach().double().cpu(), b.detach().double().cpu()) for a, b in zip(found, wanted, strict=True)]
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in pairs) if pairs else 0.0


def rows(settings: Settings) -> Iterator[dict[str, Any]]:
    """A row a mixer, back end and precision; errors, or why there are none."""
    width = 32 if settings.tiny else 256
    config = ModelConfig(
        width=width, depth=1, num_heads=width // 16, attn_l2_norm=True, mamba=MambaConfig(d_state=16, headdim=16)
    )
    schedule = ScaleSchedule((1, 2, 3) if settings.tiny else (1, 2, 3, 4, 5, 6))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, schedule.num_tokens, width, generator=generator, dtype=torch.float64)
    for name in sorted(MIXERS.names()):
        torch.manual_seed(0)
        mixer = Chosen.of(config, name).build(config, RuntimeConfig()).double()
        wanted = passes(mixer, x, schedule, None)
        for runtime in back_ends(name):
            taken = {f: getattr(runtime, f) for f in _kernels() if getattr(runtime, f) != "torch"}
            own = Chosen.of(config, name).build(config, runtime)
            own.load_state_dict(mixer.state_dict())
            own.to(settings.device)
            for precision, dtype in DTYPES.items():
                if precision == "fp32" and runtime.attention_backend == "flash_attn":
                    continue  # it has no such kernel, and torch's would stand under its name
                row = {"mixer": name, "back_end": ", ".join(taken.values()) or "torch", "precision": precision}
                half = None if precision == "fp32" else dtype
                try:
                    found = passes(own, x.float().to(settings.device), schedule, half)
                except UserError as missing:
                    yield row | {"said": str(missing)}
                    continue
                except Exception as failed:  # of a kernel that is not ours: the other rows stay
                    yield row | {"said": f"{type(failed).__name__}: {failed}".splitlines()[0], "holds": False}
                    continue
                errors = {part: error(found[part], wanted[part]) for part in wanted}
                yield (
                    row | errors | {"allowed": ALLOWED[precision], "holds": max(errors.values()) <= ALLOWED[precision]}
                )
