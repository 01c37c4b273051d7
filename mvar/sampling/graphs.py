"""Steps of sampling that are recorded once and replayed: on a GPU one CUDA graph a scale, all in one pool of memory.

A graph is launched by one call, where its step launches hundreds of kernels. It reads and writes at the addresses that
it was recorded with, which is what `mvar.sampling.drawing` is made for; nothing else of sampling knows of graphs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from mvar.config import RuntimeConfig, SampleConfig
from mvar.errors import UserError
from mvar.sampling.drawing import Drawing
from mvar.transformer import ScaleTransformer

if TYPE_CHECKING:
    from mvar.tokenizer.quantizer import ResidualQuantizer

Step = Callable[[], None]
Record = Callable[[Sequence[Step]], list[Step]]


class Graphs:
    """Keeps the batch that was drawn last: the second one like it is recorded, and replayed from then on.

    Like it: of the same model, tokenizer, size and settings. So a last batch that is smaller costs no recording. One
    such set of graphs is kept; weights may not move while it is.

    Args:
        record: what turns steps, which run one after another, into their replays.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._drawing: Drawing | None = None
        self._replays: list[Step] | None = None

    @classmethod
    def of(cls, runtime: RuntimeConfig, device: str | torch.device) -> "Graphs | None":
        """CUDA graphs, where they are asked for and there is a GPU."""
        return cls(record_cuda) if runtime.cuda_graphs and torch.device(device).type == "cuda" else None

    def drawing(
        self, model: ScaleTransformer, quantizer: "ResidualQuantizer", batch: int, config: SampleConfig
    ) -> tuple[Drawing, list[Step] | None]:
        """What draws such a batch, and the replays of its steps; None for those where they are to be run themselves."""
        kept = self._drawing
        if kept is None or not _draws(kept, model, quantizer, batch, config):
            self._drawing, self._replays = Drawing(model, quantizer, batch, config), None
            return self._drawing, None
        if self._replays is None:  # all that a first run does once (tables, choice of kernels) has been done
            with kept.casting():
                self._replays = self._record([partial(kept.step, k) for k in range(model.schedule.num_scales)])
        return kept, self._replays


def _draws(
    kept: Drawing, model: ScaleTransformer, quantizer: "ResidualQuantizer", batch: int, config: SampleConfig
) -> bool:
    same = kept.model is model and kept.quantizer is quantizer
    return same and len(kept.tokens) == batch and kept.config == config


def record_cuda(steps: Sequence[Step]) -> list[Step]:
    """A CUDA graph of each step; they share memory, so they are replayed in this order, each when the last is done.

    Raises:
        UserError: a step that cannot be recorded, because it waits for the device.
    """
    pool, graphs = torch.cuda.graph_pool_handle(), []
    for step in steps:
        graph = torch.cuda.CUDAGraph()
        try:
            # what other threads ask of the device meanwhile, NCCL's watchdog say, does not end a recording
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                step()
        except RuntimeError as error:
            said = str(error).splitlines()[0]
            raise UserError(f"runtime.cuda_graphs: a step cannot be recorded ({said}); allowed here: false") from error
        graphs.append(graph)
    return [graph.replay for graph in graphs]
