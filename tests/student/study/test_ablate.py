import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from skimage import data as photos
from tiny_cache import write_cache

from pipeline.system.errors import DtkdError
from student.study.ablate import ablate, announced, cost_line, step_seconds, trials
from student.study.ablation_plots import ablation_svg
from student.study.grids import GRIDS, GT_ONLY, Arm, Grid

ROOT = Path(__file__).parents[3]
BASE = [
    "model.preset=tiny",
    "train.steps=2",
    "train.batch_size=2",
    "train.patch=8",
    "train.log_every=1",
    "data.workers=0",
]
GRID = Grid("two", (GT_ONLY, Arm("strong", ("loss.lambda_max=50", "loss.schedule=constant"))))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    cache = write_cache(folder / "cache")
    (folder / "set" / "HR").mkdir(parents=True)
    for name in ("astronaut", "coffee", "chelsea"):
        Image.fromarray(getattr(photos, name)()[100:164, 100:164]).save(folder / "set" / "HR" / f"{name}.png")
    planned = trials(GRID, BASE, None, seeds=2)
    events = []
    found = ablate(cache, folder / "out", GRID, planned, folder / "set", ("psnr_y", "ssim_y"), events.append)
    steps = [(event.done, event.total, event.note.split(",")[0]) for event in events if event.unit == "steps"]
    assert {(2, 8, "gt-only-seed0"), (3, 8, "strong-seed0"), (8, 8, "strong-seed1")} <= set(steps)
    assert [done for done, *_ in steps] == sorted(done for done, *_ in steps)
    return folder, cache, planned, found


def test_differences_are_those_of_the_runs_image_by_image(made):
    folder, _, _, found = made
    scores = json.loads((folder / "out" / "evaluation" / "metrics.json").read_text())
    by_name = {row["name"]: {image["id"]: image for image in row["images"]} for row in scores["candidates"]}
    pairs = [
        (f"strong-seed{s}", f"gt-only-seed{s}", image) for s in (0, 1) for image in ("astronaut", "coffee", "chelsea")
    ]
    expected = np.mean([by_name[a][i]["psnr_y"] - by_name[b][i]["psnr_y"] for a, b, i in pairs])
    (strong,) = (c for c in found.comparisons if c.arm == "strong" and c.metric == "psnr_y")
    assert strong.difference.value == pytest.approx(expected)
    assert strong.difference.low <= strong.difference.value <= strong.difference.high
    (baseline,) = (c for c in found.comparisons if c.arm == "gt-only" and c.metric == "psnr_y")
    assert baseline.difference is None and baseline.verdict == "baseline"
    assert (found.images, found.seeds, found.baseline) == (3, 2, "gt-only")


def test_a_cache_that_does_not_suit_a_later_arm_is_refused_before_the_first_is_trained(made, tmp_path):
    folder, cache, *_ = made
    planned = trials(GRIDS["samples"], BASE, None, seeds=1)
    assert [trial.settings.data.samples for trial in planned] == [1, 4]
    for attempt in (
        lambda: announced(cache, planned),
        lambda: ablate(cache, tmp_path / "out", GRIDS["samples"], planned, folder / "set", ("psnr_y",)),
    ):
        with pytest.raises(DtkdError, match=r"data\.samples is 4, .* holds 1 output of each tile") as error:
            attempt()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_is_written(made):
    folder, _, _, found = made
    stored = json.loads((folder / "out" / "ablation.json").read_text())
    assert stored["changes"]["strong"] == ["loss.lambda_max=50", "loss.schedule=constant"]
    assert stored["environment"]["torch"]
    table = (folder / "out" / "ablation.md").read_text()
    assert "| strong |" in table and "take it as a hint" in table
    assert ElementTree.fromstring(ablation_svg(found)).tag.endswith("svg")


def test_arms_share_order_and_initial_weights_and_a_second_call_trains_nothing(made):
    folder, cache, planned, found = made
    logs = {path: path.read_bytes() for path in (folder / "out").glob("*-seed*/log.jsonl")}
    assert len(logs) == 4
    again = ablate(cache, folder / "out", GRID, planned, folder / "set", ("psnr_y", "ssim_y"))
    assert again.comparisons == found.comparisons
    assert {path: path.read_bytes() for path in logs} == logs
    first = {path.parent.name: json.loads(data.splitlines()[0])["l1"] for path, data in logs.items()}
    assert first["gt-only-seed0"] == first["strong-seed0"] != first["gt-only-seed1"] == first["strong-seed1"]


def test_a_folder_of_others_is_left_alone(made, tmp_path):
    folder, cache, planned, _ = made
    (tmp_path / "ablation.json").write_text('{"mine": 1}')
    with pytest.raises(DtkdError, match="is not an ablation of ours"):
        ablate(cache, tmp_path, GRID, planned, folder / "set", ("psnr_y",))
    assert [path.name for path in tmp_path.iterdir()] == ["ablation.json"]


def claimed_by_another_process(folder, run):
    (folder / "ablation.json").write_text('{"grid": "two", "baseline": "gt-only", "finished": false}')
    code = "import sys; from pathlib import Path; from student.training.run import LAYOUT\n"
    code += "with LAYOUT.claim(Path(sys.argv[1])): print('claimed', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(folder / run)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert other.stdout.readline() == "claimed\n"
    return other


def test_runs_that_others_leave_meanwhile_are_taken_up(made, tmp_path):
    folder, cache, planned, _ = made
    other, steps = claimed_by_another_process(tmp_path, planned[0].name), []

    def leave(event):
        if other.poll() is None:
            other.communicate()
        steps.append(event.done)

    found = ablate(cache, tmp_path, GRID, planned, folder / "set", ("psnr_y",), leave)
    assert found.images == 3 and steps[:8] == sorted(steps[:8]) and steps[0] == 0


def test_runs_that_another_process_trains_are_left_to_it(made, tmp_path):
    folder, cache, planned, _ = made
    other = claimed_by_another_process(tmp_path, planned[0].name)
    with pytest.raises(DtkdError, match="other processes are training 1 run: the same command goes on later"):
        ablate(cache, tmp_path, GRID, planned, folder / "set", ("psnr_y",))
    other.communicate()
    assert (tmp_path / planned[1].name / "student.safetensors").exists()
    assert ablate(cache, tmp_path, GRID, planned, folder / "set", ("psnr_y",)).images == 3


def test_the_cost_is_told_before(made):
    _, cache, planned, _ = made
    assert step_seconds(cache, planned[0].settings) > 0
    assert cost_line(planned, 0.5).startswith("2 arms x 2 seeds: 8 steps of 0.50 s, about 4 s in one process on a CPU")
    assert announced(cache, planned).summary.startswith("2 arms x 2 seeds: 8 steps of ")
