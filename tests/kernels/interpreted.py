"""Triton's interpreter: kernels run on the CPU, operation by operation. Import this before Triton.

What it leaves out: timing of kernels that have several settings, and products of bf16, which it keeps as whole numbers.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import triton.language as tl
from triton.runtime import autotuner, interpreter


def _wide(handle):
    """What a GPU multiplies: the exact values of bf16, of which the interpreter has the bits."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


_dot = interpreter.InterpreterBuilder.create_dot
interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *more: _dot(self, _wide(a), _wide(b), *more)
autotuner.Autotuner.do_bench = property(lambda self: lambda function, quantiles=None: [0.0] * 3)
