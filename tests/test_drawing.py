"""Steps of sampling: recorded and replayed, numbers for all of them at once, and half precision."""

from functools import partial

import pytest
import torch
from probed_models import PATTERNS, SPACE, model_of, quantizer

from benchmarks.gpu.agreement import PLAIN, SDS, agreement
from benchmarks.gpu.settings import HALF
from mvar.config import RunConfig, RuntimeConfig, SampleConfig, TokenizerConfig, override
from mvar.errors import UserError
from mvar.mixers.room import tensors_in
from mvar.runs.gallery import draw_set
from mvar.sampling import generate
from mvar.sampling.draws import ImageStreams
from mvar.sampling.graphs import Graphs, record_cuda
from mvar.tokenizer.model import Tokenizer

CONFIG = SampleConfig(cfg_scale=1.5, top_p=0.9)


def addresses(drawing):
    """Of everything that a step reads or writes."""
    own = [value for value in vars(drawing).values() if isinstance(value, torch.Tensor)]
    states = [t for scale in sorted(drawing._states) for t in tensors_in(drawing._states[scale])]
    return [t.data_ptr() for t in (*own, *states)]


class Recorder:
    """In place of CUDA graphs: a replay runs the same step again, and finds everything where it was."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, steps):
        self.recorded += 1
        return [partial(self.replay, step) for step in steps]

    def replay(self, step):
        drawing = step.func.__self__
        before = addresses(drawing)
        step()
        assert addresses(drawing) == before
        self.replayed += 1


@pytest.mark.parametrize("pattern", PATTERNS)
def test_replays_draw_other_images_at_the_same_addresses(pattern):
    """Batch after batch what is drawn without them, to the bit; results of before stay as they are."""
    model, codes, recorder, found, expected = model_of(pattern), quantizer(), Recorder(), [], []
    graphs = Graphs(recorder)
    for batch in range(4):
        labels, seeds = torch.tensor([batch % 3, 2]), [(batch, 0), (batch, 1)]
        found.append(generate(model, codes, labels, seeds, CONFIG, graphs=graphs))
        expected.append(generate(model, codes, labels, seeds, CONFIG))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.latent, other.latent)
    assert len({tuple(one.tokens.flatten().tolist()) for one in found}) == 4
    assert (recorder.recorded, recorder.replayed) == (1, 3 * len(SPACE.patch_sides))


def test_what_is_drawn_once_is_not_recorded():
    """A last batch that is smaller, other settings; nor where steps need the host."""
    model, codes, recorder = model_of("global").float(), quantizer().float(), Recorder()
    graphs = Graphs(recorder)
    draw = partial(generate, model, codes, graphs=graphs)
    two = torch.tensor([0, 1])
    for count in (2, 1):
        draw(two[:count], range(count), CONFIG)
    for fields in ({"more_smooth": True}, {"top_k": 3}, {"precision": "bf16"}):
        draw(two, [0, 1], override(CONFIG, fields))
    for _ in range(2):
        draw(two, [0, 1], CONFIG, prefix=torch.zeros(2, 1, dtype=torch.long))
        draw(two, [0, 1], CONFIG, on_logits=lambda *_: None)
    assert not recorder.recorded
    latents = []
    for _ in range(3):  # told of each scale, as it was then
        draw(two, [0, 1], CONFIG, on_latent=lambda scale, latent: latents.append((scale, latent)))
    assert recorder.recorded == 1
    assert all(torch.equal(latents[i][1], latents[i + 3][1]) and latents[i][0] == i % 3 for i in range(6))


def test_sets_of_images_are_drawn_by_replays_where_these_are_asked_for(monkeypatch):
    """`mvar sample` and `mvar.load(...).sample`: the same images."""
    sizes = {"vocab_size": SPACE.vocab_size, "code_channels": 4, "width": 8, "channel_multipliers": (1, 2)}
    tokenizer = Tokenizer(TokenizerConfig(patch_sides=SPACE.patch_sides, **sizes), 1).double().eval()
    config = override(RunConfig(), {"runtime.sample_batch": 2, "runtime.cuda_graphs": True})
    draw, recorder = partial(draw_set, model_of("global"), tokenizer, [0, 1], 3, config), Recorder()
    expected = draw()
    monkeypatch.setattr(Graphs, "of", lambda runtime, device: Graphs(recorder) if runtime.cuda_graphs else None)
    assert (draw() == expected).all()
    assert (recorder.recorded, recorder.replayed) == (1, 2 * len(SPACE.patch_sides))


def test_graphs_are_for_gpus_that_are_asked_for_them():
    assert Graphs.of(RuntimeConfig(cuda_graphs=True), "cpu") is None
    assert Graphs.of(RuntimeConfig(), "cuda") is None
    assert Graphs.of(RuntimeConfig(cuda_graphs=True), "cuda") is not None


def test_a_step_that_cannot_be_recorded_is_one_line(monkeypatch):
    class Capture:
        def __init__(self, graph, pool, capture_error_mode):
            assert capture_error_mode == "thread_local"  # by default a call of another thread ends the recording

        def __enter__(self):
            pass

        def __exit__(self, *error):
            pass

    def waits():
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", type("Graph", (), {"replay": lambda self: None}))
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    assert len(record_cuda([lambda: None] * 3)) == 3
    with pytest.raises(UserError, match=r"^runtime.cuda_graphs: a step .*capturing\); allowed here: false$"):
        record_cuda([waits])


@pytest.mark.parametrize("counts", [(1, 4, 9), (14,), (5, 9)])
def test_numbers_of_all_scales_at_once_are_those_of_scale_after_scale(counts):
    seeds = [3, (7, 1), (7, 2, 5)]
    whole, streams = ImageStreams(seeds).uniform(14), ImageStreams(seeds)
    assert torch.equal(whole, torch.cat([streams.uniform(count) for count in counts], 1))
    assert whole.dtype == torch.float64 and (whole >= 0).all() and (whole < 1).all()


def test_half_precision_moves_as_many_tokens_as_its_logits_say():
    """Nearly all tokens stay; of fp16, which has three bits more, more than of bf16."""
    model, codes, images = model_of("intra+mamba").float(), quantizer().float(), 128
    labels, seeds = torch.arange(images) % 3, range(images)
    whole = generate(model, codes, labels, seeds, PLAIN).tokens
    assert torch.equal(generate(model, codes, labels, seeds, override(PLAIN, {"precision": "fp32"})).tokens, whole)
    found = {precision: agreement(model, codes, labels, seeds, precision) for precision in HALF}
    for one in found.values():
        assert one.tokens == whole.numel() and one.holds and 0 < one.expected < 0.1 * one.tokens
    assert found["bf16"].expected > 5 and 4 < found["bf16"].expected / found["fp16"].expected < 16
    assert SDS * found["bf16"].sd + 1 < found["bf16"].expected  # none, or twice as many, would not hold


def test_logits_are_in_fp32_in_half_precision_too():
    model, codes, seen = model_of("global").float(), quantizer().float(), set()
    for precision in HALF:
        sample = override(PLAIN, {"precision": precision})
        generate(model, codes, torch.tensor([0]), [0], sample, on_logits=lambda scale, logits: seen.add(logits.dtype))
    assert seen == {torch.float32}


def test_precision_is_a_part_of_the_evaluation_that_fp32_leaves_out():
    plain = RunConfig()
    half = override(plain, {"sample.precision": "bf16"})
    assert half.evaluation_id != plain.evaluation_id and half.run_id == plain.run_id
    assert override(plain, {"sample.precision": "fp32"}).evaluation_id == plain.evaluation_id
    assert override(plain, {"runtime.cuda_graphs": True}).evaluation_id == plain.evaluation_id
