"""The wheel: what people install has to work where the sources are not."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from skimage import data

from pipeline import images

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A new environment that holds the wheel; what the wheel depends on comes from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "cli.py"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("pipeline", "student", "teacher_cache"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "pip", "wheel", folder, "--no-deps", "--no-build-isolation", "-w", folder / "dist")
    (wheel,) = (folder / "dist").glob("dtkd-*.whl")
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # its own .pth files, our sources', stay out
    return folder / "env" / "bin"


def run(*command, cwd=None):
    """Run a command without the paths of this test run; returns its standard output."""
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(cwd or "/"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd, env=clean, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_upscale_and_evaluate_run_from_a_foreign_folder(installed, tmp_path):
    code = "import cli, pipeline, student; print(cli.__file__, pipeline.__file__, student.__file__)"
    where = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert all(path.startswith(str(installed.parent)) for path in where), where

    (tmp_path / "HR").mkdir()
    images.save(tmp_path / "HR" / "photo.png", data.astronaut()[:64, :80])
    run(installed / "dtkd", "upscale", "HR/photo.png", "large.png", cwd=tmp_path)
    assert images.probe(tmp_path / "large.png") == (320, 256)
    out = run(installed / "dtkd", "evaluate", "tiny-x4", "--data", ".", "--metrics", "psnr_y", cwd=tmp_path)
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["bicubic", "tiny-x4", "gt"]


@pytest.mark.slow
def test_what_is_no_python_file_is_in_the_wheel(installed):
    """Everything in the folders of weights and assets, the shipped students, teachers and the page."""
    (site,) = (installed.parent / "lib").glob("python*/site-packages")
    for package in ("pipeline", "student", "teacher_cache"):
        files = [p for p in (ROOT / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        assert [p for p in files if not (site / p.relative_to(ROOT)).is_file()] == []
