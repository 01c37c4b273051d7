"""Sequence mixers, one file each: what a layer swaps. `base` is the contract, `mvar.registries.MIXERS` the list."""
