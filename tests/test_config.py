"""The configuration tree: identity, overrides, errors."""

import json
from collections.abc import Iterator

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mvar.config import RunConfig, from_dict, override
from mvar.config.identity import subsection
from mvar.errors import UserError
from mvar.presets import PRESETS


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_json_round_trip_keeps_identity(preset):
    config = PRESETS[preset]
    again = from_dict(RunConfig, json.loads(config.model_dump_json()))
    assert again == config
    assert again.run_id == config.run_id


@pytest.mark.parametrize(
    "change",
    [{"runtime.device": "cpu"}, {"runtime.log_every": 3}, {"runtime.scan_backend": "torch"}, {"sample.seed": 7}],
)
def test_run_id_ignores_what_does_not_change_the_weights(change):
    assert override(RunConfig(), change).run_id == RunConfig().run_id


@pytest.mark.parametrize("change", [{"seed": 1}, {"model.depth": 4}, {"train.steps": 7}, {"tokenizer.vocab_size": 64}])
def test_run_id_follows_the_science(change):
    assert override(RunConfig(), change).run_id != RunConfig().run_id


def test_stage_ids_are_shared_where_the_stage_is():
    base, other = RunConfig(), override(RunConfig(), {"model.pattern": "intra", "seed": 3, "train.steps": 9})
    assert (base.tokenizer_id, base.tokens_id, base.extractor_id) == (
        other.tokenizer_id,
        other.tokens_id,
        other.extractor_id,
    )
    assert override(base, {"tokenizer.vocab_size": 64}).tokens_id != base.tokens_id
    assert override(base, {"train.crops": 2}).tokens_id != base.tokens_id
    assert override(base, {"sample.cfg_scale": 2}).evaluation_id != base.evaluation_id
    assert override(base, {"runtime.sample_batch": 7}).evaluation_id == base.evaluation_id


def test_two_spellings_of_one_model_are_one_run():
    replaced = override(RunConfig(), {"model.replace": "first:2"})
    assert replaced.model.pattern == "2*intra+mamba 6*global"
    assert replaced == override(RunConfig(), {"model.pattern": "1*intra+mamba 1*intra+mamba 6*global"})
    assert override(RunConfig(), {"model.replace": "all"}) == override(RunConfig(), {"model.pattern": "intra+mamba"})
    for depth in ("8.0", 8.0, "8", 8):  # one whole number, however it came: its rule counts
        assert override(RunConfig(), {"model.depth": depth, "model.replace": "first:2"}) == replaced
    with pytest.raises(UserError, match="10000"):
        override(RunConfig(), {"model.depth": "10001.0"})


def fields_of(kind: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Every field of a section and of the sections in it that holds a value."""
    for name, info in kind.model_fields.items():
        inner = subsection(kind, name)
        yield from fields_of(inner) if inner else [(f"{kind.__name__}.{name}", info)]


def test_every_field_says_what_it_is():
    silent = {name for name, info in fields_of(RunConfig) if not (info.description or "").endswith(".")}
    assert not silent
    assert len(dict(fields_of(RunConfig))) > 80


def test_overrides_parse_text():
    config = override(RunConfig(), {"train.base_lr": "0.5", "data.hflip": "true", "tokenizer.patch_sides": "[2,4]"})
    assert (config.train.base_lr, config.data.hflip, config.tokenizer.patch_sides) == (0.5, True, (2, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.depht": 3}, "model.depht: 'depht' is unknown (did you mean 'depth'?)"),
        ({"mdoel.depth": 3}, "mdoel: 'mdoel' is unknown (did you mean 'model'?)"),
        ({"model.depth": "x"}, "model.depth: 'x': Input should be a valid integer"),
        (
            {"model.depth": 0},
            "model.depth: 0: Input should be greater than or equal to 1; allowed: whole number, 1 or more",
        ),
        ({"sample.interval.low": 2}, "low: 2: Input should be less than or equal to 1; allowed: number, 0 to 1"),
        ({"model.pattern": "9*global"}, "names 9 layers; model.depth is 8"),
        ({"model.num_heads": 5}, "model.num_heads: 5 does not divide model.width 64"),
        ({"model.pattern": "mamba", "model.mamba.headdim": 48}, "model.mamba.headdim: 48 does not divide"),
        ({"data.image_size": 16}, "data.image_size: 16 px does not fit the tokenizer"),
        ({"data.name": "imagefolder"}, "data.root: not set"),
        ({"evaluation.num_images": 5}, "evaluation.num_images: 5 is too few; allowed: 10 or more"),
        (
            {"evaluation.num_images": 20, "evaluation.prc_neighborhood": 20},
            "evaluation.num_images: 20 is too few; allowed: 21 or more",
        ),
        ({"runtime.accumulate": 3}, "runtime.accumulate: 3 does not divide train.batch_size 32"),
        ({"runtime.micro_batch": 3}, "runtime.micro_batch: 3 does not divide train.batch_size 32"),
        ({"runtime.micro_batch": 8, "runtime.accumulate": 2}, "runtime.micro_batch: 8 beside runtime.accumulate=2"),
        ({"runtime.checkpoint_activations": "all"}, "runtime.checkpoint_activations: 'all'"),
        ({"train.accumulate": 3}, "runtime.accumulate: 3 does not divide train.batch_size 32"),
        ({"train.clip_norm": "NaN"}, "train.clip_norm"),
        ({"schema_version": 9}, "schema_version: 9"),
    ],
)
def test_mistakes_are_one_line(change, message):
    with pytest.raises(UserError) as error:
        override(RunConfig(), change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
