"""Training on a tiny cache: it learns, survives being killed bit for bit, and refuses what it must."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_cache import write_cache

from pipeline import config
from pipeline.fidelity import psnr_y
from pipeline.images import to_image, to_tensor
from pipeline.system.errors import DtkdError
from pipeline.training import state as training_state
from pipeline.training.checkpoint import newest
from pipeline.training.log import read_log
from pipeline.training.pace import NAMES
from student import checkpoint
from student.evaluation import metrics
from student.model.weight_files import read_metadata
from student.networks import load_network
from student.stream import open_cache
from student.training import loop
from student.training.loop import train
from student.training.run import BEST, LAYOUT, STUDENT, calibration_pairs
from student.training.settings import RunSettings
from student.training.state import read_state
from student.training.validation import load_measures

ROOT = Path(__file__).parents[3]
BASE = (
    "model.preset=tiny", "model.drop_path=.2", "train.steps=10", "train.batch_size=2", "train.patch=8", "train.lr=2e-3",
    "train.lr_warmup=2", "train.save_every=3", "train.val_every=5", "train.log_every=2", "train.device=cpu",
    "data.workers=1", "loss.energy=1", "loss.cycle_spinning=true", "train.precision=fp32",
)  # fmt: skip

CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from pipeline import config
from student.training.loop import RunSettings, train

rename = os.replace
cache, run, moment, threads = sys.argv[1:5]
torch.set_num_threads(int(threads))

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def on_progress(event):
    if moment == "between steps" and event.done == 5:
        die()
    if moment == "while saving" and event.done == 5:
        os.replace = lambda source, target: die() if Path(target).name.startswith("step-") else rename(source, target)

train(Path(cache), Path(run), config.load(RunSettings, None, sys.argv[5:]), on_progress=on_progress)
"""


def settings(*overrides: str) -> RunSettings:
    return config.load(RunSettings, None, [*BASE, *overrides])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c", val=2)


@pytest.fixture(scope="module")
def reference(cache, tmp_path_factory):
    """A run that nothing disturbed."""
    path = tmp_path_factory.mktemp("reference") / "run"
    return train(cache, path, settings())


def tensors(path: Path) -> dict[str, torch.Tensor]:
    latest = newest(path)
    files = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
    return {f"{file}:{name}": tensor for file in files for name, tensor in load_file(latest / file).items()}


def rows(path: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("seconds", *NAMES)} for row in read_log(path)]


def assert_same_run(path: Path, reference: Path) -> None:
    got, expected = tensors(path), tensors(reference)
    assert got.keys() == expected.keys()
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []
    assert rows(path) == rows(reference)
    for name in (STUDENT, BEST):
        one, other = load_file(path / name), load_file(reference / name)
        assert all(torch.equal(one[key], other[key]) for key in one.keys() | other.keys())


def test_a_run_learns_and_says_so(reference):
    assert (reference.step, reference.finished, reference.reused, reference.skipped) == (10, True, False, 0)
    log = rows(reference.run)
    losses = [row for row in log if "l1" in row]
    assert [row["step"] for row in losses] == [2, 4, 6, 8, 10]
    assert losses[-1]["l1"] < 0.9 * losses[0]["l1"]
    assert [row["lambda"] for row in losses] == pytest.approx([0, 0.4, 0.8, 1, 1])
    assert all(row["total"] > row["l1"] for row in losses[1:])
    assert [row["step"] for row in log if "val_psnr_y" in row and "val_dss" in row] == [5, 10]


