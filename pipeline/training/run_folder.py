"""The folder of a training run: one process at a time, and nothing in it that no run has made.

    RUN/config.toml            the settings, as `--config` takes them
    RUN/log.jsonl tensorboard/ curves (`pipeline.training.log`)
    RUN/checkpoints/           to go on from (`pipeline.training.checkpoint`)

and what the kind of run adds. A run is known by its newest checkpoint: other settings or other data are refused, the
differences named, apart from settings on which the weights do not depend.
"""

import dataclasses
import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from accelerate import Accelerator

from pipeline import config
from pipeline.schema import difference
from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_bytes, ensure_dir, read_json
from pipeline.training import processes
from pipeline.training.state import RunState

Resume = Literal["auto", "fresh"]
T = TypeVar("T")
S = TypeVar("S", bound=RunState)

CONFIG, LOG = "config.toml", "log.jsonl"
_PARTS = ("checkpoints/step-*", "checkpoints/.step-*.part", "tensorboard/events.out.tfevents.*")


class BusyRunError(DtkdError):
    """Another process is training in the folder."""


@dataclass(frozen=True)
class RunLayout:
    """What the folders of one kind of run hold, and which of its settings may change."""

    kind: str
    """The command that makes such runs; their checkpoints say so."""
    settings: type
    """Class of their settings, one section of config.toml for each field."""
    products: tuple[str, ...]
    """Patterns of what they write beside config, log and checkpoints."""
    free_keys: tuple[str, ...]
    """Settings that may change when a run goes on, because its weights do not depend on them, or by rounding alone."""

    @contextmanager
    def claim(self, run: Path) -> Iterator[None]:
        """Keep other processes out of the folder while the block runs; the lock goes with the process, however it ends.

        Raises:
            DtkdError: the folder cannot be written, or holds what no such run has made.
            BusyRunError: another process trains in it.
        """
        ensure_dir(run)
        with open(run / ".lock", "w") as lock:
            try:
                _lock(lock)
            except (BlockingIOError, PermissionError) as error:
                busy = f"another process is training in {run}: wait for it, or choose another folder"
                raise BusyRunError(busy) from error
            self.refuse_foreign(run)
            yield

    def refuse_foreign(self, run: Path) -> None:
        """Refuse a folder that holds files, but no such run: some might be replaced or deleted, all would be mixed up.

        Hidden files and empty folders are in nobody's way; a run's folder may hold its user's notes, too.

        Raises:
            DtkdError: names one of the files, before others one that has a name of a run's files.
        """
        if any(self._is_state(path) for path in run.glob("checkpoints/step-*/state.json")) or self._is_config(run):
            return
        visible = "[!.]*"
        files = (path for pattern in (*self._patterns(), visible) for path in sorted(run.glob(pattern)))
        found = next((path for path in files if not path.is_dir() or any(path.iterdir())), None)
        if found:
            raise DtkdError(
                f"{run} holds {found.relative_to(run)}, but no run of dtkd {self.kind} (no checkpoint, no {CONFIG} of "
                "one): choose another folder"
            )

    def clear(self, run: Path) -> None:
        """Delete what an earlier run left, and nothing else.

        Raises:
            DtkdError: the files are not those of such a run, or cannot be deleted.
        """
        self.refuse_foreign(run)
        left = [path for pattern in self._patterns() for path in run.glob(pattern)]
        try:
            for path in sorted(left, key=lambda path: path.name == CONFIG):  # what tells that it is ours goes last
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for folder in {path.parent for path in left} - {run}:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        except OSError as error:
            what = f"{error.filename or run} ({error.strerror or error})"
            raise DtkdError(f"cannot delete {what}: delete it yourself, or choose another folder") from error

    def refuse_another(self, run: Path, state: RunState, settings: Any, data: str, other_data: str) -> None:
        """Refuse to go on with other settings or data than `state` was made with.

        Args:
            run: its folder.
            state: of its newest checkpoint.
            settings: of this command, of class `self.settings`.
            data: identity of the training data of this command.
            other_data: what to say where that is another one.

        Raises:
            DtkdError: names the differences.
        """
        lines = difference(state.settings, config.to_dict(settings))
        changed = [line for line in lines if line.partition(":")[0] not in self.free_keys]
        changed += [other_data] if state.data != data else []
        if changed:
            raise DtkdError(
                f"{run} holds a run with other settings or data ({'; '.join(changed)}): "
                "use the same ones, another folder, or --fresh to delete it and start again"
            )

    def save_config(self, run: Path, settings: Any) -> None:
        """Write RUN/config.toml."""
        atomic_write_bytes(run / CONFIG, config.to_toml(settings).encode())

    def _patterns(self) -> tuple[str, ...]:
        return (CONFIG, LOG, *self.products, *_PARTS)

    def _is_state(self, path: Path) -> bool:
        """Whether this is the state of a checkpoint of this kind of run."""
        try:
            state = read_json(path)
        except (OSError, DtkdError):
            return False
        return isinstance(state, dict) and state.get("run") == self.kind

    def _is_config(self, run: Path) -> bool:
        """Whether `save_config` may have written config.toml: it has a table for each section, and no other one."""
        try:
            tree = tomllib.loads((run / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        names = {field.name for field in dataclasses.fields(self.settings)}
        return tree.keys() == names and all(isinstance(section, dict) for section in tree.values())


@contextmanager
def open_run(
    layout: RunLayout, run: Path, resume: Resume, accelerator: Accelerator, begin: Callable[[], tuple[T, S]]
) -> Iterator[tuple[T, S]]:
    """Claim a folder and make what the run starts from, on all processes alike.

    Args:
        layout: of the folder.
        run: the folder, made when missing.
        resume: `auto` goes on with the run in it; `fresh` deletes that first.
        accelerator: of this process.
        begin: makes tensors and state, new ones or those of the newest checkpoint; called on the main process first.

    Raises:
        DtkdError: the folder cannot be used, `begin` failed on any process, or the processes would start apart.
    """
    with ExitStack() as claimed:

        def start() -> tuple[T, S]:
            if accelerator.is_main_process:
                claimed.enter_context(layout.claim(run))
                if resume == "fresh":
                    layout.clear(run)
            return begin()

        tensors, state = processes.main_first(accelerator, start)
        processes.refuse_other_starts(state, run)
        yield tensors, state


def _lock(file: IO[str]) -> None:
    """Lock a file for this process, also against forked readers of a dead one.

    Raises:
        BlockingIOError, PermissionError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        return
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: forked readers would hold it after our death
