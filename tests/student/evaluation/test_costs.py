"""What candidates cost, and whether they repeat themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cache_support import NoisyBicubic, make_corpus
from spandrel.architectures.SwinIR import SwinIR

from pipeline.system.device import fast_bf16, measuring_memory
from student.benchmarks.contenders import spandrel_twin
from student.benchmarks.inference import Setup
from student.evaluation import candidates
from student.evaluation.costs import count_flops
from student.evaluation.evaluate import EvaluationSettings, evaluate
from student.evaluation.tables import to_markdown
from student.model import build
from student.networks import load_network

HOW = EvaluationSettings(metrics=("psnr_y",), limit=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_corpus(folder / "HR")
    return folder


def row(found, name):
    return next(candidate for candidate in found.candidates if candidate.name == name)


def test_operations_are_those_of_the_network_and_not_of_our_way_to_compute_it():
    student, lr = build("tiny", 4).eval(), torch.rand(1, 3, 24, 40)
    twin = spandrel_twin(student)
    assert isinstance(twin, SwinIR)
    with torch.inference_mode():
        assert count_flops(lambda: student(lr)) == count_flops(lambda: twin(lr))
    tokens, dim, hidden, blocks, window = 24 * 40, 48, 96, 12, 64
    linear = 2 * tokens * (dim * 3 * dim + dim * dim + 2 * dim * hidden)
    attention = 2 * 2 * tokens * window * dim
    convolutions = 2 * tokens * 9 * (3 * dim + 4 * dim * dim + dim * 48)  # first, one a group and one after them, last
    with torch.inference_mode():
        assert count_flops(lambda: student(lr)) == blocks * (linear + attention) + convolutions


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_precision_does_not_change_what_is_counted(photos, student, precision):
    if precision == "bf16" and not fast_bf16("cpu"):
        pytest.skip("this processor has no bf16")
    found = evaluate([student], photos, replace(HOW, precision=precision))
    fp32 = evaluate([student], photos, replace(HOW, precision="fp32"))
    ours, cost = row(found, student.parent.name), row(fp32, student.parent.name).cost
    assert ours.cost.flops == cost.flops > 1e7 and ours.cost.repeatable
    assert ours.cost.lr_size == cost.lr_size == (32, 32)
    assert row(found, "bicubic").cost is None and row(found, "gt").cost is None


def test_memory_is_what_the_block_took(photos, student):
    with measuring_memory("cpu") as peak:
        block = np.ones(30_000_000)
    assert peak.bytes is None or 0.9 * block.nbytes < peak.bytes < 1.3 * block.nbytes
    del block
    with measuring_memory("cpu") as nothing:
        pass
    assert nothing.bytes is None or nothing.bytes < 20_000_000
    small, large = load_network(str(student), "cpu"), torch.rand(1, 3, 192, 192)
    small.restore(large)
    with measuring_memory("cpu") as network:
        small.restore(large)
    picture = 4 * large.numel() * 16
    most = 1.25 * 192 * 192 * small.bytes_per_pixel  # beside a suite's other threads a few per cent come on top
    assert network.bytes is None or picture < network.bytes < most


def test_a_teacher_is_clocked_beside_its_students(photos, student):
    class Slow(NoisyBicubic):
        parameters = 7

    how = replace(HOW, precision="fp32")
    found = evaluate([student, "teacher:slow"], photos, how, teachers={"slow": Slow()})
    teacher, ours = row(found, "slow"), row(found, student.parent.name)
    assert teacher.parameters == 7 and teacher.cost.repeatable and teacher.cost.flops is None
    assert found.teacher_times == {"slow": {ours.name: pytest.approx(teacher.seconds / ours.seconds)}}
    assert found.to_json()["teacher_times"] == found.teacher_times
    assert any(line.startswith("time of slow: ") for line in found.lines())
    text = to_markdown(found)
    assert "* time of slow: " in text and "| weights | GFLOPs | MB | s/image |" in text


def test_who_gives_other_bytes_the_second_time_is_named(photos):
    class Restless(NoisyBicubic):
        calls = 0

        def restore(self, lr, seeds):
            self.calls += 1
            return super().restore(lr, [seed + self.calls for seed in seeds])

    found = evaluate(["teacher:x"], photos, HOW, teachers={"x": Restless()})
    assert row(found, "x").cost.repeatable is False
    assert "x gives other bytes when it restores an image again" in found.remarks
    assert found.to_json()["candidates"][1]["cost"]["repeatable"] is False


def test_the_setting_of_a_time_stands_beside_it(photos, student):
    found = evaluate([student], photos, HOW)
    about = found.to_json()["environment"]
    assert about["threads"] == str(torch.get_num_threads()) and about["torch"] == torch.__version__
    assert any(f"threads {about['threads']}" in line for line in found.lines())
    assert row(found, student.parent.name).precision in ("fp32", "bf16") and Setup("tiny").threads
    assert candidates.BUILT_IN == ("bicubic", "teacher", "gt")
