"""Filters of the codes that a token is drawn from: a file each, and a line in `mvar/registries.py`."""
