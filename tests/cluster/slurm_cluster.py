"""A real SLURM of its own on one machine: `python slurm_cluster.py DIRECTORY [accounting]`, as root.

slurmctld, a slurmd for each virtual node and munged, on the host's own address, everything below DIRECTORY. Prints
`ready` once a step has run on every node. Reads commands from stdin (`start DAEMON`, after a test has killed it); at
its end, which also comes when the parent is killed, everything is torn down and DIRECTORY removed.

What is unusual in the configuration was found by trying: nodes are named by loopback addresses, which resolve without
DNS; GPUs are clones of /dev/null, because SLURM 22.05 drops a GPU without a device file; `cred_expire=5`, because a
requeued job waits that long; FirstJobId differs from boot to boot.
"""

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import slurm_accounting

NODES = ("127.0.1.1", "127.0.1.2")
CPUS, GPUS, MEMORY_MB = 16, 4, 64000  # of a node, pretended
KILL_WAIT_S, NODE_TIMEOUT_S = 5, 10
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG

CONFIG = """
ClusterName=test
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge.sock,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MpiDefault=none
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SlurmdParameters=config_overrides
ReturnToService=2
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_continue
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
{accounting}
SlurmctldTimeout=30
SlurmdTimeout={node_timeout}
KillWait={kill_wait}
InactiveLimit=0
CompleteWait=0
MessageTimeout=10
TCPTimeout=5
BatchStartTimeout=20
UnkillableStepTimeout=30
MaxArraySize=2001
FirstJobId={first_job}
DefMemPerCPU=100
"""


