"""torchrun whose exit status is true, as scripts/launch.sh starts it: python scripts/agent.py OPTIONS PROGRAM ...

torchrun ends with status 1 whether a rank crashed or every rank was asked to stop and has saved, and starts the ranks
again in both cases. A scheduler must know which it was. What differs here:

- The status is the ranks': 0 when all are done, 128 + signal when they stopped because of SIGTERM, SIGINT or SIGUSR1 on
  any machine, else that of a rank that failed (137: killed by SIGKILL).
- Ranks that have stopped are not started again by --max-restarts. Those that failed are.
- Several machines meet on the address that leads to the rendezvous, not on what the machine's own name means to itself
  (on Debian 127.0.1.1, which no other machine reaches).
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import signal
import socket
import struct
import sys
from typing import Any

from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import api as launcher

SAVING = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
"""The signals for which `sinktrain fit` saves and ends with 128 + signal."""
STOPPED = {128 + number for number in SAVING}


class Agent(LocalElasticAgent):
    """Starts the ranks of this machine, and again when one has failed, but not when they have stopped."""

    started: Agent | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Agent.started = self

    def exit_codes(self) -> list[int | None]:
        """Of the ranks that were started last: None while one runs, -n for one that signal n has killed."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        return [handler.proc.poll() for handler in handlers.values()]

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.is_failed() and status_of(self.exit_codes()) in STOPPED:
            self._remaining_restarts = 0
        return result

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        """A terminal that is closed (SIGHUP) stops the ranks as SIGTERM does; they would not save for it."""
        super()._shutdown(death_sig if death_sig in SAVING else signal.SIGTERM, timeout)


def status_of(codes: list[int | None], received: int | None = None) -> int:
    """What the ranks' exit codes say, in one status; `received` is the signal that this process got."""
    # A rank that ends a little later than the first, or has not yet got as far as to handle signals, is ended by ours.
    by_us = {0, -signal.SIGTERM, -(received or signal.SIGTERM)}
    failed = [code for code in codes if code not in STOPPED | by_us]
    if failed:
        positive = [code for code in failed if code is not None and code > 0]
        return max(positive) if positive else 128 + max(-(code or -signal.SIGKILL) for code in failed)
    stopped = [code for code in codes if code in STOPPED]
    if stopped:
        return 128 + received if received and 128 + received in stopped else max(code or 0 for code in stopped)
    if codes and not any(codes):
        return 0
    return 128 + received if received else 1


def meet(options: argparse.Namespace) -> None:
    """Completes `options`: under which address the others reach this machine, and whether the rendezvous is here."""
    static = options.rdzv_backend == "static"
    endpoint = f"{options.master_addr}:{options.master_port}" if static else options.rdzv_endpoint
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, int(port)))  # sends nothing: asks the routing table
            address = sock.getsockname()[0]
    except (OSError, ValueError):
        return  # torch says what is wrong with it, or knows better
    name = interface_of(address)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    if static:
        return
    if options.local_addr is None:
        options.local_addr = address
    hosts = is_host(host, int(port))
    if hosts is not None and "is_host" not in options.rdzv_conf:
        options.rdzv_conf = ",".join(filter(None, (options.rdzv_conf, f"is_host={int(hosts)}")))


def is_host(host: str, port: int) -> bool | None:
    """Whether the rendezvous is on this machine; None where torch has to find out.

    torch compares names, and fails on a machine that cannot resolve its own.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            elsewhere = error.errno == errno.EADDRNOTAVAIL and host != socket.gethostname()
            return False if elsewhere else None  # None: another launcher on this machine listens already
        return None if sock.getsockname()[0].startswith("127.") else True


def interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address."""
    siocgifaddr = 0x8915
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(sock, siocgifaddr, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def main(arguments: list[str]) -> int:
    """Runs torchrun, and says in one sentence how the ranks of this machine ended."""
    launcher.LocalElasticAgent = Agent  # type: ignore[misc]
    # Else ranks that are started again meet in the store of those before them, and find the addresses of the dead.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    options = torchrun.parse_args(arguments)
    if options.nnodes != "1":
        meet(options)
    received = None
    try:
        torchrun.run(options)
        return 0
    except SignalException as error:
        received = int(error.sigval)
    except KeyboardInterrupt:  # before the ranks were started
        received = int(signal.SIGINT)
    except ChildFailedError:
        pass
    except Exception as error:  # the agents of other machines are gone; what counts is how our ranks have ended
        print(f"launch: {type(error).__name__}: {error}", file=sys.stderr)
    for number in (*SAVING, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    codes = Agent.started.exit_codes() if Agent.started else []
    status = status_of(codes, received)
    if status in STOPPED:
        print(f"launch: stopped by {signal.Signals(status - 128).name}; exit status {status}", file=sys.stderr)
    elif status:
        print(f"launch: ranks of this machine ended with {codes}; exit status {status}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
