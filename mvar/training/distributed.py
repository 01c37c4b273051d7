"""Device and processes of a training, through Lightning Fabric.

Fabric finds rank, world size and address under torchrun and SLURM, opens the process group, and wraps the module in
DDP. Precision is left to the loop (torch's own autocast and GradScaler): Fabric's half-precision plugins also round
the floating-point inputs, and an image that is its own target must not be rounded.
"""

import os
from typing import TYPE_CHECKING

import torch

from mvar.config import RuntimeConfig
from mvar.errors import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def resolve_device(runtime: RuntimeConfig) -> str:
    """`cpu` or `cuda`, with `auto` resolved; asking for a GPU that is not there is a `UserError`."""
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise UserError("runtime.device: 'cuda' is not available on this machine; allowed here: cpu, auto")
    if runtime.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return runtime.device


def process_grid() -> tuple[int, int]:
    """Processes a node and nodes that the launcher (torchrun, srun) announced; (1, 1) without one."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        local = int(env["LOCAL_WORLD_SIZE"])
        return local, int(env["WORLD_SIZE"]) // local
    # Only inside srun: in an interactive allocation SLURM_NTASKS is set too, but this process is alone.
    if int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in env and "SLURM_STEP_ID" in env:
        nodes = int(env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", 1)))
        tasks = int(env.get("SLURM_STEP_NUM_TASKS", env["SLURM_NTASKS"]))
        return tasks // nodes, nodes
    return 1, 1


def open_fabric(runtime: RuntimeConfig) -> "Fabric":
    """A launched Fabric: one device, or DDP over the processes that the launcher started."""
    from lightning_fabric import Fabric  # here: it imports slowly, and only training needs it
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

    device = resolve_device(runtime)
    local, nodes = process_grid()
    if local * nodes == 1:
        # named, so that a surrounding SLURM allocation is not taken for a multi-process job
        fabric = Fabric(accelerator=device, devices=1, plugins=[LightningEnvironment()])
    else:
        # the objectives use every parameter in every step and keep their buffers equal themselves
        strategy = DDPStrategy(broadcast_buffers=False)
        fabric = Fabric(accelerator=device, devices=local, num_nodes=nodes, strategy=strategy)
    fabric.launch()
    return fabric
