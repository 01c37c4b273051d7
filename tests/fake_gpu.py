"""What a forward pass on a GPU launches and waits for; stand-ins for the optional kernels."""

import collections
import inspect
import json
import sys
import types
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SIGNATURES = Path(__file__).parent / "golden" / "kernel_signatures.json"
# Views, and questions that cost nothing on the device.
NO_KERNEL = """
    device promote_types view _unsafe_view reshape transpose permute expand unsqueeze squeeze select slice split
    split_with_sizes unbind t detach alias as_strided unfold chunk empty empty_like new_empty diagonal lift_fresh
    is_same_size sym_size sym_stride numel
"""
WAITS = frozenset(("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero"))


class Launches(TorchDispatchMode):
    """Counts the operators that a GPU would launch; in `waits` what makes the host wait for it, in order: copies from
    it, copies to it from memory that is not pinned, and values that are read."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        out = func(*args, **(kwargs or {}))
        if name not in NO_KERNEL.split():
            self.counts[name] += 1
        moved = isinstance(out, torch.Tensor) and name in ("_to_copy", "copy_", "index")
        if name in WAITS or (moved and any(t.device.type != out.device.type for t in tensors if t.ndim)):
            self.waits.append((sum(self.counts.values()), name))
        return out

    @property
    def total(self):
        """All of them."""
        return sum(self.counts.values())


def signature(package, function):
    """The parameters of a function as its package's source has them (`tests/golden/kernel_signatures.json`)."""
    stored = json.loads(SIGNATURES.read_text())[package]["functions"][function]
    return inspect.signature(eval(f"lambda {stored}: None", {"inf": float("inf")}))


class Kernels:
    """Optional packages that are not there: their functions check how they are called, and give what has the shape."""

    def __init__(self):
        self.calls = collections.Counter()

    def __enter__(self):
        self.before = {}
        functions = {
            "mamba_ssm.ops.triton.ssd_combined": ("mamba-ssm", "mamba_chunk_scan_combined", scanned),
            "flash_attn": ("flash-attn", "flash_attn_func", attended),
        }
        for module, (package, name, result) in functions.items():
            self.put(module, name, self.checked(package, name, result))
        from mvar.kernels import scan

        scan._mamba_ssm_kernel.cache_clear()
        return self

    def put(self, path, name, function):
        parts = path.split(".")
        for stop in range(1, len(parts) + 1):
            module = ".".join(parts[:stop])
            self.before[module] = sys.modules.get(module)
            sys.modules[module] = types.ModuleType(module)
            sys.modules[module].__path__ = []
        setattr(sys.modules[path], name, function)

    def checked(self, package, name, result):
        bound_to = signature(package, name)

        def kernel(*args, **kwargs):
            bound = bound_to.bind(*args, **kwargs)
            bound.apply_defaults()
            tensors = [t for t in bound.arguments.values() if isinstance(t, torch.Tensor)]
            assert all(t.is_cuda for t in tensors), f"{name}: a tensor that is not on the GPU"
            self.calls[name] += 1
            return result(**bound.arguments)

        return kernel

    def __exit__(self, *error):
        from mvar.kernels import scan

        for module, was in self.before.items():
            if was is None:
                sys.modules.pop(module)
            else:
                sys.modules[module] = was
        scan._mamba_ssm_kernel.cache_clear()


def scanned(x, dt, A, B, C, D, initial_states, return_final_states, **others):
    batch, length, heads, size = x.shape
    n = B.shape[-1]
    assert dt.shape == (batch, length, heads) and A.shape == (heads,) and D.shape == (heads,)
    assert B.shape == C.shape == (batch, length, 1, n) and B.dtype == C.dtype == x.dtype
    assert x.stride(-1) == 1 or x.stride(1) == 1
    assert initial_states is None or initial_states.shape == (batch, heads, size, n)
    y = (x * dt[..., None].to(x.dtype) + (B.sum() + C.sum() + A.sum() + D.sum()).to(x.dtype)).to(x.dtype)
    return (y, x.new_empty(batch, heads, size, n, dtype=torch.float32)) if return_final_states else y


def attended(q, k, v, dropout_p, causal, **others):
    assert all(t.dtype in (torch.float16, torch.bfloat16) for t in (q, k, v)), "flash-attn has no kernel for fp32"
    assert q.dtype == k.dtype == v.dtype and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    batch, _, heads, size = q.shape
    assert k.shape == v.shape == (batch, k.shape[1], heads, size) and size % 8 == 0 and size <= 256
    assert not causal and dropout_p == 0
    return q + (k.sum() + v.sum())
