"""A run's folder: one process at a time, foreign files left alone, other runs refused."""

import json
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline import config
from pipeline.system.errors import DtkdError
from pipeline.training import checkpoint
from pipeline.training.run_folder import RunLayout
from pipeline.training.state import RunState

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Train:
    steps: int = 10
    workers: int = 1


@dataclass(frozen=True)
class Settings:
    train: Train = field(default_factory=Train)


LAYOUT = RunLayout("train-it", Settings, products=("result.bin", "pictures/*.png"), free_keys=("train.workers",))
STATE = RunState(settings=config.to_dict(Settings()), data="photos", step=3)


def saved(run: Path) -> Path:
    return checkpoint.write_checkpoint(run, 3, lambda folder: checkpoint.write_state(folder, "train-it", STATE), keep=1)


def test_a_run_belongs_to_one_process(tmp_path):
    """The lock is a process's own, so the second one must be a real one."""
    code = (
        "import sys; from pathlib import Path; from pipeline.training.run_folder import RunLayout\n"
        "RunLayout('train-it', int, (), ()).claim(Path(sys.argv[1])).__enter__()"
    )
    with LAYOUT.claim(tmp_path):
        command = [sys.executable, "-c", code, str(tmp_path)]
        child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert "another process is training" in child.stderr.strip().splitlines()[-1]


def test_windows_locks_by_its_own_means(tmp_path, monkeypatch):
    """There is no fcntl there, and importing the package must not need it."""
    asked = []

    def locking(descriptor, mode, count):
        asked.append((mode, count))
        if len(asked) > 1:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    with LAYOUT.claim(tmp_path), pytest.raises(DtkdError, match="another process"), LAYOUT.claim(tmp_path):
        pytest.fail("claimed twice")
    assert asked == [(2, 1), (2, 1)]


def test_no_module_of_ours_needs_fcntl_at_import():
    code = "import sys; sys.modules['fcntl'] = None; import student.training.loop, teacher_cache.training.loop"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert child.returncode == 0, child.stderr


@pytest.mark.parametrize(
    "name", ["config.toml", "log.jsonl", "result.bin", "pictures/a.png", "checkpoints/step-1/w.pt"]
)
def test_files_of_others_are_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("[train]\n[mine]\n")
    for action in (LAYOUT.refuse_foreign, LAYOUT.clear):
        with pytest.raises(DtkdError, match=r"but no run of dtkd train-it .*: choose another folder"):
            action(tmp_path)
    assert (tmp_path / name).exists()


def test_a_folder_of_anything_else_is_foreign_and_an_empty_one_is_not(tmp_path):
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "empty").mkdir()
    LAYOUT.refuse_foreign(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DtkdError, match=r"holds notes\.txt, but no run of dtkd train-it .*: choose another folder"):
        LAYOUT.refuse_foreign(tmp_path)
    saved(tmp_path)
    LAYOUT.refuse_foreign(tmp_path)  # the notes are on the run


def test_a_run_of_another_kind_is_foreign(tmp_path):
    saved(tmp_path)
    LAYOUT.refuse_foreign(tmp_path)
    other = RunLayout("train-that", Settings, (), ())
    with pytest.raises(DtkdError, match="no run of dtkd train-that"):
        other.clear(tmp_path)


def test_clear_deletes_the_run_only(tmp_path):
    saved(tmp_path)
    LAYOUT.save_config(tmp_path, Settings())
    for name in ("pictures/a.png", "pictures/note.txt", "tensorboard/events.out.tfevents.1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    LAYOUT.clear(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["pictures", "pictures/note.txt"]
    LAYOUT.clear(tmp_path / "new")


def test_other_settings_and_data_are_refused_and_free_keys_are_not(tmp_path):
    LAYOUT.refuse_another(tmp_path, STATE, Settings(Train(workers=9)), "photos", "other photos")
    with pytest.raises(DtkdError, match=r"train\.steps: 10 -> 11; other photos\).*--fresh"):
        LAYOUT.refuse_another(tmp_path, STATE, Settings(Train(steps=11, workers=9)), "tiles", "other photos")


def test_a_checkpoint_of_an_older_format_is_refused_in_one_line(tmp_path):
    path = saved(tmp_path)
    assert checkpoint.read_state(path, lambda data: RunState(**data)) == STATE
    (path / "state.json").write_text(json.dumps({"step": 3, "band_scale": []}))
    with pytest.raises(DtkdError, match=r"state\.json is of another format than 2: .* choose another folder"):
        checkpoint.read_state(path, lambda data: RunState(**data))
