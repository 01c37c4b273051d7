"""Scale-wise autoregressive image generation with swappable sequence mixers: the library."""

__version__ = "0.1.0"
