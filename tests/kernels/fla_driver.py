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
from mvar.kernels.scan import _scan_fla
from mvar.kernels.scan_plain import Scanned
from mvar.kernels.scan_torch import scan

CAST = "i_t_int64 = i_t.to(tl.int64)"
SCANS = [  # batch, length, heads, head size, state size, with a state before
    (2, 64, 2, 16, 16, False),
    (2, 45, 2, 16, 16, True),
    (1, 9, 1, 32, 16, True),
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


def scanned(sizes, dtype):
    """Outputs and final state of both, of values that are rounded to `dtype` first."""
    values = {name: value.detach() for name, value in tensors(*sizes).items()}
    x, b, c = (values[name].to(dtype) for name in ("x", "B", "C"))
    state = values.get("state")
    y, final = _scan_fla(Scanned(x, values["dt"], values["A"], b, c, values["D"], state), None, True)
    ours = scan(Scanned(*(t.float() for t in (x, values["dt"], values["A"], b, c, values["D"])), state), None, True)
    return {"y": (y, ours[0]), "state": (final, ours[1])}


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
            cases = [scanned(sizes, dtype) for sizes in SCANS]
            cases += [convolved(*sizes, dtype) for sizes in CONVOLUTIONS]
            found[str(dtype)] = [
                {n: ((a.float() - b).abs().max() / b.abs().max()).item() for n, (a, b) in case.items()}
                for case in cases
            ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
