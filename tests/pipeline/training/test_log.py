"""The log of a run: whole lines, and none past the checkpoint that a run goes on from."""

import json

from pipeline.training.log import RunLog, read_log


def test_log_drops_a_torn_line_and_what_is_past_the_checkpoint(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "total": 1}\n{"step": 2, "total": 2}\n{"step": 3, "to')
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2]
    with RunLog(tmp_path, 1) as log:
        log.write(2, {"total": 5.0})
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        {"step": 1, "total": 1},
        {"step": 2, "total": 5.0},
    ]


def test_a_silent_process_writes_nothing(tmp_path):
    with RunLog(tmp_path, 0, speaks=False) as log:
        log.write(1, {"total": 1.0})
    assert not list(tmp_path.iterdir())
