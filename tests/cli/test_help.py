"""What `dtkd` says about itself."""

import os
import re
import subprocess
import sys

import pytest
from cli_support import dtkd

from pipeline import config
from student.training.settings import RunSettings
from teacher_cache.building.settings import BuildSettings, StageOneSettings
from teacher_cache.training.settings import TeacherRunSettings

COMMANDS = (
    "teacher-cache", "check-teacher", "status", "verify", "train-teacher", "train-student", "evaluate", "report",
    "plot", "audit", "ablate", "mix", "upscale", "export", "bench",
)  # fmt: skip


def test_help_lists_the_commands_and_loads_nothing_heavy():
    code = (
        "import sys, cli; from typer.testing import CliRunner; r = CliRunner().invoke(cli.app, ['--help']);"
        "heavy = {'torch', 'diffusers', 'transformers', 'matplotlib', 'scipy', 'pyiqa', 'accelerate', 'PIL'};"
        "print(r.exit_code, sorted(heavy & set(sys.modules))); print(r.stdout)"
    )
    first, *rest = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.splitlines()
    assert first == "0 []"
    assert all(any(line.strip().startswith(command) for line in rest) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(command):
    out, _ = dtkd(command, "--help")
    assert "Examples:" in out
    assert f"dtkd {command} " in out
    assert "--json" in out


def test_the_version_needs_no_command():
    out, _ = dtkd("--version")
    assert re.fullmatch(r"dtkd \d+\.\d+\.\d+\n", out)


@pytest.mark.parametrize(
    ("command", "settings"),
    [("teacher-cache", StageOneSettings), ("train-teacher", TeacherRunSettings), ("train-student", RunSettings)],
)
def test_listed_settings_are_a_file_with_the_defaults(command, settings, tmp_path):
    out, err = dtkd(command, "--settings")
    assert err == ""
    (tmp_path / "settings.toml").write_text(out)
    assert config.load(settings, tmp_path / "settings.toml") == settings()
    for key, value in config.to_dict(settings()).items():
        assert isinstance(value, dict) or re.search(rf"^(# )?{key} =.*  # ", out, re.MULTILINE), key


def test_the_help_of_stage_one_tells_the_defaults_of_its_settings():
    out, _ = dtkd("teacher-cache", "--help")
    told = dict(re.findall(r"--([a-z-]+) (?:(?! --)[^[])*\[default: ([^]]+)\]", " ".join(out.split())))
    defaults = BuildSettings()
    expected = {"degradation": defaults.degradation.kind, "scale": defaults.degradation.scale}
    expected |= {"tile": defaults.tile, "seed": defaults.seed, "hold-out": defaults.hold_out}
    expected |= {"micro-batch": defaults.micro_batch, "samples": defaults.samples}
    assert {option: told[option] for option in expected} == {o: str(value) for o, value in expected.items()}


def test_a_shell_completes_commands_and_options():
    def complete(words, number):
        environment = {**os.environ, "_DTKD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(number)}
        program = [sys.executable, "-c", "import cli; cli.app(prog_name='dtkd')"]
        return subprocess.run(program, env=environment, capture_output=True, text=True, check=False).stdout.split()

    assert complete("dtkd tr", 1) == ["train-teacher", "train-student"]
    assert complete("dtkd upscale --ov", 2) == ["--overlap", "--overwrite"]
    assert "--install-completion" in dtkd("--help")[0]
