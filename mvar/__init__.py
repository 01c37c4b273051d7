"""Scale-wise autoregressive image generation with swappable sequence mixers.

The public names, which experiments, analyses and users' own files are written on. They are loaded when they are first
used, so that `import mvar` takes no time and needs nothing optional.
"""

from typing import TYPE_CHECKING

from mvar.lazy import lazily

if TYPE_CHECKING:
    from mvar import layout
    from mvar.api.experiments import experiment
    from mvar.api.explored import explore
    from mvar.api.loading import load
    from mvar.api.making import evaluate, train
    from mvar.api.model import Model
    from mvar.api.tables import runs
    from mvar.api.trained import Likelihood, Trained
    from mvar.artefacts import check_artefact
    from mvar.config import Config, ModelConfig, RunConfig, SampleConfig, TokenSpace, override
    from mvar.cost import attention_cost, layer_attention_cost, num_params, sample_flops, state_bytes
    from mvar.data.arrays import ArrayPictures
    from mvar.data.sources.contract import DataSource, OpenedSource
    from mvar.errors import UserError
    from mvar.evaluation.extractors.contract import ExtractorKind
    from mvar.evaluation.measure import label_accuracy
    from mvar.evaluation.metrics.contract import Metric
    from mvar.files import digest
    from mvar.mixers.base import Mixer, inter_scale_mixers
    from mvar.mixers.scale_attention import ScaleAttention
    from mvar.presets import PRESETS, imagenet, model_size, resize
    from mvar.probes.attention_mass import AttentionStats, uniform_entropy, uniform_share
    from mvar.probes.contract import Probe, Shown
    from mvar.probes.knockout import Effect, matrix_of
    from mvar.probes.knockout_kept import Knockout
    from mvar.probes.measurable import MAX_IMAGES, drawn_inputs
    from mvar.probes.probe_kept import Probed
    from mvar.probes.subject import Subject
    from mvar.registries import register
    from mvar.runs import columns
    from mvar.runs.columns import Column
    from mvar.runs.demo import demo_runs
    from mvar.runs.executors.contract import Executor, Summary
    from mvar.runs.executors.local import Local as LocalExecutor
    from mvar.runs.experiment import Cell, Experiment, paper_rows
    from mvar.runs.stages.sample import draw_images
    from mvar.runs.states import DONE
    from mvar.runs.store import RunDirectory, Store, one_line
    from mvar.runs.wiring import Stages, kept_knockout, kept_knockouts, kept_probes, run_attention
    from mvar.sampling import filter_logits, generate
    from mvar.sampling.filters.contract import Filter
    from mvar.sampling.guidance.contract import Guidance
    from mvar.scales import PATCH_SIDES, ScaleSchedule

__version__ = "0.2.0"

_HOMES = {
    "mvar.api.experiments": ("experiment",),
    "mvar.api.explored": ("explore",),
    "mvar.api.loading": ("load",),
    "mvar.api.making": ("evaluate", "train"),
    "mvar.api.model": ("Model",),
    "mvar.api.trained": ("Likelihood", "Trained"),
    "mvar.sampling": (
        "filter_logits",
        "generate",
    ),
    "mvar.sampling.filters.contract": ("Filter",),
    "mvar.sampling.guidance.contract": ("Guidance",),
    "mvar.evaluation.extractors.contract": ("ExtractorKind",),
    "mvar.evaluation.metrics.contract": ("Metric",),
    "mvar.evaluation.measure": ("label_accuracy",),
    "mvar.runs.stages.sample": ("draw_images",),
    "mvar.probes.measurable": ("MAX_IMAGES", "drawn_inputs"),
    "mvar.runs.demo": ("demo_runs",),
    "mvar": ("layout", "runs"),  # modules; that of runs can be called
    "mvar.artefacts": ("check_artefact",),
    "mvar.config": ("Config", "ModelConfig", "RunConfig", "SampleConfig", "TokenSpace", "override"),
    "mvar.cost": ("attention_cost", "layer_attention_cost", "num_params", "sample_flops", "state_bytes"),
    "mvar.data.arrays": ("ArrayPictures",),
    "mvar.data.sources.contract": ("DataSource", "OpenedSource"),
    "mvar.errors": ("UserError",),
    "mvar.files": ("digest",),
    "mvar.mixers.base": ("Mixer", "inter_scale_mixers"),
    "mvar.mixers.scale_attention": ("ScaleAttention",),
    "mvar.presets": ("PRESETS", "imagenet", "model_size", "resize"),
    "mvar.probes.attention_mass": ("AttentionStats", "uniform_entropy", "uniform_share"),
    "mvar.probes.contract": ("Probe", "Shown"),
    "mvar.probes.knockout": ("Effect", "matrix_of"),
    "mvar.probes.knockout_kept": ("Knockout",),
    "mvar.probes.probe_kept": ("Probed",),
    "mvar.probes.subject": ("Subject",),
    "mvar.registries": ("register",),
    "mvar.runs": ("columns",),
    "mvar.runs.columns": ("Column",),
    "mvar.runs.executors.contract": ("Executor", "Summary"),
    "mvar.runs.executors.local": ("LocalExecutor",),
    "mvar.runs.experiment": ("Cell", "Experiment", "paper_rows"),
    "mvar.runs.wiring": (
        "Stages",
        "kept_knockout",
        "kept_knockouts",
        "kept_probes",
        "run_attention",
    ),
    "mvar.runs.states": ("DONE",),
    "mvar.runs.store": ("RunDirectory", "Store", "one_line"),
    "mvar.scales": ("PATCH_SIDES", "ScaleSchedule"),
}
__getattr__, __dir__, __all__ = lazily("mvar", _HOMES, {"LocalExecutor": "Local"})
