"""What can be chosen by name, kind by kind: every registry is here, and a new thing of ours is one line. Text only.

A user's own class gets its name by `register`, in a file that is loaded as a plug-in (`mvar.plugins`).
"""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, get_origin

from mvar.errors import UserError, one_of
from mvar.registry import Registry, loaded

C = TypeVar("C", bound=type)

MIXERS: Registry[Any] = Registry(
    "mixer",
    {
        "global": "mvar.mixers.global_attention:GlobalAttention",
        "intra": "mvar.mixers.intra_attention:IntraScaleAttention",
        "mamba": "mvar.mixers.mamba:Mamba2",
        "markov": "mvar.mixers.markov:MarkovAttention",
        "window": "mvar.mixers.window:WindowAttention",
        "linear": "mvar.mixers.linear:LinearAttention",
        "gla": "mvar.mixers.gla:GatedLinearAttention",
        "gdn": "mvar.mixers.gdn:GatedDeltaNet",
        "conv": "mvar.mixers.conv:ScaleConv",
    },
    without_settings=("global", "intra", "linear"),
)
SOURCES: Registry[Any] = Registry(
    "data.name",
    {
        "digits": "mvar.data.sources.digits:Digits",
        "imagefolder": "mvar.data.sources.imagefolder:ImageFolder",
        "fashion": "mvar.data.sources.fashion:Fashion",
        "ilsvrc": "mvar.data.sources.ilsvrc:Ilsvrc",
        "npy": "mvar.data.sources.npy:Npy",
        "parquet": "mvar.data.sources.parquet:Parquet",
        "tar": "mvar.data.sources.tar:Tar",
        "torchvision": "mvar.data.sources.torchvision:Torchvision",
    },
)
EXTRACTORS: Registry[Any] = Registry(
    "evaluation.extractor",
    {
        "classifier": "mvar.evaluation.extractors.classifier:ClassifierKind",
        "inception": "mvar.evaluation.extractors.inception:InceptionKind",
        "mobilenet": "mvar.evaluation.extractors.mobilenet:MobileNetKind",
    },
    without_settings=("classifier", "inception"),
)
METRICS: Registry[Any] = Registry(
    "metric",
    {
        "fid": "mvar.evaluation.metrics.fid:Fid",
        "is": "mvar.evaluation.metrics.inception_score:InceptionScore",
        "kid": "mvar.evaluation.metrics.kid:Kid",
        "kid_error": "mvar.evaluation.metrics.kid_error:KidError",
        "precision_recall": "mvar.evaluation.metrics.precision_recall:PrecisionRecall",
        "nll": "mvar.evaluation.metrics.likelihood:HeldoutLikelihood",
        "copies": "mvar.evaluation.metrics.copies:Copies",
        "label_accuracy": "mvar.evaluation.metrics.label_accuracy:LabelAccuracy",
        "density_coverage": "mvar.evaluation.metrics.density_coverage:DensityCoverage",
        "fd_infinity": "mvar.evaluation.metrics.fd_infinity:FdInfinity",
        "sfid": "mvar.evaluation.metrics.sfid:Sfid",
    },
)
GUIDANCE: Registry[Any] = Registry(
    "sample.guidance",
    {
        "ramp": "mvar.sampling.guidance.ramp:Ramp",
        "constant": "mvar.sampling.guidance.constant:Constant",
        "interval": "mvar.sampling.guidance.interval:Interval",
    },
)
FILTERS: Registry[Any] = Registry(
    "sample.filter",
    {
        "top": "mvar.sampling.filters.top:Top",
        "min_p": "mvar.sampling.filters.min_p:MinP",
    },
    without_settings=("top",),
)
PROBES: Registry[Any] = Registry(
    "probe",
    {
        "prefix": "mvar.probes.prefix:Prefix",
        "corruption": "mvar.probes.corruption:Corruption",
        "reach": "mvar.probes.dependence:Reach",
        "state": "mvar.probes.kept_state:State",
    },
)
# A profile's `executor` is one of these names.
EXECUTORS: Registry[Any] = Registry(
    "executor",
    {
        "slurm": "mvar.cluster.executor:Slurm",
        "local": "mvar.runs.executors.local:Local",
        "inprocess": "mvar.runs.executors.inprocess:InProcess",
    },
)

