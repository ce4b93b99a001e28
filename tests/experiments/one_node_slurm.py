"""A Slurm of one node on the loopback interface, with a configuration of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
SYSTEM = os.pathsep.join(("/usr/sbin", "/usr/local/sbin", "/sbin"))
CPUS = 4

# main can be preempted by high, after 20 seconds; abrupt as well, at once. Four CPUs whatever the machine has. No
# plugin that binds processes to CPUs: what a job may use is known from Slurm's variables alone.
CONFIGURATION = """
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
MpiDefault=none
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=1
SlurmdParameters=config_overrides
JobRequeue=0
ReturnToService=2
KillWait=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES State=UP PriorityTier=1 GraceTime=20 PreemptMode=REQUEUE
PartitionName=abrupt Nodes={host} State=UP PriorityTier=1 GraceTime=0 PreemptMode=REQUEUE
PartitionName=high Nodes={host} State=UP PriorityTier=10
"""


def absent() -> str | None:
    """Why there is no Slurm to be started here; None where there is one."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=os.environ["PATH"] + os.pathsep + SYSTEM) is None]
    if missing:
        return f"{', '.join(missing)} not installed (on Debian and Ubuntu: apt-get install slurm-wlm munge)"
    return None if os.getuid() == 0 else "slurmd starts jobs as root alone"


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Path]:
    """Runs the daemons while entered, and gives the path for SLURM_CONF; every job has ended afterwards."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key, configuration = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    configuration.write_text(
        CONFIGURATION.format(host=host, user=getpass.getuser(), folder=folder, ports=free_ports(2), cpus=CPUS)
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
        "SLURM_CONF": str(configuration),
        "PATH": os.environ["PATH"] + os.pathsep + SYSTEM,
    }
    munge = [f"--{name}-file={folder / file}" for name, file in (("pid", "munge.pid"), ("seed", "seed"))]
    commands = (
        ("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder / 'munge.socket'}", *munge),
        ("slurmctld", "-D"),
        ("slurmd", "-D", "-N", host),
    )
    daemons: list[subprocess.Popen[bytes]] = []

    def ask(*command: str) -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else ""

    try:
        with open(folder / "daemons.log", "wb") as log:
            for command in commands:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
                if command[0] == "munged":
                    wait_until((folder / "munge.socket").exists)
        wait_until(lambda: "idle" in ask("sinfo", "--noheader", "--format=%T"))
        yield configuration
    finally:
        if ask("squeue", "--noheader"):
            ask("scancel", f"--user={os.getuid()}")
            wait_until(lambda: not ask("squeue", "--noheader"))
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def wait_until(condition: Callable[[], object], seconds: float = 180.0) -> None:
    """Waits for a condition; the time is an upper bound, for a machine that is busy."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
