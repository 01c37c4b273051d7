"""What memory a process takes, and how the C library keeps what tensors on a CPU have freed."""

import ctypes
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_KEEP_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc's malloc keep large tensors' memory for the next ones; does nothing elsewhere.

    By default it gives memory above 32 MB back to the system at every free. The next tensor then takes a page fault
    for every 4 KiB: up to a tenth of the time of sampling on a CPU. Up to 2 GiB at the end of the heap are kept.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in other C libraries
    if mallopt:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def give_back_freed_memory() -> None:
    """Give freed memory back to the system now, which glibc's malloc does not do by itself; does nothing elsewhere.

    Worth it before processes are forked: each keeps a page for itself that this one writes to again.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def release(tensor: "Tensor") -> "Tensor":
    """Free the memory of a tensor's values; its shape and the tensor itself stay. Of a part of another it stays."""
    storage = tensor.untyped_storage()
    if storage.resizable() and storage.nbytes() == tensor.nbytes:
        storage.resize_(0)
    return tensor


def provide(tensor: "Tensor") -> None:
    """Memory again for what was released, with any values in it."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        storage.resize_(tensor.nbytes)


def peak_mib() -> float:
    """The most memory that this process has held since it began, in MiB; NaN where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB elsewhere