def test_what_a_run_leaves_can_be_used(reference):
    student = checkpoint.load(reference.student)
    assert student(torch.rand(1, 3, 5, 7)).shape == (1, 3, 20, 28)
    ema = checkpoint.load(newest(reference.run) / "ema.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), ema.parameters(), strict=True))
    assert config.load(RunSettings, reference.run / "config.toml") == settings()
    assert [p.name for p in sorted((reference.run / "checkpoints").iterdir())] == ["step-00000009", "step-00000010"]
    assert list((reference.run / "tensorboard").iterdir())


@pytest.fixture(scope="module")
def bf16_reference(cache, tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "bf16"
    return train(cache, path, settings("train.precision=bf16"))


@pytest.mark.parametrize(
    ("moment", "which"),
    [("between steps", "reference"), ("while saving", "reference"), ("between steps", "bf16_reference")],
)
def test_a_killed_run_ends_with_the_same_bits(cache, tmp_path, moment, which, request):
    reference, path = request.getfixturevalue(which), tmp_path / "run"
    precision = f"train.precision={reference.precision}"
    arguments = [sys.executable, "-c", CHILD, cache, path, moment, str(torch.get_num_threads()), *BASE, precision]
    child = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert read_state(newest(path)).step == 3
    assert rows(path)[-1]["step"] > 3  # the log had gone on past the checkpoint
    steps = []
    train(cache, path, settings("data.workers=0", precision), on_progress=lambda event: steps.append(event.done))
    assert steps == [3, 4, 5, 6, 7, 8, 9, 10]  # the first tells what will be done
    assert_same_run(path, reference.run)


def test_a_run_computes_and_validates_in_its_precision_and_records_it(cache, reference, bf16_reference):
    totals = [[row["total"] for row in rows(r.run) if "total" in row] for r in (reference, bf16_reference)]
    assert totals[1] == pytest.approx(totals[0], rel=0.02)
    held_out = open_cache(cache, "val")

    def validated(run, precision):
        network = load_network(str(run.student), "cpu", precision)
        pictures = [held_out.images(index) for index in range(len(held_out))]
        found = [psnr_y(to_image(network.restore(to_tensor(lr)[None])[0]), gt, 4) for lr, gt, _ in pictures]
        return sum(found) / len(found)

    for run, precision, other in ((reference, "fp32", "bf16"), (bf16_reference, "bf16", "fp32")):
        assert validated(run, precision) == pytest.approx(run.validation["psnr_y"], abs=1e-5) != validated(run, other)
        assert run.precision == run.to_json()["precision"] == read_state(newest(run.run)).precision == precision
        made = read_metadata(run.student)
        assert (made["precision"], made["teacher"]) == (precision, {"name": "toy"})
        assert f"of training in {precision}, " in run.lines()[0]


def test_a_signal_saves_and_ends_and_the_run_goes_on(cache, reference, tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def interrupt(event):
        if event.done == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = train(cache, tmp_path, settings(), on_progress=interrupt)
    assert (stopped.step, stopped.finished) == (5, False)
    assert read_state(newest(tmp_path)).step == 5
    assert signal.getsignal(signal.SIGTERM) is before
    train(cache, tmp_path, settings())
    assert_same_run(tmp_path, reference.run)


def test_a_finished_run_is_not_trained_again(cache, reference):
    files = {path: path.stat().st_mtime_ns for path in reference.run.rglob("*") if path.name != ".lock"}
    again = train(cache, reference.run, settings(), on_progress=lambda event: pytest.fail("a step was taken"))
    assert again.reused
    assert (again.step, again.validation, again.best) == (10, reference.validation, reference.best)
    assert {path: path.stat().st_mtime_ns for path in reference.run.rglob("*") if path.name != ".lock"} == files


def test_another_run_in_the_folder_is_refused_by_the_keys_that_differ(cache, reference, tmp_path):
    other = settings("train.lr=1e-3", "loss.weights=high", "data.workers=0", "train.save_every=7")
    with pytest.raises(DtkdError) as caught:
        train(cache, reference.run, other)
    message = str(caught.value)
    assert all(word in message for word in ("train.lr: 0.002 -> 0.001", 'loss.weights: "mid" -> "high"', "--fresh"))
    assert "workers" not in message
    assert "save_every" not in message
    with pytest.raises(DtkdError, match="holds other samples"):
        train(write_cache(tmp_path / "c", seed=1), reference.run, settings())


def test_fresh_starts_again_and_leaves_the_users_files(cache, tmp_path):
    few = ("train.steps=2", "data.workers=0")
    train(cache, tmp_path, settings(*few))
    (tmp_path / "notes.txt").write_text("mine")
    steps = []
    train(cache, tmp_path, settings(*few, "train.seed=3"), "fresh", lambda event: steps.append(event.done))
    assert steps == [0, 1, 2]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [row["step"] for row in rows(tmp_path)] == [2, 2]


def test_fresh_deletes_a_run_only(cache, tmp_path):
    """A project folder has checkpoints/, tensorboard/ and config.toml of its own, too."""
    for name in ("checkpoints/step-1/weights.pt", "tensorboard/events.out.tfevents.1", "config.toml", BEST):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[train]\nmine = 1\n")
    before = sorted(tmp_path.rglob("*"))
    for resume in ("fresh", "auto"):
        with pytest.raises(
            DtkdError, match=r"holds config\.toml, but no run of dtkd train-student .*: choose another folder"
        ):
            train(cache, tmp_path, settings("train.steps=1", "data.workers=0"), resume)
        assert sorted(path for path in tmp_path.rglob("*") if path.name != ".lock") == before


def test_fresh_leaves_what_the_run_has_not_written(tmp_path):
    LAYOUT.save_config(tmp_path, settings())
    for name in ("checkpoints/step-00000001/state.json", "checkpoints/notes.txt", "tensorboard/events.out.tfevents.1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    LAYOUT.clear(tmp_path)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["checkpoints", "notes.txt"]
    LAYOUT.clear(tmp_path / "new")


def test_what_fresh_cannot_delete_is_told(tmp_path, monkeypatch):
    LAYOUT.save_config(tmp_path, settings())
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(DtkdError, match=r"cannot delete .*step-00000001 \(Permission denied\)"):
        LAYOUT.clear(tmp_path)
    assert (tmp_path / "config.toml").exists()


def poison(monkeypatch, steps: set[int]) -> None:
    """Make the loss of the given (0-based) steps NaN."""
    count = iter(range(1000))

    def loss(*images, **how):
        parts = true_loss(*images, **how)
        return parts._replace(total=parts.total * float("nan")) if next(count) in steps else parts

    true_loss = loop.distillation_loss
    monkeypatch.setattr(loop, "distillation_loss", loss)


def test_a_step_with_nan_is_left_out_and_counted(cache, tmp_path, monkeypatch):
    poison(monkeypatch, {1, 2})
    result = train(cache, tmp_path, settings("train.steps=4", "data.workers=0"))
    assert (result.step, result.skipped) == (4, 2)
    assert all(torch.isfinite(tensor).all() for tensor in tensors(tmp_path).values())
    moments = load_file(newest(tmp_path) / "optimizer.safetensors")
    assert moments["conv_first.weight/step"] == 2
    assert [row["skipped"] for row in rows(tmp_path) if "skipped" in row] == [1, 2]


def test_a_run_that_diverges_ends_and_keeps_its_checkpoint(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(training_state, "PATIENCE", 3)
    poison(monkeypatch, set(range(2, 1000)))
    with pytest.raises(DtkdError, match=r"diverged: .* steps 3 to 5; the last checkpoint is kept"):
        train(cache, tmp_path, settings("train.steps=50", "train.save_every=2", "data.workers=0"))
    assert all(torch.isfinite(tensor).all() for tensor in tensors(tmp_path).values())


def test_a_run_can_start_from_a_student(cache, reference, tmp_path):
    start = f"train.init={reference.student}"
    train(cache, tmp_path, settings(start, "train.steps=1", "train.lr=1e-12", "data.workers=0"))
    for a, b in zip(checkpoint.load(reference.student).parameters(),
                    checkpoint.load(tmp_path / STUDENT).parameters(), strict=True):  # fmt: skip
        assert torch.allclose(a, b, atol=1e-9)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("model.preset=light",), r"train\.init=.* is a tiny x4 network, the run trains light x4"),
        (("train.init=absent.safetensors",), r"absent\.safetensors"),
        (("model.preset=real-l", "train.init=shipped"), "no real-l student for x4 is shipped"),
        (("model.scale=2",), "model.scale is 2, but .* holds x4 pairs"),
        (("train.patch=20",), "at most 16 LR pixels"),
        (("loss.weights=0,1,0", "loss.levels=1"), "puts nothing"),
    ],
)
def test_settings_that_do_not_fit_are_refused(cache, reference, tmp_path, overrides, words):
    with pytest.raises(DtkdError, match=words) as caught:
        train(cache, tmp_path, settings(f"train.init={reference.student}", *overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps=0", "train.steps must be at least 1, got 0"),
        ("train.lr=0", "train.lr must be positive"),
        ("train.ema=1", "train.ema"),
        ("train.seed=-1", "train.seed must be at least 0"),
        ("train.lr_milestones=.5,2", "lr_milestones"),
        ("loss.levels=3", "multiple of 8 for 3 Haar levels, got 36"),
    ],
)
def test_bad_settings_are_refused(override, words):
    with pytest.raises(DtkdError, match=words):
        settings("train.patch=9", override)


def test_calibration_sees_the_whole_tiles_as_a_function_of_the_seed(cache):
    dataset = open_cache(cache)

    def corners(seed: int) -> list[int]:
        pairs = [lr for lr, _ in calibration_pairs(dataset, 8, seed)]
        whole = [to_tensor(dataset.images(index)[0]) for index in range(len(dataset))]
        return [torch.equal(lr[0], image[:, :8, :8]) for lr, image in zip(pairs, whole, strict=True)]

    assert sum(corners(0)) < 3  # of 9
    same = zip(calibration_pairs(dataset, 8, 0), calibration_pairs(dataset, 8, 0), strict=True)
    assert all(torch.equal(a, b) for one, other in same for a, b in zip(one, other, strict=True))
    other = zip(calibration_pairs(dataset, 8, 0), calibration_pairs(dataset, 8, 1), strict=True)
    assert not all(torch.equal(one[0], two[0]) for one, two in other)
    for lr, teacher in calibration_pairs(dataset, 8, 0):  # cut at the same place, in the same orientation
        small = torch.nn.functional.avg_pool2d(teacher, 4)
        assert (small - lr).abs().mean() < 0.05


def test_an_exact_picture_counts_100_db(cache, tmp_path, monkeypatch):
    """The psnr_y of a flat held-out photo is infinite, which no JSON holds."""
    monkeypatch.setattr(metrics, "psnr_y", lambda sr, gt, border: math.inf)
    names = ("train.val_metrics=psnr_y", "train.best_by=psnr_y", "data.workers=0")
    load_measures.cache_clear()
    result = train(cache, tmp_path, settings("train.steps=1", *names))
    load_measures.cache_clear()
    assert result.validation["psnr_y"] == result.best.figure == 100
    assert rows(tmp_path)[-1]["val_psnr_y"] == 100
