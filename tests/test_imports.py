"""What starts where: the commands that only use a student need nothing that Windows lacks."""

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_upscale_evaluate_and_export_start_where_there_is_no_fcntl(tmp_path):
    code = """
        import os, sys
        sys.modules["fcntl"] = None  # as on Windows
        del os.fchmod, os.mkfifo
        import cli
        for command in ("upscale", "evaluate", "export"):
            try:
                cli.app([command, "--help"])
            except SystemExit as error:
                assert error.code == 0
        import student.evaluation.evaluate, student.evaluation.scores_text
        import student.export, student.hub, student.networks, student.report.write, student.upscaling.upscale
        from pipeline.system.files import atomic_write_bytes
        atomic_write_bytes(sys.argv[1], b"whole")
    """
    target = tmp_path / "file"
    command = [sys.executable, "-c", textwrap.dedent(code), target]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == b"whole"