def start_time(pid: int) -> str | None:
    """With the pid it names a process for ever; None for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def free_ports(count: int) -> list[int]:
    """Free ports below the range that clients are given."""
    ports, port = [], 10000 + secrets.randbelow(9000)
    while len(ports) < count:
        port += 1
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                ports.append(port)
            except OSError:
                continue
    return ports


class Cluster:
    """The daemons of one cluster."""

    def __init__(self, root: Path, accounting: bool = False) -> None:
        self.root, self.config, self.accounting = root, root / "slurm.conf", accounting
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        # the other variable: how slurmdbd finds its database
        self.environment = inherited | {"SLURM_CONF": str(self.config), "MYSQL_UNIX_PORT": f"{root}/mysql.sock"}
        self.commands = {
            "munged": [
                "munged", "-F", "-f", f"--socket={root}/munge.sock", f"--key-file={root}/munge/key",
                f"--log-file={root}/munge/log", f"--pid-file={root}/munge/pid", f"--seed-file={root}/munge/seed",
            ],
            "slurmctld": ["slurmctld", "-D", "-i", "-f", str(self.config)],
            **{f"slurmd.{node}": ["slurmd", "-D", "-N", node, "-f", str(self.config)] for node in NODES},
            **slurm_accounting.commands(root),
        }  # fmt: skip
        self.pids: dict[str, int] = {}

    def write_config(self) -> None:
        """slurm.conf, gres.conf, devices, munge's key."""
        for name in ("log", "state", "munge", "dev", *(f"spool/{node}" for node in NODES)):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "munge").chmod(0o700)
        key = self.root / "munge/key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        host = socket.gethostname().split(".")[0]
        address = socket.gethostbyname(socket.gethostname())  # where slurmd listens; 127.0.0.1 or a container's own
        port, account_port, *ports = free_ports(2 + len(NODES))
        accounting = "AccountingStorageType=accounting_storage/none"
        if self.accounting:
            accounting = slurm_accounting.write_config(self.root, host, address, account_port)
        text = CONFIG.format(
            host=host, address=address, port=port, root=self.root, node_timeout=NODE_TIMEOUT_S, kill_wait=KILL_WAIT_S,
            first_job=1000 + int(time.time() * 2) % 60_000_000, accounting=accounting,
        )  # fmt: skip
        shape = f"CPUs={CPUS} Boards=1 SocketsPerBoard=1 CoresPerSocket={CPUS} ThreadsPerCore=1"
        for node, node_port in zip(NODES, ports, strict=True):
            text += f"NodeName={node} NodeHostname={host} NodeAddr={address} Port={node_port} {shape} "
            text += f"RealMemory={MEMORY_MB} Gres=gpu:{GPUS}\n"
        everywhere = f"Nodes={','.join(NODES)} MaxTime=INFINITE DefaultTime=60"
        text += f"PartitionName=main {everywhere} Default=YES PriorityTier=10 PreemptMode=OFF\n"
        for name, grace in (("scavenge", 0), ("grace", 30)):
            text += f"PartitionName={name} {everywhere} PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}\n"
        self.config.write_text(text)
        devices = f"Name=gpu File={self.root}/dev/gpu[0-{GPUS - 1}]"
        try:
            for i in range(GPUS):
                os.mknod(self.root / f"dev/gpu{i}", 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # clones of /dev/null
        except PermissionError:  # a container that may not: any numbered devices do
            devices = f"Name=gpu File=/dev/tty[0-{GPUS - 1}]"
        (self.root / "gres.conf").write_text("".join(f"NodeName={node} {devices}\n" for node in NODES))
        (self.root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def start(self, name: str) -> None:
        """Start a daemon; it ends with this process."""
        with (self.root / "log" / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(
                self.commands[name], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.environment,
                cwd=self.root, start_new_session=True,
                preexec_fn=lambda: ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGTERM, 0, 0, 0),
            )  # fmt: skip
        self.pids[name] = process.pid
        (self.root / "pids.json").write_text(json.dumps(self.pids))

    def ask(self, *command: str) -> bool:
        """Whether a client's command succeeds."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            return subprocess.run(command, env=self.environment, timeout=20, **streams).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def wait(self, what: str, is_there, limit_s: float = 30) -> None:
        """Until something is there; a daemon that dies meanwhile is an error."""
        deadline = time.monotonic() + limit_s
        while not is_there():
            dead = [name for name, pid in self.pids.items() if start_time(pid) is None]
            if dead or time.monotonic() > deadline:
                logs = "".join(p.read_text(errors="replace")[-2000:] for p in (self.root / "log").iterdir())
                raise RuntimeError(f"no {what}; dead: {dead}\n{logs}")
            time.sleep(0.05)

    def boot(self) -> None:
        """Until a step has run on every node: nodes that merely call themselves idle may not be reachable."""
        self.write_config()
        self.start("munged")
        self.wait("munge", (self.root / "munge.sock").exists)
        if self.accounting:
            slurm_accounting.install(self.root)
            self.start("mariadbd")
            self.wait("database", (self.root / "mysql.sock").exists)
            self.start("slurmdbd")
            self.wait("accounting", lambda: self.ask("sacctmgr", "-i", "add", "cluster", "test"), 60)
        self.start("slurmctld")
        self.wait("controller", lambda: self.ask("scontrol", "ping"))
        for node in NODES:
            self.start(f"slurmd.{node}")
        probe = ("srun", "-Q", f"-N{len(NODES)}", f"-n{len(NODES)}", "-t1", "--immediate=5", "true")
        self.wait("nodes", lambda: self.ask(*probe))

    def processes(self) -> list[tuple[int, str]]:
        """Everything that this cluster started and that lives: daemons, steps, tasks; by their environment."""
        mark, own = f"SLURM_CONF={self.config}".encode(), os.getpid()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == own:
                continue
            try:
                marked = mark in (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            began = start_time(int(entry.name))
            if marked and began:
                found.append((int(entry.name), began))
        return found

    def tear_down(self) -> None:
        """End everything and remove the directory."""
        for number, patience_s in ((signal.SIGTERM, 2), (signal.SIGKILL, 5)):
            deadline = time.monotonic() + patience_s
            for pid, began in self.processes():
                if start_time(pid) == began:
                    os.kill(pid, number)
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.05)
        shutil.rmtree(self.root, ignore_errors=True)


def main() -> None:
    """Boot, serve commands, tear down."""
    cluster = Cluster(Path(sys.argv[1]), accounting="accounting" in sys.argv[2:])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        cluster.boot()
        print("ready", flush=True)
        for line in sys.stdin:
            cluster.start(line.split()[1])
            print("started", flush=True)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        cluster.tear_down()


if __name__ == "__main__":
    main()
