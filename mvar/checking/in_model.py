"""A mixer as a part of a model: beside every other in one layer, in the model's counts, loaded from weights."""

import re
from collections.abc import Iterator

import torch

from mvar import cost
from mvar.checking.case import SIDES, Case, of_sides
from mvar.config import ModelConfig, RuntimeConfig, TokenSpace
from mvar.pattern import mixer_name
from mvar.registries import MIXERS
from mvar.scales import ScaleSchedule
from mvar.transformer import Block, ScaleTransformer

TOLERANCE = 1e-10


def key(case: Case) -> Iterator[str]:
    """The mixer's name in a block is a name, and that of nothing else there."""
    cls, _ = case.chosen
    name = getattr(cls, "key", None)
    if not isinstance(name, str) or not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
        yield f"key is {name!r}; wanted: the name of the sub-layer in checkpoints, of letters, digits and _"
        return
    block = Block(_sized(case, "global"), "global", 0.1, RuntimeConfig(device="cpu"))
    if name not in block.mixer_names and hasattr(block, name):
        yield f"key is {name!r}, which a layer has already for something else; wanted: another"


def beside_others(case: Case) -> Iterator[str]:
    """In one layer with any other mixer, before or after it, each keeps its own weights."""
    if next(key(case), None):
        return  # said already
    for other in MIXERS.names():
        if other == mixer_name(case.text):
            continue
        for layer in (f"{case.text}+{other}", f"{other}+{case.text}"):
            config = _sized(case, layer)
            model = ScaleTransformer(config, _space(SIDES[1]))
            found, said = sum(p.numel() for p in model.parameters()), cost.num_params(config, model.space)
            if found != said or len(set(next(model.each_block()).mixer_names)) != 2:
                yield f"{layer}: the layer has {found:,} parameters, its parts {said:,}: two names of sub-layers clash"


def whole_model(case: Case) -> Iterator[str]:
    """A model of two such layers: drawn scale by scale as taught, counted, and the same when its weights are loaded."""
    if next(key(case), None):
        return
    space = _space(SIDES[0])
    config = _sized(case, case.text)
    torch.manual_seed(0)
    model = ScaleTransformer(config, space, RuntimeConfig(device="cpu"))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    loaded = ScaleTransformer.empty(config, space, RuntimeConfig(device="cpu"))
    loaded.load_state_dict(model.state_dict())
    model, loaded = model.double().eval(), loaded.double().eval()
    schedule, labels = space.schedule, torch.tensor([0, 2])
    inputs = torch.randn(2, schedule.num_tokens - schedule.lengths[0], space.code_channels, dtype=torch.float64)
    with torch.no_grad():
        whole, _ = model(labels, inputs)
        again, _ = loaded(labels, inputs)
        steps = _drawn(model, labels, inputs, schedule)
    if not torch.equal(whole, again):
        yield (
            "a model that is loaded from its weights gives other logits: something the constructor makes is no "
            "parameter and no saved buffer; wanted: register_buffer(..., persistent=True), or made in forward"
        )
    error = float((steps - whole).abs().max() / whole.abs().max())
    if not error <= TOLERANCE:
        yield f"{of_sides(schedule)}: logits scale by scale differ from the whole image's by {error:.1e} of the largest"


def _drawn(model: ScaleTransformer, labels: torch.Tensor, inputs: torch.Tensor, schedule: ScaleSchedule):
    outputs, state, skip = [], None, schedule.lengths[0]
    for span in schedule.steps():
        logits, state = model(labels, inputs[:, max(span.start - skip, 0) : span.stop - skip], span, state)
        outputs.append(logits)
    return torch.cat(outputs, 1)


def _space(sides: tuple[int, ...]) -> TokenSpace:
    return TokenSpace(sides, vocab_size=11, code_channels=5, num_classes=3)


def _sized(case: Case, layer: str) -> ModelConfig:
    values = case.config.model_dump(mode="json") | {"depth": 2, "pattern": layer}
    return type(case.config).model_validate(values)
