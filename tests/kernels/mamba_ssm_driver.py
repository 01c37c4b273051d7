"""Runs mamba-ssm's own Triton kernel on the CPU, by Triton's interpreter, beside our scan; prints relative errors.

A process of its own: Triton reads TRITON_INTERPRET when it is imported, and the stand-ins below (for what the kernel's
package asks of a GPU) must reach no other test. Usage: python mamba_ssm_driver.py FOLDER_OF_MAMBA_SSM
"""

import contextlib
import json
import sys
import types

import interpreted  # noqa: F401  before Triton
import torch

from mvar.kernels.scan import _scan_mamba_ssm
from mvar.kernels.scan_plain import Scanned
from mvar.kernels.scan_torch import scan as scan_torch

CASES = [  # batch, length, heads, head size, state size, with a state before, kernel's chunk
    (1, 64, 2, 16, 16, False, 32),
    (2, 45, 2, 16, 16, True, 32),  # no multiple of the chunk: the end of a scale
    (1, 9, 1, 32, 16, True, 16),  # shorter than a chunk
]
DTYPES = (torch.float32, torch.bfloat16)
NAMES = ("x", "dt", "A", "B", "C", "D", "state")


def stand_in(folder):
    """What importing the package and running a kernel ask for, without a GPU."""
    package = types.ModuleType("mamba_ssm")  # not its __init__, which imports language models and compiled kernels
    package.__path__ = [f"{folder}/mamba_ssm"]
    sys.modules["mamba_ssm"] = package
    sys.path.append(folder)
    torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(multi_processor_count=1)
    torch.cuda.device = lambda index: contextlib.nullcontext()


def tensors(batch, length, heads, size, n, has_state):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    values = {
        "x": normal(batch, length, heads, size),
        "dt": 0.01 + 0.1 * torch.rand(batch, length, heads, generator=generator),
        "A": -1 - 4 * torch.rand(heads, generator=generator),
        "B": normal(batch, length, n),
        "C": normal(batch, length, n),
        "D": normal(heads),
    }
    if has_state:
        values["state"] = normal(batch, heads, size, n)
    return {name: value.requires_grad_() for name, value in values.items()}


def run(scan, values, chunk, dtype=torch.float32):
    """Outputs and gradients; what a layer computes in half precision is rounded to it."""
    rounded = {name: value.to(dtype) if name in "xBC" else value for name, value in values.items()}
    arguments = [rounded.get(name) for name in NAMES]
    y, final = scan(Scanned(*arguments), chunk, True)
    weights = torch.Generator().manual_seed(1)
    loss = (y.float() * torch.randn(y.shape, generator=weights)).sum()
    loss = loss + (final * torch.randn(final.shape, generator=weights)).sum()
    gradients = torch.autograd.grad(loss, list(values.values()))
    return {"y": y, "final_state": final} | dict(zip((f"grad_{name}" for name in values), gradients, strict=True))


def main():
    stand_in(sys.argv[1])
    print(json.dumps({str(dtype): [beside(*case, dtype) for case in CASES] for dtype in DTYPES}))


def beside(*case):
    """Relative errors of a case."""
    *sizes, chunk, dtype = case
    values = tensors(*sizes)
    theirs, ours = run(_scan_mamba_ssm, values, chunk, dtype), run(scan_torch, values, chunk, dtype)
    scale = {name: value.detach().abs().max().item() for name, value in ours.items()}
    return {name: (theirs[name].float() - ours[name].float()).abs().max().item() / scale[name] for name in ours}


if __name__ == "__main__":
    main()
