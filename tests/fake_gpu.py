"""What a forward pass on a GPU launches and waits for; stand-ins for the optional kernels."""

import collections
import inspect
import json
import sys
import types
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mvar.kernels import optional

SIGNATURES = Path(__file__).parent / "golden" / "kernel_signatures.json"
# Views, and questions that cost nothing on the device.
NO_KERNEL = """
    device promote_types view _unsafe_view reshape transpose permute expand unsqueeze squeeze select slice split
    split_with_sizes unbind t detach alias as_strided unfold chunk empty empty_like new_empty diagonal lift_fresh
    is_same_size sym_size sym_stride numel
"""
COPIES = frozenset(("_to_copy", "copy_"))
WAITS = frozenset(("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero"))


class Launches(TorchDispatchMode):
    """Counts the operators that a GPU would launch; in `waits` what makes the host wait for it, in order: copies from
    it, copies to it from memory that is not pinned, indices of the host, and values that are read."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        out = func(*args, **(kwargs or {}))
        if name not in NO_KERNEL.split():
            self.counts[name] += 1
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        # a number that an operator is given from the host goes with the launch itself; one that is copied does not
        from_host = any(t.device.type == "cpu" and (t.ndim or name in COPIES) for t in given)
        to_device = from_host and any(t.is_cuda for t in made)
        to_host = any(t.is_cuda for t in given) and any(t.device.type == "cpu" for t in made)
        if name in WAITS or to_device or to_host:
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

    active = False  # whether any is

    def __init__(self, *missing):
        self.calls = collections.Counter()
        self.missing = missing  # functions that are not there

    def __enter__(self):
        self.before, self.outer, Kernels.active = {}, Kernels.active, True
        functions = {
            "mamba_ssm.ops.triton.ssd_combined": ("mamba-ssm", "mamba_chunk_scan_combined", scanned),
            "fla.ops.simple_gla": ("fla-core", "chunk_simple_gla", linearly_attended),
            "causal_conv1d": ("causal-conv1d", "causal_conv1d_fn", convolved),
            "flash_attn": ("flash-attn", "flash_attn_func", attended),
        }
        for module, (package, name, result) in functions.items():
            if name not in self.missing:
                self.put(module, name, self.checked(package, name, result))
        if "flash_attn_func" not in self.missing:
            varlen = self.checked("flash-attn", "flash_attn_varlen_func", attended_in_runs)
            sys.modules["flash_attn"].flash_attn_varlen_func = varlen
        for module, (_, name, _) in functions.items():
            if name in self.missing:
                self.before[module], sys.modules[module] = sys.modules.get(module), None  # importing it fails
        optional.forget()
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
        Kernels.active = self.outer
        for module, was in self.before.items():
            if was is None:
                sys.modules.pop(module)
            else:
                sys.modules[module] = was
        optional.forget()


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


def linearly_attended(q, k, v, g, scale, initial_state, output_final_state, state_v_first, **others):
    batch, length, heads, n = q.shape
    size = v.shape[-1]
    assert k.shape == q.shape and v.shape == (batch, length, heads, size) and g.shape == (batch, length, heads)
    assert q.dtype == k.dtype == v.dtype and g.dtype == torch.float32 and scale == 1 and state_v_first
    assert initial_state is None or initial_state.shape == (batch, heads, size, n)
    assert initial_state is None or initial_state.dtype == torch.float32
    y = v + (q.sum() + k.sum() + g.sum()).to(v.dtype)
    return y, v.new_empty(batch, heads, size, n, dtype=torch.float32) if output_final_state else None


def convolved(x, weight, bias, initial_states, activation, return_final_states, seq_idx, **others):
    """With the checks of its C++ source, for channels last."""
    batch, channels, _ = x.shape
    assert x.stride(1) == 1 and x.stride(0) % 8 == x.stride(2) % 8 == channels % 8 == 0
    assert weight.shape[0] == channels and 2 <= weight.shape[1] <= 4
    assert bias.shape == (channels,) and bias.dtype == weight.dtype and activation == "silu"
    if initial_states is not None:
        assert initial_states.shape == (batch, channels, weight.shape[1] - 1)
        assert initial_states.dtype == x.dtype and initial_states.stride(1) == 1
    assert not return_final_states and seq_idx is None
    return x + (weight.sum() + bias.sum()).to(x.dtype)


def attended_in_runs(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, dropout_p, causal, **others):
    assert all(t.dtype in (torch.float16, torch.bfloat16) for t in (q, k, v))
    assert q.shape == k.shape == v.shape and q.ndim == 3 and q.stride(-1) == 1
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 and 0 < max_seqlen_q <= len(q)
    assert not causal and dropout_p == 0
    return q + (k.sum() + v.sum())
