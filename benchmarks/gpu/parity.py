"""Every mixer on the device, by every back end of every kernel: output, gradients and state against fp64 on the CPU."""

from collections.abc import Iterator
from typing import Any, get_args
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.settings import Settings
from mvar.config import MambaConfig, ModelConfig, RuntimeConfig
from mvar.errors import UserError
from mvar.kernels import optional
from mvar.kernels.compiling import compiled
from mvar.mixers.base import Chosen, Mixer
from mvar.mixers.room import tensors_in
from mvar.registries import MIXERS
from mvar.scales import ScaleSchedule, Span

ALLOWED = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}  # of the largest value; a wrong kernel is off by all of it
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Passed = dict[str, list[Tensor]]


def back_ends(name: str) -> list[RuntimeConfig]:
    """The settings that a mixer is run with: torch's kernels alone, compiled, and each other kernel forced."""
    plain = RuntimeConfig.model_validate(dict.fromkeys(_kernels(), "torch"))
    found = [plain, plain.model_copy(update={"compile": True})]
    used = {"global": "attention_backend", "intra": "attention_backend", "markov": "attention_backend"}
    for field, choices in _kernels().items():
        if field == used.get(name, "") or (name == "mamba" and field != "attention_backend"):
            found += [plain.model_copy(update={field: one}) for one in choices if one not in ("auto", "torch")]
    return found


def _kernels() -> dict[str, tuple[str, ...]]:
    """The fields of `runtime` that choose a kernel, with what they allow."""
    fields = RuntimeConfig.model_fields.items()
    return {name: get_args(field.annotation) for name, field in fields if name.endswith("_backend")}


def whole_image(mixer: Mixer, x: Tensor, span: Span) -> tuple[Tensor, Any]:
    """What layers are compiled for."""
    return mixer(x, span)


def passes(mixer: Mixer, x: Tensor, schedule: ScaleSchedule, half: torch.dtype | None) -> Passed:
    """Of two pieces of an image: the output, the state between them, and the gradients of the input and all weights of
    the image as a whole, which is compiled where the mixer's layer is; on a GPU alone, a rehearsal on a CPU is not."""
    x = x.clone().requires_grad_()
    first, second = schedule.span(0, schedule.num_scales - 1), schedule.span(schedule.num_scales - 1)
    with torch.autocast(x.device.type, half, enabled=half is not None):
        y, state = mixer(x[:, : first.length], first)
        z, _ = mixer(x[:, first.length :], second, state)
        with torch.compiler.set_stance("default" if x.is_cuda else "force_eager"):
            call = compiled(whole_image) if mixer.runtime.compile else whole_image
            whole, _ = call(mixer, x, schedule.span())
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
            taken |= {"compile": "compiled"} if runtime.compile else {}
            own = Chosen.of(config, name).build(config, runtime)
            own.load_state_dict(mixer.state_dict())
            own.to(settings.device)
            for precision, dtype in DTYPES.items():
                if precision == "fp32" and runtime.attention_backend == "flash_attn":
                    continue  # it has no such kernel, and torch's would stand under its name
                row = {"mixer": name, "back_end": ", ".join(taken.values()) or "torch", "precision": precision}
                half = None if precision == "fp32" else dtype
                yield from compared(row, own, x.float().to(settings.device), schedule, half, wanted)


def compared(
    row: dict[str, Any], mixer: Mixer, x: Tensor, schedule: ScaleSchedule, half: torch.dtype | None, wanted: Passed
) -> Iterator[dict[str, Any]]:
    """Errors, or why there are none; two rows where causal-conv1d convolves, which no setting names: with and without.

    Args:
        row: what is compared.
        mixer, x, schedule, half: of `passes`.
        wanted: what it gives in fp64.
    """

    def errors() -> dict[str, Any]:
        try:
            found = passes(mixer, x, schedule, half)
        except UserError as missing:
            return {"said": str(missing)}
        except Exception as failed:  # of a kernel that is not ours: the other rows stay
            return {"said": f"{type(failed).__name__}: {failed}".splitlines()[0], "holds": False}
        by_part = {part: error(found[part], wanted[part]) for part in wanted}
        allowed = ALLOWED[row["precision"]]
        return by_part | {"allowed": allowed, "holds": max(by_part.values()) <= allowed}

    convolve, calls = optional.causal_conv1d(), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(True)
        assert convolve
        return convolve(*args, **kwargs)

    with patch.object(optional, "causal_conv1d", lambda: convolve and counted):
        first = errors()
    if calls:
        yield row | {"back_end": f"{row['back_end']}, causal_conv1d"} | first
        with patch.object(optional, "causal_conv1d", lambda: None):
            first = errors()
    yield row | first
