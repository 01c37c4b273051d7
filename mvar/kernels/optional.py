"""Kernels of packages that need not be there: each is looked for once, and None where it is missing or broken."""

from collections.abc import Callable
from functools import cache
from typing import Any

Kernel = Callable[..., Any] | None


@cache
def mamba_ssm_scan() -> Kernel:
    """Mamba-2's own scan, of mamba-ssm."""
    try:
        from mamba_ssm.ops.triton.ssd_combined import (  # pyright: ignore[reportMissingImports]  optional
            mamba_chunk_scan_combined,
        )
    except Exception:  # a broken build raises anything from ImportError to OSError and AttributeError
        return None
    return mamba_chunk_scan_combined


@cache
def fla_scan() -> Kernel:
    """Linear attention with one decay a head, of fla-core: a wheel, compiled by Triton when it is first called."""
    try:
        from fla.ops.simple_gla import chunk_simple_gla  # pyright: ignore[reportMissingImports]  optional
    except Exception:
        return None
    return chunk_simple_gla


@cache
def causal_conv1d() -> Kernel:
    """The depthwise causal convolution of causal-conv1d."""
    try:
        from causal_conv1d import causal_conv1d_fn  # pyright: ignore[reportMissingImports]  optional
    except Exception:
        return None
    return causal_conv1d_fn


@cache
def flash_attention() -> Kernel:
    """Attention of flash-attn."""
    try:
        from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]  optional
    except Exception:
        return None
    return flash_attn_func


@cache
def flash_attention_of_runs() -> Kernel:
    """Attention inside runs of tokens, of flash-attn: one call for runs of any lengths."""
    try:
        from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]  optional
    except Exception:
        return None
    return flash_attn_varlen_func


def forget() -> None:
    """Look again when one is asked for next."""
    for find in (mamba_ssm_scan, fla_scan, causal_conv1d, flash_attention, flash_attention_of_runs):
        find.cache_clear()
