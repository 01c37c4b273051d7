"""Scale-by-scale generation: guidance, filters, and a stream of random numbers for every image.

The names are loaded when they are first used: which forms of guidance there are is known without torch.
"""

from typing import TYPE_CHECKING

from mvar.lazy import lazily

if TYPE_CHECKING:
    from mvar.sampling.drawing import guide
    from mvar.sampling.draws import balanced_labels, draw, smooth_probabilities
    from mvar.sampling.filters.top import filter_logits, smallest_kept
    from mvar.sampling.generation import Generated, generate
    from mvar.sampling.rejection import keep_best

_HOMES = {
    "mvar.sampling.drawing": ("guide",),
    "mvar.sampling.draws": ("balanced_labels", "draw", "smooth_probabilities"),
    "mvar.sampling.filters.top": ("filter_logits", "smallest_kept"),
    "mvar.sampling.generation": ("Generated", "generate"),
    "mvar.sampling.rejection": ("keep_best",),
}
__getattr__, __dir__, __all__ = lazily("mvar.sampling", _HOMES)
