"""Words and numbers as people read them."""

import difflib
import math
from collections.abc import Iterable, Sequence


def plural(count: int, noun: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known word that was probably meant, capital or small; None where none is alike (`cutoff` 0: never)."""
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=cutoff)
    return lowered[near[0]] if near else None


def decibels(psnr: float) -> str:
    """`28.53 dB`; between equal pictures psnr is infinite."""
    return f"{psnr:.2f} dB" if math.isfinite(psnr) else "infinite (equal pictures)"


def bytes_text(count: float) -> str:
    """`812 bytes`, `3.4 MB`, `12 GB`; powers of ten."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.{1 if count < 10 * size else 0}f} {unit}"
    return plural(round(count), "byte")
