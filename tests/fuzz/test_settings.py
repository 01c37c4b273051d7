"""`--set`, patterns, lists, seeds and budgets of any text: a config, or one line, in bounded time and memory."""

import string
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from mvar.cli import parse
from mvar.commands.checkpoint import CheckpointFiles
from mvar.commands.request import with_budget_value
from mvar.config import RunConfig, override
from mvar.config.parsing import parse_overrides
from mvar.cost import num_params
from mvar.errors import UserError
from mvar.pattern import format_pattern, parse_pattern, replace_layers
from mvar.runs.display import duration
from mvar.runs.plan import run_flops

SECONDS, MEGABYTES = 5.0, 32


def tried(act: Callable[[], Any]) -> Any:
    """What it gives; None for a refusal, which is one line of bounded length."""
    tracemalloc.start()
    began = time.perf_counter()
    try:
        return act()
    except UserError as error:
        assert str(error) and len(str(error)) < 4000 and "\n" not in str(error)
        return None
    finally:
        assert tracemalloc.get_traced_memory()[1] < MEGABYTES << 20
        assert time.perf_counter() - began < SECONDS
        tracemalloc.stop()


def fields_of(kind: type[BaseModel], where: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields_of(inner, f"{where}{name}.")
        else:
            yield f"{where}{name}"


FIELDS = [*fields_of(RunConfig), "model.replace", "model.replacement", "train.accumulate", "cfg_scale"]
NUMBERS = st.sampled_from(
    ["0", "-1", "1e999", "nan", "NaN", "Infinity", "-Infinity", "1e300", "9" * 18, "9" * 40, "0x1"]
)
PARTS = st.sampled_from(["1", "2", ",", ", ", "[", "]", "(", ")", "{", "}", '"', ":", "-", " ", "*", "+", "global"])
TEXTS = (
    NUMBERS
    | st.lists(PARTS, max_size=8).map("".join)
    | st.text(max_size=8)
    | st.sampled_from(["[" * 3000, "[" * 900 + "]" * 900, '{"a":' * 3000, "1," * 3000, "none", "true", "\0", "\ud800"])
    | st.integers().map(str)
    | st.floats().map(str)
)
SETTINGS = st.lists(st.tuples(st.sampled_from(FIELDS) | st.text(max_size=5), TEXTS), min_size=1, max_size=3)


def check_settings(given_settings: list[tuple[str, str]]) -> None:
    def act() -> RunConfig:
        return override(RunConfig(), parse_overrides(f"{name}={value}" for name, value in given_settings))

    config = tried(act)
    if config is not None:  # what is accepted is a config that can be stored, and planned
        assert RunConfig.model_validate_json(config.model_dump_json()) == config
        assert config.run_id and config.evaluation_id
        if config.model.depth < 1000 and config.token_space.schedule.num_scales < 100:
            assert num_params(config.model, config.token_space) > 0
            duration(run_flops(config))


@settings(max_examples=120)
@given(SETTINGS)
def test_settings(given_settings):
    check_settings(given_settings)


@pytest.mark.slow
@settings(max_examples=30_000)
@given(SETTINGS)
def test_many_settings(given_settings):
    check_settings(given_settings)


@settings(max_examples=100)
@given(st.sampled_from(FIELDS), TEXTS | st.recursive(st.none() | st.integers(), lambda v: st.lists(v, max_size=2)))
def test_values_of_any_type(name, value):
    """From Python values need not be texts."""
    tried(lambda: override(RunConfig(), {name: value}))


LAYERS = st.lists(
    st.sampled_from(
        ["global", "intra", "mamba", "+", "*", "2", "8", "10", "99999999", " ", "first:", "last:", "every:", ","]
    )
    | st.text(string.printable, max_size=2),
    max_size=8,
).map("".join)


@settings(max_examples=120)
@given(LAYERS, st.integers(1, 12))
def test_patterns(text, depth):
    layers = tried(lambda: parse_pattern(text, depth))
    if layers is not None:
        assert len(layers) == depth and parse_pattern(format_pattern(layers), depth) == layers


@settings(max_examples=120)
@given(LAYERS, LAYERS, st.integers(1, 12))
def test_replacements(rule, replacement, depth):
    pattern = tried(lambda: replace_layers("global", rule, replacement, depth))
    if pattern is not None:
        assert len(parse_pattern(pattern, depth)) == depth


@settings(max_examples=15)  # the parser takes its time
@given(TEXTS, TEXTS, TEXTS)
def test_words_of_the_command_line(seeds, budget, sides):
    words = ["run", "mixers", "--preset", "smoke", f"--seeds={seeds}"]
    found = tried(lambda: parse(words).requests())
    if found is not None:
        assert 1 <= len(found[0].seeds) <= 1000
    words = tried(lambda: with_budget_value(["run", f"--budget={budget}"]))
    assert words is None or float(budget) > 0 or budget == "baseline"
    found = tried(CheckpointFiles(patch_sides=sides).sides)
    assert found is None or all(isinstance(side, int) for side in found)
