"""Sequence mixers: the parts that a layer swaps. `base` is the contract, `mvar.pattern.REGISTRY` the list."""
