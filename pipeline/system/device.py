"""Which device a process computes on, what it is good at, and in which precision a network computes there."""

import atexit
import ctypes
import functools
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.system.errors import DtkdError, UsageError

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState


def share_cpus() -> None:
    """Let threads that wait for each other sleep soon; only works before torch is imported.

    GNU OpenMP's threads spin for milliseconds at every barrier. Beside another busy process two of them end up on one
    CPU, each spinning through the other's time slice: a step of training took over 5 s instead of .13, now .4 (LOG.md,
    2026-11-26). Whoever sets OpenMP's own variables decides for himself.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def processes() -> "PartialState":
    """Accelerate's knowledge of this process: `device`, `process_index`, `num_processes`, `is_main_process`.

    Under `accelerate launch` and `torchrun` the first call waits for the other processes. On a machine without an
    accelerator, accelerate finds them only where it is told to compute on the CPU. Processes that nobody introduces to
    each other, a SLURM array for example, are each the first and only one.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env
    from torch.distributed import is_torchelastic_launched

    together_on_cpus = is_torchelastic_launched() and not torch.accelerator.is_available()
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or together_on_cpus)
    if state.num_processes > 1:
        leave_at_exit()
    return state


@functools.cache
def leave_at_exit() -> None:
    """Leave the other processes at this one's end: it may abort where their connections outlive the interpreter."""
    import torch.distributed

    atexit.register(lambda: torch.distributed.destroy_process_group() if torch.distributed.is_initialized() else None)


def first_process() -> bool:
    """Whether this is the one of several processes that speaks to people."""
    return processes().is_main_process


def choose(name: str = "auto") -> str:
    """Torch device for `name`; `auto` is this process's own accelerator (CUDA, MPS, XPU ...) where there is one.

    Raises:
        UsageError: torch knows no such device, or it is not on this machine.
    """
    import torch

    if name == "auto":
        device = processes().device
        assert device is not None
        return "cpu" if device.type == "cpu" else str(device)  # accelerate numbers CPUs, too: cpu:0
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without this kind
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"the device {name!r} cannot be used here ({reason}): take auto, cpu or cuda:0") from error
    return name


def fast_bf16(device: str) -> bool:
    """Whether `device` multiplies bf16 matrices natively, so that autocast to it pays.

    Of a CPU that asks for AVX512-BF16 or AMX; mkldnn's own answer counts its emulation on other CPUs, too.
    """
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # an older torch may lack them
    return kind == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)


def refuse_without_compiler(device: "torch.device") -> None:
    """Compile and run a line, in some seconds most of which the first true use of torch.compile then saves.

    Raises:
        DtkdError: torch.compile does not work on this device, for want of a compiler for example.
    """
    import torch

    never_before = secrets.randbelow(2**31)  # else torch takes from its cache what a compiler made that has gone since
    program = torch.compile(lambda values: values + never_before)
    try:
        program(torch.zeros(8, device=device))
    except Exception as error:  # any of torch's, of the compiler's or of the operating system's
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DtkdError(
            f"torch.compile does not work on {device.type} here ({reason}): install a C++ compiler (Debian, Ubuntu: "
            "apt install g++), or do without compiling"
        ) from error


def processors() -> int:
    """Processors that this process may use."""
    own = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(own(0)) if own else os.cpu_count() or 1


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Threads of torch's CPU operators within the block; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory gave out, of the machine or of a GPU, whatever type the library chose for that."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


class PeakMemory:
    """What a block of `measuring_memory` took; `bytes` is None until it ends, and where it cannot be measured."""

    bytes: int | None = None


@contextmanager
def measuring_memory(device: str) -> Iterator[PeakMemory]:
    """Measure the most memory that the block takes on a device, beyond what is held when it begins.

    On a CPU that is the resident memory of the whole process, on Linux alone; what the C library keeps of freed memory
    is given back first, for the block would use it unseen.
    """
    import torch

    peak, before = PeakMemory(), None
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = held_memory(device)
    elif torch.device(device).type == "cpu" and _forget_peak():
        before = held_memory(device)
    yield peak
    most = peak_memory(device)
    peak.bytes = None if before is None or most is None else max(0, most - before)


def peak_memory(device: str) -> int | None:
    """Most bytes that this process has taken on a device so far; on a CPU, resident ones, on Linux alone."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else _resident("VmHWM:")


def held_memory(device: str) -> int | None:
    """Bytes that this process holds on a device now; on a CPU, resident ones, on Linux alone."""
    import torch

    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else _resident("VmRSS:")


def _forget_peak() -> bool:
    """Have the kernel measure this process's peak anew, and the C library give back what was freed."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):  # no Linux, or another C library
        return False
    return True


def _resident(entry: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(entry)), None)


def environment() -> dict[str, str]:
    """Versions, processor and threads that figures were measured with."""
    import platform
    from importlib.metadata import version

    import torch

    about = {"python": platform.python_version(), "machine": platform.machine(), "processor": _processor()}
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about | {"threads": str(torch.get_num_threads())} | {name: version(name) for name in ("torch", "dtkd")}


def _processor() -> str:
    """Name of the CPU's model, as far as the system tells."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def keep_freed_memory() -> None:
    """Have glibc keep memory that is freed, for the process's next large block; other C libraries are left alone.

    By default it gives large blocks back to the kernel, and a network's forward pass or training step on a CPU spends
    up to two thirds of its time in page faults (measured: LOG.md, 2026-11-23).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1
        mallopt(trim_threshold, most)
        if not mallopt(mmap_threshold, most):  # older versions take 32 MB at most
            mallopt(mmap_threshold, 32 << 20)


Precision = Literal["auto", "fp32", "bf16"]
"""What a user may ask for."""
ResolvedPrecision = Literal["fp32", "bf16"]
"""What is computed in, and recorded with every result."""


def resolve_precision(precision: Precision, device: str) -> ResolvedPrecision:
    """What `precision` means on a device: `auto` is bf16 where the hardware multiplies it natively, else fp32.

    Asked for students and for the training of both stages. A teacher at work has the precision of its weights
    (`teacher_cache.teachers.load`), and networks of other projects are left in fp32 (`student.networks`).
    """
    if precision == "auto":
        return "bf16" if fast_bf16(device) else "fp32"
    return precision


def autocast(precision: ResolvedPrecision, device: str) -> AbstractContextManager[object]:
    """Context in which forward passes on a device have this precision; their backward passes have it anywhere."""
    import torch

    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)
