"""`dtkd plot`: all runs and figures of the logs are drawn, settings that differ named, foreign files left alone."""

import json
import re
from pathlib import Path

import pytest
from cli_support import dtkd, refused
from PIL import Image
from tiny_cache import write_cache

from pipeline import config
from pipeline.training.run_folder import CONFIG
from student.report import curves
from student.report.comparison import compare
from student.training.loop import train
from student.training.settings import RunSettings
from teacher_cache.training.settings import TeacherRunSettings

BASE = (
    "model.preset=tiny", "train.steps=4", "train.batch_size=2", "train.patch=8", "train.lr_warmup=0",
    "train.val_every=2", "train.log_every=1", "train.device=cpu", "data.workers=0", "train.precision=fp32",
    "train.val_metrics=psnr_y", "train.best_by=psnr_y", "train.sample_strips=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the same name in different folders, and a teacher's log."""
    root = tmp_path_factory.mktemp("runs")
    cache = write_cache(root / "cache")
    given = {"a": ["train.lr=1e-3"], "b": ["train.lr=2e-3", "loss.lambda_max=0"]}
    for name, overrides in given.items():
        train(cache, root / name / "student", config.load(RunSettings, None, [*BASE, *overrides]))
    (root / "teacher").mkdir()
    (root / "teacher" / CONFIG).write_text(config.to_toml(TeacherRunSettings()))
    rows = [{"step": step, "total": 1 / step, "lr": 1e-4, "seconds": step} for step in (10, 20, 30)]
    rows.append({"step": 30, "val_psnr_y": 25.5, "val_psnr_y_bicubic": 24.0})
    (root / "teacher" / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [root / "a" / "student", root / "b" / "student", root / "teacher"]


def drawn(svg: str, colour: str) -> int:
    """Lines of a colour in a figure."""
    return len(re.findall(rf"stroke: {colour}", svg))


def test_a_page_draws_all_runs_and_names_what_differs(runs, tmp_path):
    out = tmp_path / "page.html"
    found = compare(runs[:2], out)
    assert [run.name for run in found.runs] == ["a/student", "b/student"]
    assert found.differing == {"train.lr": [0.001, 0.002], "loss.lambda_max": [1.0, 0.0]}
    page = out.read_text()
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    titles = list(curves.panels([run.curves for run in found.runs]).values())
    assert titles == ["total loss", "psnr_y, held out", "l1 to the ground truth", "distance to the teacher", "lambda",
                      "learning rate", "images/s"]  # fmt: skip
    assert len(svgs) == len(titles)
    for title, svg in zip(titles, svgs, strict=True):
        assert title in svg
        assert all(drawn(svg, colour) for colour in curves.colours(2)), title
    assert "train.lr" in page and "train.patch" not in page
    psnr = found.runs[0].figures["val_psnr_y"]
    assert f"<td>{psnr:.2f} dB</td>" in page
    assert not re.search(r"(src|href)=.https?:|@import", page)
    lines = found.lines()
    assert lines[0].startswith("a/student: 4 of 4 steps, loss ") and f"psnr_y {psnr:.2f} dB" in lines[0]
    assert lines[2:] == ["train.lr: 0.001, 0.002", "loss.lambda_max: 1.0, 0.0", f"plot: {out}"]


def test_the_same_runs_give_the_same_file(runs, tmp_path):
    for kind in ("html", "png", "svg"):
        one, other = (compare(runs, tmp_path / f"{name}.{kind}").path.read_bytes() for name in "ab")
        assert one == other, kind


def test_a_picture_holds_all_and_a_teacher_stands_beside_students(runs, tmp_path):
    found = compare(runs, tmp_path / "plot.png")
    with Image.open(found.path) as picture:
        picture.load()
        colours = {"#{:02x}{:02x}{:02x}".format(*pixel) for _, pixel in picture.convert("RGB").getcolors(1 << 24)}
    assert set(curves.colours(3)) <= colours
    svg = compare(runs, tmp_path / "plot.svg").path.read_text()
    assert all(word in svg for word in ("teacher", "a/student", "psnr_y_bicubic, held out", "images/s", "train.lr"))
    assert found.runs[2].figures == {"total": 1 / 30, "val_psnr_y": 25.5, "val_psnr_y_bicubic": 24.0, "lr": 1e-4}
    assert (found.runs[2].step, found.runs[2].seconds) == (30, 30)
    assert found.differing["model.preset"] == ["tiny", "tiny", None]


def test_many_runs_have_colours_of_their_own():
    assert all(len(set(curves.colours(count))) == count for count in (1, 6, 7, 18, 40))


def test_the_command_speaks_json_and_leaves_other_files_alone(runs, tmp_path):
    out = tmp_path / "new" / "page.html"
    text, _ = dtkd("plot", *runs[:2], out, "--json")
    found = json.loads(text)
    assert [run["name"] for run in found["runs"]] == ["a/student", "b/student"]
    assert found["differing"]["train.lr"] == [0.001, 0.002]
    assert "pass --overwrite" in refused("plot", *runs[:2], out)
    dtkd("plot", *runs[:2], out, "--overwrite")
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    assert "is left alone" in refused("plot", runs[0], mine, "--overwrite")
    assert mine.read_text() == "mine"
    assert "expected .html" in refused("plot", *runs[:2], code=2)
    assert "name the folder of a training run" in refused("plot", tmp_path, tmp_path / "x.png")
    assert "no run folder" in refused("plot", Path("nowhere"), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
