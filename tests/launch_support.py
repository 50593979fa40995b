"""Processes as users and launchers start them, also on two hosts: network namespaces, which only root may make."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
"""Of `two_hosts`, on their interfaces `cable`."""
_NAMED = 'echo "$0" > /proc/sys/kernel/hostname; exec "$@"'


def environment(**more: str) -> dict[str, str]:
    """Without what other launchers may have left, ACCELERATE_USE_CPU for one; the packages are this checkout's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


@contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces with `ADDRESSES`, joined by a cable; skips the test where that is forbidden."""
    names = (f"dtkd-{os.getpid()}-1", f"dtkd-{os.getpid()}-2")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    with ExitStack() as stack:
        for name in names:
            try:
                ip("netns", "add", name)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no right to make network namespaces here, or no `ip` ({error})")
            stack.callback(ip, "netns", "del", name)
        one, two = names
        ip("link", "add", "name", "cable", "netns", one, "type", "veth", "peer", "name", "cable", "netns", two)
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for interface in ("lo", "cable"):
                ip("-n", name, "link", "set", interface, "up")
        yield one, two


def on_host(host: str, words: Sequence[str]) -> list[str]:
    """The command, run in the network of `host` and under its name; its process is the one that is started."""
    return ["ip", "netns", "exec", host, "unshare", "--uts", "sh", "-c", _NAMED, host, *words]


def by_accelerate(rank: int) -> list[str]:
    """The launcher that starts one process on each of `two_hosts`, as typed on host number `rank`."""
    machines = ["--num_machines", "2", "--machine_rank", str(rank), "--num_processes", "2"]
    first = ["--main_process_ip", ADDRESSES[0], "--main_process_port", "29577"]
    return [sys.executable, "-m", "pipeline.system.launch", *machines, *first]
