"""Where the processes of a run meet."""

import socket

import pytest

from mvar.training import distributed

NAMES = {"node7": "10.0.0.7", "login": "10.0.0.1", "debian": "127.0.1.1"}


@pytest.mark.parametrize(
    ("node", "host", "given"),
    [
        ("node7", "login", "10.0.0.7"),  # SLURM's name goes first, as an address: others may not know the name
        ("unknown", "login", "10.0.0.1"),
        (None, "login", "10.0.0.1"),
        ("", "login", "10.0.0.1"),
        ("debian", "login", "debian"),  # only here is it loopback
    ],
)
def test_the_address_is_one_that_others_can_use(monkeypatch, node, host, given):
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    if node is not None:
        monkeypatch.setenv("SLURMD_NODENAME", node)
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(socket, "gethostbyname", resolve)
    assert distributed._own_address() == given


def test_without_names_it_is_the_routes_own_address(monkeypatch):
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    monkeypatch.setattr(socket, "gethostbyname", resolve)
    monkeypatch.setattr(socket, "gethostname", lambda: "unknown")
    socket.inet_aton(distributed._own_address())


def resolve(name: str) -> str:
    if name not in NAMES:
        raise socket.gaierror(f"{name} is not known")
    return NAMES[name]
