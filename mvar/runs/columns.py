"""Columns of tables, as experiments name them: what a row has under which heading, and who says so.

How they are written stands in `mvar.analysis.render`.
"""

from dataclasses import dataclass

MEASURED, ANALYTIC = "measured", "analytic"
PAPER = "paper (ImageNet 256)"


@dataclass(frozen=True)
class Column:
    """A column: the key of its values in a row, its heading, who says so, and how a number is written.

    Columns with `is_text` are aligned left. `group` is `measured`, `analytic`, `paper (...)` or empty. `decimals`
    applies to floats and measured values; None writes them with an SI prefix. `factor` is applied first (100 for
    shares in percent).
    """

    key: str
    heading: str
    group: str = ""
    decimals: int | None = 2
    factor: float = 1.0
    is_text: bool = False
    is_code: bool = False  # of a command to type
    in_print: bool = True  # LaTeX has a page's width: what a reader can do without is left to the other forms


def name(heading: str) -> Column:
    """The first column: what a row is called."""
    return Column("label", heading, is_text=True)


def over_images(key: str, decimals: int) -> Column:
    """Beside a value over seeds: half of a 95 % interval over images, the mean of the runs'."""
    return Column(key, "± over images", MEASURED, decimals)


PATTERN = Column("pattern", "layers", is_text=True)
DEPTH, WIDTH = Column("depth", "depth"), Column("width", "width")
FID, PAPER_FID = Column("fid", "FID ↓", MEASURED), Column("paper_fid", "FID ↓", PAPER)
IS, PAPER_IS = Column("is", "IS ↑", MEASURED), Column("paper_is", "IS ↑", PAPER, 1)
KID = (  # a thousand times, as it is small
    Column("kid", "KID ↓ (× 1000)", MEASURED, 2, 1000),
    Column("kid_se", "standard error of KID (× 1000)", MEASURED, 2, 1000, in_print=False),
)
NLL = Column("nll", "NLL ↓ (bits/token)", MEASURED)
ERROR = Column("error", "token error (%)", MEASURED, 1, 100)
COPIES = Column("copy_rate", "near-copies (%)", MEASURED, 1, 100)
PRECISION_RECALL = (
    Column("precision", "precision ↑", MEASURED, in_print=False),
    Column("recall", "recall ↑", MEASURED, in_print=False),
)
SCORES = (NLL, COPIES, *KID, *PRECISION_RECALL)
ACCEPTANCE = Column("acceptance_rate", "acceptance rate (%)", "", 1, 100)
PARAMETERS = Column("num_params", "parameters", ANALYTIC, None)
SAMPLE_FLOPS = Column("sample_flops", "FLOPs an image", ANALYTIC, None, in_print=False)
SAMPLE_S = Column("sample_s", "sampling (s)", MEASURED, 1, in_print=False)
SEEDS = Column("n", "seeds", "", 0)
SPENT = (
    Column("train_flops", "training FLOPs", ANALYTIC, None),
    SAMPLE_FLOPS,
    Column("steps", "steps", "", 0, in_print=False),
    Column("train_s", "training (s)", MEASURED, 1, in_print=False),
    SAMPLE_S,
    SEEDS,
)
COSTS = (PARAMETERS, *SPENT)
RELATIVE = (  # to an experiment's row `relative_to`
    Column("train_cost", "relative training cost", MEASURED),
    Column("train_cost_analytic", "relative training cost", ANALYTIC),
    Column("paper_relative_training_cost", "relative training cost", PAPER, 1),
    Column("inference", "relative inference time", MEASURED),
    Column("inference_analytic", "relative inference time", ANALYTIC),
    Column("paper_relative_inference_time", "relative inference time", PAPER, 1),
)
