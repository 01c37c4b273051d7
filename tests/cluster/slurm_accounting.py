"""Accounting for the tests' cluster: MariaDB on a unix socket and slurmdbd, below the cluster's own directory."""

import subprocess
from pathlib import Path

PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db")
SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={root}/munge.sock
CommunicationParameters=NoInAddrAny
DbdHost={host}
DbdAddr={address}
DbdPort={port}
SlurmUser=root
LogFile={root}/log/slurmdbd.log
PidFile={root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
CommitDelay=1
"""
SLURM_CONF = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address}
AccountingStoragePort={port}
AccountingStoragePass={root}/munge.sock
"""
DATABASE_OPTIONS = ("--no-defaults", "--user=root", "--innodb-log-file-size=16M")


def write_config(root: Path, host: str, address: str, port: int) -> str:
    """Writes slurmdbd.conf; returns the lines of slurm.conf."""
    values = {"root": root, "host": host, "address": address, "port": port}
    path = root / "slurmdbd.conf"  # it is looked for beside slurm.conf
    path.write_text(SLURMDBD_CONF.format(**values))
    path.chmod(0o600)
    return SLURM_CONF.format(**values)


def commands(root: Path) -> dict[str, list[str]]:
    """The daemons."""
    database = ["mariadbd", *DATABASE_OPTIONS, f"--datadir={root}/mysql", f"--socket={root}/mysql.sock"]
    database += ["--skip-networking", f"--pid-file={root}/mysql.pid", f"--log-error={root}/log/mariadbd.log"]
    database += ["--skip-log-bin", "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"]
    return {"mariadbd": database, "slurmdbd": ["slurmdbd", "-D"]}


def install(root: Path) -> None:
    """Make the database's directory."""
    (root / "mysql").mkdir()
    command = ["mariadb-install-db", *DATABASE_OPTIONS, f"--datadir={root}/mysql", "--skip-test-db"]
    command.append("--auth-root-authentication-method=normal")
    subprocess.run(command, check=True, capture_output=True, timeout=120)
