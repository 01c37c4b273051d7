"""The memory of states: one place for every scale and batch, as large as the contract says."""

import pytest
import torch

from mvar.config import ModelConfig, RuntimeConfig
from mvar.mixers.base import Chosen
from mvar.mixers.room import ALIGNMENT, Room, tensors_in
from mvar.registries import MIXERS
from mvar.scales import ScaleSchedule

CONFIG = ModelConfig(width=16, depth=1, num_heads=2, mamba={"d_state": 8, "headdim": 8})
SCHEDULE = ScaleSchedule((1, 2, 3, 4))


def built(text, dtype=torch.float32):
    torch.manual_seed(0)
    return Chosen.of(CONFIG, text).build(CONFIG, RuntimeConfig()).to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("text", [*sorted(MIXERS.names()), "mamba:scan_order=both", "markov:3"])
def test_states_are_kept_in_place_for_every_mixer(text, dtype):
    """To the bit, of the same strides, at the same addresses for other images, in the bytes of the contract."""
    mixer, size = built(text, dtype), 3
    said = size * mixer.state_bytes(CONFIG, mixer.settings, SCHEDULE, dtype.itemsize)
    room, first, places = Room(said), mixer.prepared(size, SCHEDULE, dtype, torch.device("cpu")), []
    for batch in range(2):
        states, plain = [first], None
        for span in SCHEDULE.steps():
            x = torch.randn(size, span.length, CONFIG.width, generator=torch.Generator().manual_seed(batch)).to(dtype)
            y, left = mixer(x, span, states[-1])
            expected, plain = mixer(x, span, plain)
            assert torch.equal(y, expected)
            states.append(room.keep(left, states[-1]))
            found = list(tensors_in(states[-1]))
            for kept, own in zip(found, tensors_in(plain), strict=True):
                known = slice(0, span.stop) if first is not None else slice(None)
                assert torch.equal(kept[:, :, known], own[:, :, known]) and kept.stride() == own.stride()
        places.append([[t.data_ptr() for t in tensors_in(state)] for state in states])
    assert places[0] == places[1]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for s in states for t in tensors_in(s)}
    num_leaves = max(len(list(tensors_in(state))) for state in states)
    assert said <= sum(held.values()) <= said + (0 if first is not None else ALIGNMENT * num_leaves)


def test_what_is_kept_may_be_of_what_was_kept():
    """A state that shifts its parts, one that grows beyond what was said, one that stays as it is."""
    room = Room(8)
    first = room.keep((torch.arange(4.0), torch.arange(100.0, 140.0), None, {"x": [torch.tensor([7])]}))
    second = room.keep((first[1], first[0], 5, first[3]), first)
    assert torch.equal(second[0], torch.arange(100.0, 140.0)) and torch.equal(second[1], torch.arange(4.0))
    assert second[2] == 5 and second[3]["x"][0].tolist() == [7]
    assert room.keep(second, second)[0].data_ptr() == second[0].data_ptr()
    grown = room.keep((torch.cat((second[0], second[0])), second[1]), second)
    assert grown[0].tolist() == [*range(100, 140)] * 2 and grown[1].tolist() == [0, 1, 2, 3]
    assert room.keep(None) is None
