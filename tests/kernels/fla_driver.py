"""Runs fla-core's own Triton kernels on the CPU, by Triton's interpreter, beside ours; prints relative errors.

Its chunked scan with one decay a head, which Mamba-2's is, and its causal convolution: forward, in fp32 and bf16. A
process of its own, as `mamba_ssm_driver`. One line is another: the interpreter's loops count in Python's numbers, which
cannot be cast.
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import interpreted  # noqa: F401  before Triton
import torch
from mamba_ssm_driver import tensors

from mvar.kernels.causal_conv import causal_conv
from mvar.kernels.scan_torch import Scanned, scan

CAST = "i_t_int64 = i_t.to(tl.int64)"
SCANS = [  # batch, length, heads, head size, state size, with a state before, kernel's chunk
    (2, 64, 2, 16, 16, False, 32),
    (2, 45, 2, 16, 16, True, 32),
    (1, 9, 1, 32, 16, True, 16),
]
CONVOLUTIONS = [(2, 37, 24, False), (1, 5, 16, True)]  # batch, length, channels, with what was before


def stand_in():
    """The patched module in the place of the package's."""
    found = importlib.util.find_spec("fla")
    text = (Path(found.submodule_search_locations[0]) / "ops" / "common" / "chunk_h.py").read_text()
    assert text.count(CAST) == 2, "in the forward and in the backward kernel"
    patched = Path(tempfile.mkdtemp()) / "chunk_h.py"
    patched.write_text(text.replace(CAST, "i_t_int64 = i_t"))
    sys.meta_path.insert(0, Patched(patched))


class Patched:
    """Finds the module in another file."""

    def __init__(self, path):
        self.path = path

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, self.path) if name == "fla.ops.common.chunk_h" else None


def scanned(sizes, chunk, dtype):
    """Outputs and final state of both, of values that are rounded to `dtype` first."""
    from fla.ops.simple_gla import chunk_simple_gla

    values = {name: value.detach() for name, value in tensors(*sizes).items()}
    x, b, c = (values[name].to(dtype) for name in ("x", "B", "C"))
    heads, state = x.shape[2], values.get("state")
    y, final = chunk_simple_gla(
        c[:, :, None].expand(-1, -1, heads, -1).contiguous(),
        b[:, :, None].expand(-1, -1, heads, -1).contiguous(),
        (x * values["dt"][..., None]).to(dtype),
        values["dt"] * values["A"],
        scale=1.0,
        initial_state=None if state is None else state.mT.contiguous(),
        output_final_state=True,
        chunk_size=chunk,
    )
    y = y.float() + x.float() * values["D"][:, None]
    ours = scan(Scanned(*(t.float() for t in (x, values["dt"], values["A"], b, c, values["D"])), state), chunk, True)
    return {"y": (y, ours[0]), "state": (final.mT, ours[1])}


def convolved(batch, length, channels, has_tail, dtype):
    from fla.modules.causal_conv1d import causal_conv1d

    generator = torch.Generator().manual_seed(2)
    x, weight, bias, tail = (
        torch.randn(size, generator=generator).to(dtype)
        for size in ((batch, length, channels), (channels, 1, 4), (channels,), (batch, 3, channels))
    )
    before = torch.cat((torch.zeros_like(tail[:, :1]), tail), 1).mT.contiguous() if has_tail else None
    y, after = causal_conv1d(x, weight[:, 0], bias, initial_state=before, output_final_state=True, activation="silu")
    ours, end = causal_conv(x.float(), weight.float(), bias.float(), tail.float() if has_tail else None, "silu")
    return {"y": (y, ours), "tail": (after.mT[:, 1:], end)}


def main():
    stand_in()
    found = {}
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            cases = [scanned(sizes, chunk, dtype) for *sizes, chunk in SCANS]
            cases += [convolved(*sizes, dtype) for sizes in CONVOLUTIONS]
            found[str(dtype)] = [
                {n: ((a.float() - b).abs().max() / b.abs().max()).item() for n, (a, b) in case.items()}
                for case in cases
            ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
