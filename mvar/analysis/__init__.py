"""The toolkit that reads results: records, statistics and verdicts, tables, figures, the report and its page.

The names here are what scripts of `analysis/` are written on; they are loaded when they are first used.
"""

from typing import TYPE_CHECKING

from mvar.lazy import lazily

if TYPE_CHECKING:
    from mvar.analysis import maps, ranks
    from mvar.analysis.compare import (
        DASH,
        OVER_IMAGES,
        Measured,
        aggregate,
        check_comparable,
        chosen_and_reported,
        half_width,
        over_images,
        ratio,
    )
    from mvar.analysis.contract import Analysis
    from mvar.analysis.cuts import CutModel, cut_models, head_cut, scales_of
    from mvar.analysis.family import baseline_of
    from mvar.analysis.figures import ERROR_BARS, band, bars_text, legend_below, name_points, points, unit
    from mvar.analysis.grids import read_samples, real_images, tile
    from mvar.analysis.inline import prose
    from mvar.analysis.manifests import Manifest, in_common
    from mvar.analysis.maps import attention_map, draw_changes, draw_entropies, draw_flow, draw_mass
    from mvar.analysis.pictures import grow, growth_figure, query_figure
    from mvar.analysis.power_law import BOOTSTRAP, MIN_POINTS, Law, fit_law
    from mvar.analysis.records import Records, load_records, shared_settings, training_curve
    from mvar.analysis.render import Note, Table
    from mvar.analysis.report import main
    from mvar.analysis.reproduced import beside_printed
    from mvar.analysis.style import COLUMN, WIDTH, Figure, canvas, despine, mixer_look, page
    from mvar.analysis.style import MIXERS as MIXER_NAMES
    from mvar.analysis.tables import KEYS, cell_rows, contradictions, images_line
    from mvar.analysis.verdicts import Verdict, judge, left_out, p_text, pooled
    from mvar.analysis.writer import Writer
    from mvar.escaping import code
    from mvar.escaping import figure as figure_text
    from mvar.runs.experiment import COUNTS

_HOMES = {
    "mvar.analysis": ("maps", "ranks"),
    "mvar.analysis.compare": (
        "DASH",
        "OVER_IMAGES",
        "Measured",
        "aggregate",
        "check_comparable",
        "chosen_and_reported",
        "half_width",
        "over_images",
        "ratio",
    ),
    "mvar.analysis.contract": ("Analysis",),
    "mvar.analysis.cuts": ("CutModel", "cut_models", "head_cut", "scales_of"),
    "mvar.analysis.family": ("baseline_of",),
    "mvar.analysis.figures": ("ERROR_BARS", "band", "bars_text", "legend_below", "name_points", "points", "unit"),
    "mvar.analysis.grids": ("read_samples", "real_images", "tile"),
    "mvar.analysis.inline": ("prose",),
    "mvar.analysis.maps": ("attention_map", "draw_changes", "draw_entropies", "draw_flow", "draw_mass"),
    "mvar.analysis.pictures": ("grow", "growth_figure", "query_figure"),
    "mvar.analysis.power_law": ("BOOTSTRAP", "MIN_POINTS", "Law", "fit_law"),
    "mvar.analysis.manifests": ("Manifest", "in_common"),
    "mvar.analysis.records": ("Records", "load_records", "shared_settings", "training_curve"),
    "mvar.analysis.render": ("Note", "Table"),
    "mvar.analysis.report": ("main",),
    "mvar.analysis.reproduced": ("beside_printed",),
    "mvar.analysis.style": ("COLUMN", "MIXER_NAMES", "WIDTH", "Figure", "canvas", "despine", "mixer_look", "page"),
    "mvar.analysis.tables": ("KEYS", "cell_rows", "contradictions", "images_line"),
    "mvar.analysis.verdicts": ("Verdict", "judge", "left_out", "p_text", "pooled"),
    "mvar.analysis.writer": ("Writer",),
    "mvar.escaping": ("code", "figure_text"),
    "mvar.runs.experiment": ("COUNTS",),
}
_AT_HOME = {"MIXER_NAMES": "MIXERS", "figure_text": "figure"}  # what they are called at home
__getattr__, __dir__, __all__ = lazily("mvar.analysis", _HOMES, _AT_HOME)