KINDS: dict[str, Registry[Any]] = {
    "mixer": MIXERS,
    "source": SOURCES,
    "extractor": EXTRACTORS,
    "metric": METRICS,
    "guidance": GUIDANCE,
    "filter": FILTERS,
    "executor": EXECUTORS,
    "probe": PROBES,
}
FIELDS = {kind.field: kind for kind in KINDS.values()}
# What a class of one's own is a subclass of; `mvar` has it under the same name.
CONTRACTS = {
    "mixer": "mvar.mixers.base:Mixer",
    "source": "mvar.data.sources.contract:DataSource",
    "extractor": "mvar.evaluation.extractors.contract:ExtractorKind",
    "metric": "mvar.evaluation.metrics.contract:Metric",
    "guidance": "mvar.sampling.guidance.contract:Guidance",
    "filter": "mvar.sampling.filters.contract:Filter",
    "executor": "mvar.runs.executors.contract:Executor",
    "probe": "mvar.probes.contract:Probe",
}
# What a plug-in sets in place of registering it.
SET = {
    "experiment": "EXPERIMENT = mvar.experiment(...)",
    "analysis": "ANALYSIS = mvar.analysis.Analysis(...)",
}
SET_CONTRACTS = {"EXPERIMENT": "mvar.runs.experiment:Experiment", "ANALYSIS": "mvar.analysis.contract:Analysis"}


def register(kind: str, name: str) -> Callable[[C], C]:
    """Give a class of one's own a name, by which configs, pattern texts and profiles then know it.

    Examples:
        >>> import mvar
        >>> @mvar.register("guidance", "half")
        ... class Half(mvar.Guidance):
        ...     def weight(self, scale, num_scales, cfg_scale, settings):
        ...         return cfg_scale / 2

    Args:
        kind: one of `KINDS`.
        name: up to 32 small letters, digits and `_`, a letter first. Part of ids, where what it names is used.

    Returns:
        A decorator of the class, which stays as it is.

    Raises:
        UserError: no such kind, no such name, or one that another class has; says whose. A class that lacks a method or
            an attribute of what its kind is; names them.
    """
    if kind in SET:
        raise UserError(f"kind: {kind!r} is not registered, its file sets it; allowed: {SET[kind]} (examples/sweep.py)")
    if kind not in KINDS:
        raise one_of("kind", kind, KINDS)

    def named(own: C) -> C:
        _check_class(kind, name, own)
        KINDS[kind].register(name, own)
        return own

    return named


def _check_class(kind: str, name: str, own: Any) -> None:
    """Refuse, before anything runs, what could not run."""
    contract: type[Any] = loaded(CONTRACTS[kind])
    what, base = f"{KINDS[kind].field} {name!r:.60}", f"mvar.{contract.__name__}"
    if not (isinstance(own, type) and issubclass(own, contract)):
        raise UserError(f"{what}: is no subclass of {base}; allowed: one")
    methods = sorted(getattr(own, "__abstractmethods__", ()))
    said = {n for c in contract.__mro__ for n, a in vars(c).get("__annotations__", {}).items() if _is_of_class(a)}
    if lacks := [*methods, *sorted(n for n in said if not hasattr(own, n))]:
        raise UserError(f"{what}: lacks {', '.join(lacks)}; allowed: a class that has all that {base} wants")
    if check := getattr(own, "check_class", None):
        check(name)


def _is_of_class(annotation: Any) -> bool:
    return get_origin(annotation) is ClassVar
