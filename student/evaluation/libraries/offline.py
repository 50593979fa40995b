"""Answer at once whether something can be had without, or from, the network.

Libraries that fetch weights at first use retry for minutes where there is no network. `no_network` makes every
connection of the block fail immediately, so that only files already on this machine are found; `reachable` asks one
host, once, within seconds. What the user told the Hugging Face client (HF_ENDPOINT, HF_HUB_OFFLINE) holds here too.
"""

import functools
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never

from huggingface_hub import constants


def weights_host() -> str:
    """Address of the host that weights are fetched from: HF_ENDPOINT, else huggingface.co."""
    return constants.ENDPOINT


def forbidden() -> bool:
    """Whether the user forbade to fetch anything, by HF_HUB_OFFLINE."""
    return constants.HF_HUB_OFFLINE


def _refuse(*args: object, **kwargs: object) -> Never:
    raise ConnectionRefusedError("no network in this block")


@contextmanager
def no_network() -> Iterator[None]:
    """Within the block every new connection of this process fails at once, and the Hugging Face client is offline."""
    resolve, connect, offline = socket.getaddrinfo, socket.socket.connect, constants.HF_HUB_OFFLINE
    socket.getaddrinfo, socket.socket.connect, constants.HF_HUB_OFFLINE = _refuse, _refuse, True
    try:
        yield
    finally:
        socket.getaddrinfo, socket.socket.connect, constants.HF_HUB_OFFLINE = resolve, connect, offline


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within the block no new connection waits longer than `seconds` for an answer, unless it says so itself."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@functools.cache
def reachable(url: str, seconds: float = 4.0) -> bool:
    """Whether the host of `url` answers within `seconds`, the look-up of its name and any proxy included.

    It is asked once in a process: an answer that takes its time would otherwise take it for every metric.
    """
    answers: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=seconds).close()
            answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)  # it refused the page, but it is there
        except OSError:
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)  # a name look-up has no time limit of its own
    thread.start()
    thread.join(seconds)
    return answers == [True]
