"""Forms of classifier-free guidance: a file each, which needs no torch, and a line in `mvar/registries.py`."""
