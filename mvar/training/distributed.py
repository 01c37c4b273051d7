"""Device and processes of a training, through Lightning Fabric; the processes of a sampling.

One process, or DDP over the processes that a launcher started: torchrun, or a job of `mvar submit`, which tells its
processes by `joined` who they are. Fabric wraps the module in DDP. Precision is left to the loop (torch's own autocast
and GradScaler): Fabric's half-precision plugins also round the floating-point inputs, and an image that is its own
target must not be rounded.

Training, sampling and extracting features are shared by several processes. Everything around them (stages, metrics) is
the first process's; the others wait at a store, not in a collective that would time out, until they are called.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mvar.config import RuntimeConfig
from mvar.errors import UserError
from mvar.files import write_json

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]  documented there

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # longer than a step of training, or a batch of images and all candidates
MEETING_TIMEOUT_S = 600.0  # processes of one job are started together
POLL_S = 0.1
LEAVE = "leave"


class Team:
    """The processes that make a run together, as one of them sees them."""

    def __init__(self, store: "Store", rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.gathered = False  # whether all are at one training or sampling just now
        self._store, self._number = store, 0

    def call(self, message: Any) -> None:
        """The first process tells all others what to do next."""
        self._store.set(f"call/{self._number}", json.dumps(message))
        self._number += 1

    def hear(self) -> Any:
        """Another process waits for what to do next, however long the first one takes.

        Raises:
            RuntimeError: the first process is gone.
        """
        key = f"call/{self._number}"
        while not self._store.check([key]):
            time.sleep(POLL_S)
        self._number += 1
        return json.loads(self._store.get(key))

    @contextmanager
    def together(self, device: str) -> Iterator[None]:
        """While all processes are at one piece of work: what `open_fabric` opens inside is DDP."""
        import torch.distributed as dist
        from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]  documented there

        if not dist.is_initialized():
            backend = "nccl" if device == "cuda" else "gloo"
            store = PrefixStore("group", self._store)
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.world, timeout=COLLECTIVE_TIMEOUT
            )
        self.gathered = True
        try:
            yield
        finally:
            self.gathered = False

    def part(self) -> None:
        """The first process stays until all others have read their last call: the store is in its memory."""
        self._store.add("parted", 1)
        deadline = time.monotonic() + 30
        while not self.rank and self._store.add("parted", 0) < self.world and time.monotonic() < deadline:
            time.sleep(POLL_S)


class Group:
    """The processes that are at one piece of work just now. One alone is a group of one, without a process group."""

    def __init__(self, rank: int, world: int, device: str) -> None:
        self.rank, self.world, self._device = rank, world, device

    def sum(self, value: float) -> float:
        """The sum of every process's value, in every process."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(total)
        return total.item()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process: the same answer in every process."""
        return self.sum(float(flag)) > 0

    def gather(self, part: torch.Tensor) -> list[torch.Tensor]:
        """Every process's tensor on the CPU, by rank, in the first process; an empty list in the others.

        Args:
            part: of the same shape and type in all processes.
        """
        if self.world == 1:
            return [part]
        part = part.to(self._device).contiguous()
        parts = None if self.rank else [torch.empty_like(part) for _ in range(self.world)]
        torch.distributed.gather(part, parts)
        return [found.cpu() for found in parts or []]


_team: Team | None = None  # of this process; process groups are global too


def current_team() -> Team | None:
    """The team that this process belongs to; None where it is alone."""
    return _team


@contextmanager
def together(runtime: RuntimeConfig) -> Iterator[Group]:
    """While the whole team, or this process alone, is at one piece of work that every process has come to."""
    device = resolve_device(runtime)
    if _team is None:
        yield Group(0, 1, device)
        return
    with _team.together(device):
        yield Group(_team.rank, _team.world, device)


@contextmanager
def joined(rank: int, world: int, local_rank: int, local_world: int, meeting: Path) -> Iterator[Team]:
    """Meet the other processes of a job: the first opens a store at a free port and writes its address to a file.

    The port is chosen by the system while it is opened, so two jobs on one node cannot collide; the environment is
    then torchrun's, which Fabric reads.

    Args:
        rank: of this process, 0 to `world` - 1.
        world: number of processes.
        local_rank: of this process on its node: its GPU.
        local_world: processes on each node.
        meeting: a file on a file system that all share, fresh for each start of the job.

    Raises:
        UserError: no address was written in time.
    """
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]  documented there

    if rank == 0:
        host = _own_address()
        store = TCPStore(host, 0, world, is_master=True, wait_for_workers=False)
        write_json(meeting, {"host": host, "port": store.port})
    else:
        address = _read_meeting(meeting)
        store = TCPStore(address["host"], address["port"], world, is_master=False)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "GROUP_RANK": str(rank // local_world)}
    os.environ |= {"LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(local_world), "TORCHELASTIC_RUN_ID": "job"}
    with _as_team(Team(store, rank, world)) as team:
        yield team


@contextmanager
def joined_by_torchrun() -> Iterator[Team | None]:
    """Meet the other processes that torchrun started; None where it did not start this one, or alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield None
        return
    from torch.distributed import (
        PrefixStore,  # pyright: ignore[reportPrivateImportUsage]  documented there
        TCPStore,  # pyright: ignore[reportPrivateImportUsage]  documented there
    )

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun itself keeps the store then
    found = TCPStore(address, port, world, is_master=rank == 0 and not kept, wait_for_workers=False)
    store = PrefixStore(f"team/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)
    with _as_team(Team(store, rank, world)) as team:
        yield team


@contextmanager
def _as_team(team: Team) -> Iterator[Team]:
    """Make it this process's team. After an exception the others are not sent away: the launcher ends them."""
    global _team
    _team = team
    if torch.cuda.is_available():  # one process a GPU: before anything is put on "cuda"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    try:
        yield team
        if team.rank == 0:
            team.call(LEAVE)
        team.part()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    finally:
        _team = None


def _own_address() -> str:
    """What other nodes can reach this one by: the address of SLURM's name for it, else of the host's, else its route's.

    A name that resolves to loopback is handed on as it is: others may resolve it to more.
    """
    for name in filter(None, (os.environ.get("SLURMD_NODENAME"), socket.gethostname())):  # "" resolves to 0.0.0.0
        try:
            address = socket.gethostbyname(name)
        except OSError:
            continue
        return name if address.startswith("127.") else address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing: asks for the route's own address
        try:
            probe.connect(("10.255.255.255", 1))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _read_meeting(path: Path) -> Any:
    deadline = time.monotonic() + MEETING_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            time.sleep(POLL_S)
    raise UserError(f"{path}: the job's first process wrote no address in {MEETING_TIMEOUT_S:.0f} s")


def resolve_device(runtime: RuntimeConfig) -> str:
    """`cpu` or `cuda`, with `auto` resolved; asking for a GPU that is not there is a `UserError`."""
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise UserError("runtime.device: 'cuda' is not available on this machine; allowed here: cpu, auto")
    if runtime.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return runtime.device


def process_grid() -> tuple[int, int]:
    """Processes a node, and nodes, of the training that is opened; (1, 1) where this process trains alone."""
    if (_team and not _team.gathered) or "TORCHELASTIC_RUN_ID" not in os.environ:
        return 1, 1
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, int(os.environ["WORLD_SIZE"]) // local


def open_fabric(runtime: RuntimeConfig) -> "Fabric":
    """A launched Fabric: one device, or DDP over the processes that the launcher started."""
    from lightning_fabric import Fabric  # here: it imports slowly, and only training needs it
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    device = resolve_device(runtime)
    local, nodes = process_grid()
    if local * nodes == 1:
        # named, so that a surrounding SLURM allocation is not taken for a multi-process job
        fabric = Fabric(accelerator=device, devices=1, plugins=[LightningEnvironment()])
    else:
        # the objectives use every parameter in every step and keep their buffers equal themselves
        strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
        fabric = Fabric(accelerator=device, devices=local, num_nodes=nodes, strategy=strategy)
    fabric.launch()
    return fabric
