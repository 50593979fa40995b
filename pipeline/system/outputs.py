"""The one rule of everything that writes for the user, checked before the work.

What exists is replaced only when that was asked for, and then only what the same command wrote: a page replaces a page
of ours, never a photo. Pictures do not say who made them: who asks for it has them replaced.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.system.errors import DtkdError, UsageError

IsOurs = Callable[[Path], bool]
"""Whether a file or folder, which exists and may be damaged, is what the command itself writes."""


def check_suffix(path: Path, suffixes: Iterable[str], what: str) -> None:
    """Make sure that a file's name says what it will hold.

    Raises:
        UsageError: the suffix, in any case, is none of `suffixes`.
    """
    suffixes = tuple(suffixes)
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{path} is no name for {what}: expected {' or '.join(suffixes)}, got {path.suffix or 'none'}")


def check_file(path: Path, what: str, overwrite: bool, is_ours: IsOurs | None = None) -> None:
    """Make sure that a result may take the name `path`.

    Args:
        path: where the result will be.
        what: it will be ("a report"), for people.
        overwrite: replace an earlier result.
        is_ours: tells an earlier result from other files; None where nothing does.

    Raises:
        DtkdError: `path` is a folder or the like, exists and `overwrite` was not asked for, or is no earlier result.
    """
    if not path.exists() and not path.is_symlink():
        return
    if path.is_dir():
        raise DtkdError(f"{path} is a folder, and {what} is one file: give it a name, for example {path / path.name}")
    if not path.is_file():
        raise DtkdError(f"{path} is no regular file: choose another name for {what}")
    if is_ours and not is_ours(path):
        raise DtkdError(f"{path} exists and is not {what} of ours: it is left alone, choose another name")
    if not overwrite:
        raise DtkdError(f"{path} exists: pass --overwrite to replace it")


def check_folder(path: Path, what: str, overwrite: bool, is_ours: IsOurs, keep: Iterable[str] = ()) -> None:
    """Make sure that results may go into the folder `path`, which need not exist.

    Args:
        path: the folder.
        what: it will hold ("an evaluation"), for people.
        overwrite: replace earlier results in it.
        is_ours: whether the folder holds earlier results, and nothing of anyone else that they could be taken for.
        keep: names of files that are left as they are, so that they are in nobody's way; hidden ones are, too.

    Raises:
        DtkdError: it is a file, holds something else, or earlier results and `overwrite` was not asked for.
    """
    if path.is_symlink() and not path.exists():
        raise DtkdError(f"{path} is a link that leads nowhere: choose another folder")
    if not path.exists():
        return
    if not path.is_dir():
        raise DtkdError(f"{path} must be a folder, but a file is in the way; choose another folder")
    found = sorted(p.name for p in path.iterdir() if not p.name.startswith(".") and p.name not in set(keep))
    if not found:
        return
    if not is_ours(path):
        raise DtkdError(f"{path} holds {found[0]} and is not {what} of ours: it is left alone, choose another folder")
    if not overwrite:
        raise DtkdError(f"{path} holds {what}: pass --overwrite to replace it")
