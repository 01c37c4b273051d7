"""Counts operators as they are dispatched."""

import collections

from torch.utils._python_dispatch import TorchDispatchMode


class Counts(TorchDispatchMode):
    """How often each operator ran, by name."""

    def __init__(self):
        super().__init__()
        self.of = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.of[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))
