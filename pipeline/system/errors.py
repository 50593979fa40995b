"""Errors that the user can put right, and how any failure is told in one line."""

INTERRUPTED = "interrupted; run the same command again to go on"


class DtkdError(Exception):
    """A mistake in the input or an environment problem, told in one line that says what is wrong and what to do.

    The command line prints the message and ends with `exit_code`, without a traceback.
    """

    exit_code = 1


class UsageError(DtkdError):
    """An option or a setting that cannot be, whatever the machine and the files are like."""

    exit_code = 2


def explain(error: BaseException) -> str | None:
    """What to tell the user about a failure, in one line; None for a bug, whose traceback says more."""
    if isinstance(error, DtkdError):
        return " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, OSError) and error.strerror:  # else it is not the operating system's word about a file or disk
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "memory ran out: close other programs, or use a smaller --micro-batch, --tile, train.batch_size or image"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return "the GPU ran out of memory: use a smaller --micro-batch, --tile, train.batch_size or image"
    return None
