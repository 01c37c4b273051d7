"""What decides an id: one mechanism for runs, tokenizers, tokens, extractors, floors and evaluations.

The fields of the first version (`FIRST`) are hashed in full, so that ids that exist never move. A field that was added
later is hashed only where it differs from its *pinned* default: the default that it had when it was added. A changed
default would give old ids to new settings, so a golden file holds the pins, and a section whose default or meaning
changes gets a field `version: int = 2`, pinned at 1, which is part of the identity from then on.

Everything here works on JSON values, so that a document of any version is read the same way.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from mvar.config.extensible import Config
from mvar.files import digest
from mvar.pattern import mixers_of

_OPTIM = (
    "steps batch_size accumulate base_lr beta1 beta2 weight_decay weight_decay_end schedule warmup_fraction "
    "warmup_start end_ratio clip_norm precision"
)
# Section -> its fields in the first version. Frozen: a new field is never added here.
FIRST: dict[str, frozenset[str]] = {
    name: frozenset(fields.split())
    for name, fields in {
        "RunConfig": "schema_version seed data tokenizer model train sample evaluation runtime",
        "DataConfig": "name root heldout_root image_size channels num_classes heldout_fraction split_seed "
        "resize_factor hflip",
        "OptimConfig": _OPTIM,
        "TokenizerConfig": "patch_sides vocab_size code_channels width channel_multipliers num_res_blocks attention "
        "mid_attention share_phi phi_ratio beta checkpoint shift_px seed train",
        "MambaConfig": "d_state d_conv expand headdim",
        "ModelConfig": "depth width num_heads pattern mlp_ratio attn_l2_norm shared_adaln drop_path init init_adaln "
        "init_adaln_gamma init_head mamba",
        "TrainConfig": f"{_OPTIM} label_dropout label_smoothing crops",
        "SampleConfig": "cfg_scale top_k top_p more_smooth seed",
        "EvaluationConfig": "num_images extractor inception_weights classifier_steps classifier_seed kid_subset_size "
        "prc_neighborhood",
        "RuntimeConfig": "device threads num_workers log_every checkpoint_every keep_checkpoints sample_batch "
        "tensorboard attention_backend scan_backend",
    }.items()
}
# (section, field) -> the default that a later field had when it was added, where the section's default is another now.
REPINNED: dict[tuple[str, str], Any] = {}

# Later fields that documents of the first version hold all the same.
WRITTEN = frozenset({("TrainConfig", "init_from"), ("SampleConfig", "candidates")})

EXECUTION = frozenset({"sample", "evaluation", "runtime"})  # sections that change no trained weights
EXTRACTOR = frozenset({"extractor", "classifier_steps", "classifier_seed", "inception_weights"})  # of the evaluation
REFERENCE = frozenset({"reference", "reference_resize_factor"})  # of the evaluation: what its samples are compared with
# Fields that hold paths, as dotted names: compared lexically, `$VARIABLES` as text.
PATHS = frozenset(
    {
        *("data.root", "data.heldout_root", "tokenizer.checkpoint", "train.init_from"),
        *("evaluation.inception_weights", "evaluation.reference"),
    }
)
# How a batch was split was part of the first version's ids; it changes no result.
SPLITS = frozenset({"train.accumulate", "tokenizer.train.accumulate"})
MIXER_SETTINGS = {"mamba": "mamba"}  # field of `model` -> the mixer whose settings it holds


def section_name(kind: type[BaseModel]) -> str:
    """The name of a section in `FIRST`: its class's, or that of the class that it extends."""
    return next((base.__name__ for base in kind.__mro__ if base.__name__ in FIRST), kind.__name__)


def subsection(kind: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The section that a field holds; None for a plain value."""
    annotation = kind.model_fields[field].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def pinned(kind: type[BaseModel], field: str) -> Any:
    """The default that a field had when it was added, as a JSON value."""
    key = (section_name(kind), field)
    if key in REPINNED:
        return REPINNED[key]
    default = kind.model_fields[field].get_default(call_default_factory=True)
    return default.model_dump(mode="json") if isinstance(default, BaseModel) else _plain(default)


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value


def hashed(kind: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a section's JSON values those that its identity rests on.

    Args:
        kind: the section.
        values: its values; fields that are missing have their pinned default, unknown ones count as they are.
    """
    first = FIRST.get(section_name(kind), frozenset())
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kind.model_fields:
            kept[name] = value
        elif name in first:
            inner = subsection(kind, name)
            kept[name] = hashed(inner, value) if inner and isinstance(value, Mapping) else value
        elif value != pinned(kind, name):
            kept[name] = value
    return kept


def of_section(section: Config) -> dict[str, Any]:
    """What a section's identity rests on, as JSON values."""
    return hashed(type(section), section.plain())


def as_document(section: Config) -> dict[str, Any]:
    """A section as it is stored: all values, but later fields only where they differ from their pinned default.

    So a file says what it was made with, its bytes do not change with every field that is added, and a version that
    does not know a field reads what does not use it.
    """
    return _documented(type(section), section.plain())


def _documented(kind: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    section = section_name(kind)
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kind.model_fields:  # settings of what is used by that name
            kept[name] = value
            continue
        inner = subsection(kind, name)
        if inner and isinstance(value, Mapping):
            value = _documented(inner, value)
        if name in FIRST.get(section, ()) or (section, name) in WRITTEN or value != pinned(kind, name):
            kept[name] = value
    return kept


def canonical(kind: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a whole config, by section, without what is only another spelling of the same.

    Paths are normalised as text, settings of mixers that no layer holds are left out, and so is how a batch is split.
    """
    found = hashed(kind, values)
    for dotted in PATHS:
        section, name = dotted.split(".")
        if isinstance(path := found.get(section, {}).get(name), str):
            found[section] = {**found[section], name: normal_path(path)}
    for dotted in SPLITS:
        *parents, name = dotted.split(".")
        found = _without(found, parents, name)
    model = dict(found.get("model", {}))
    used = mixers_of(str(model.get("pattern", "")))
    for field, mixer in MIXER_SETTINGS.items():
        if mixer not in used:
            model.pop(field, None)
    return found | {"model": model}


def normal_path(path: str) -> str:
    """A path without `.`, `..`, doubled and final slashes, as text: links are not followed, variables not expanded.

    `..` takes back a folder's name alone: what is above `$NAME` or `~` is not known.
    """
    kept: list[str] = []
    for part in path.split("/"):
        if part == ".." and kept and kept[-1] != ".." and "$" not in kept[-1] and not kept[-1].startswith("~"):
            kept.pop()
        elif part == ".." and not kept and path.startswith("/"):
            continue  # above the root is the root
        elif part not in ("", "."):
            kept.append(part)
    return ("/" if path.startswith("/") else "") + "/".join(kept) or (path and ".")


def _without(values: dict[str, Any], parents: list[str], name: str) -> dict[str, Any]:
    if not parents:
        return {key: value for key, value in values.items() if key != name}
    inner = values.get(parents[0])
    return values | {parents[0]: _without(inner, parents[1:], name)} if isinstance(inner, dict) else values


def science(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a config's identity or canonical values those that decide the trained weights."""
    return {name: value for name, value in values.items() if name not in EXECUTION}


def run_key(canonical_values: Mapping[str, Any]) -> str:
    """One key for all spellings of one run."""
    return digest(science(canonical_values), 16)


def evaluation_key(canonical_values: Mapping[str, Any]) -> str:
    """One key for all spellings of one evaluation of a run."""
    return digest({name: canonical_values[name] for name in ("sample", "evaluation")}, 16)
