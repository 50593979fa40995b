import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import spandrel
import torch
from swinir_oracle import SMALL, assert_close, random_image, randomised

from pipeline.system.errors import DtkdError
from student.export import CHECKED_SIZES, export, format_of
from student.hub import HubStudent
from student.model import SwinIR
from student.model.weight_files import load_student, read_metadata, save_student


@pytest.fixture
def checkpoint(tmp_path):
    def make(kind: str = "light"):
        path = tmp_path / f"{kind}.safetensors"
        save_student(randomised(SwinIR(SMALL[kind])), path, {"step": 7})
        return path

    return make


@pytest.mark.parametrize("kind", ["light", "light-x3", "classical", "classical-x8", "real", "real-3conv"])
def test_onnx_equals_torch_at_any_size(tmp_path, checkpoint, kind):
    path = checkpoint(kind)
    exported = export(path, tmp_path / "s.onnx", "onnx")
    assert exported.error is not None and exported.error <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "s.onnx", providers=["CPUExecutionProvider"])
    model = load_student(path)
    for shape in ((1, 3, 1, 1), (3, 3, 5, 9), (1, 3, 48, 80), (2, 3, 33, 8)):
        lr = random_image(*shape)
        with torch.no_grad():
            expected = model(lr)
        assert_close(torch.from_numpy(session.run(None, {"lr": lr.numpy()})[0]), expected, 1e-4, f"{kind} {shape}")


def test_half_weights_take_half_the_space_and_compute_in_float32(tmp_path, checkpoint):
    path = checkpoint("classical")
    whole = export(path, tmp_path / "whole.onnx", "onnx")
    half = export(path, tmp_path / "half.onnx", "onnx", half=True)
    assert half.bytes < 0.75 * whole.bytes and half.error is not None and half.error <= 1e-4
    graph = onnx.load(tmp_path / "half.onnx").graph
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    stored = {w.data_type for w in graph.initializer if np.prod(w.dims) > 100}
    assert onnx.TensorProto.FLOAT not in stored
    lr = random_image(1, 3, 20, 20)
    outputs = [
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"]).run(
            None, {"lr": lr.numpy()}
        )[0]
        for name in ("whole", "half")
    ]
    assert 0 < np.abs(outputs[0] - outputs[1]).max() < 0.05


def test_int8_weights_are_smaller_and_nearly_the_same(tmp_path, caplog):
    whole, small = (export("tiny-x4", tmp_path / f"{int8}.onnx", int8=int8) for int8 in (False, True))
    assert small.bytes < whole.bytes and whole.error < 1e-4 < small.error < 2e-2
    assert onnx.TensorProto.INT8 in {w.data_type for w in onnx.load(small.path).graph.initializer}
    assert not caplog.records and sorted(file.name for file in tmp_path.glob("*.onnx*")) == ["False.onnx", "True.onnx"]


def test_int8_weights_that_change_the_picture_are_not_written(tmp_path, checkpoint):
    with pytest.raises(DtkdError, match="more than 2e-02: not written"):
        export(checkpoint("classical"), tmp_path / "random.onnx", int8=True)
    assert not list(tmp_path.glob("*.onnx*"))


def test_int8_is_for_onnx_alone(tmp_path, checkpoint):
    for name, half in (("a.safetensors", False), ("a.onnx", True)):
        with pytest.raises(DtkdError, match="int8 weights are for ONNX files only"):
            export(checkpoint(), tmp_path / name, half=half, int8=True)


@pytest.mark.parametrize("half", [False, True])
def test_safetensors_open_in_spandrel_and_here(tmp_path, checkpoint, half):
    path = checkpoint("real")
    exported = export(path, tmp_path / "new" / "s.safetensors", "safetensors", half=half)
    found = spandrel.ModelLoader("cpu").load_from_file(exported.path)
    ours = load_student(exported.path)
    assert (found.architecture.id, found.scale) == ("SwinIR", 4)
    assert read_metadata(exported.path) == {"preset": "custom", "scale": 4, "step": 7}
    lr = random_image(1, 3, 24, 17)
    with torch.no_grad():
        assert_close(found.model.float().eval()(lr), ours(lr), 1e-4)
        assert_close(ours(lr), load_student(path)(lr), 0.05 if half else 0.0)
    assert (exported.bytes < 0.6 * path.stat().st_size) == half


def test_a_hugging_face_folder_comes_back_as_it_went(tmp_path, checkpoint):
    path = checkpoint()
    exported = export(path, tmp_path / "folder", "huggingface")
    names = sorted(file.name for file in exported.path.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((exported.path / "config.json").read_text())
    assert config["model_type"] == "swinir" and config["scale"] == 4 and config["depths"] == [2, 3]
    student = HubStudent.from_pretrained(exported.path)
    assert not student.training and student.metadata == {"step": 7}
    lr = random_image(1, 3, 16, 16)
    with torch.no_grad():
        assert_close(student(lr), load_student(path)(lr), 0.0)
    assert export(exported.path, tmp_path / "back.safetensors", "safetensors").bytes > 0
    student.save_pretrained(tmp_path / "again")
    again = HubStudent.from_pretrained(tmp_path / "again")
    assert all(torch.equal(again.state_dict()[key], value) for key, value in student.state_dict().items())


def test_pushing_uploads_the_folder(tmp_path, checkpoint, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **kwargs):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **kwargs):
            uploaded[repo_id] = sorted(file.name for file in folder_path.iterdir())
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    export(checkpoint(), tmp_path / "folder", "huggingface")
    HubStudent.from_pretrained(tmp_path / "folder").push_to_hub("someone/student")
    assert uploaded == {"someone/student": ["README.md", "config.json", "model.safetensors"]}


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("a.onnx", None, "onnx"),
        ("a.ONNX", "onnx", "onnx"),
        ("a.safetensors", None, "safetensors"),
        ("my-student", None, "huggingface"),
        ("v1.5", "huggingface", "huggingface"),
        ("folder", None, "huggingface"),
    ],
)
def test_the_name_says_the_format(tmp_path, name, kind, expected):
    (tmp_path / "folder").mkdir()
    assert format_of(tmp_path / name, kind) == expected


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.onnx", "safetensors"), ("a", "onnx"), ("a.pth", None), ("v1.5", None), ("folder", "onnx"), ("there", None)],
)
def test_a_name_of_another_format_is_refused(tmp_path, name, kind):
    (tmp_path / "folder").mkdir()
    (tmp_path / "there").touch()
    with pytest.raises(DtkdError, match=r"is no name for .* give FILE\.safetensors, FILE\.onnx, or a folder"):
        format_of(tmp_path / name, kind)


def test_mistakes_are_named(tmp_path, checkpoint, monkeypatch):
    path = checkpoint()
    with pytest.raises(DtkdError, match="cannot read the checkpoint"):
        export(tmp_path / "none.safetensors", tmp_path / "x.onnx", "onnx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DtkdError, match=r"holds no model\.safetensors"):
        HubStudent.from_pretrained(tmp_path / "empty")
    model = load_student(path)
    with torch.no_grad():
        model.conv_first.weight[0, 0, 0, 0] = 1e6
    save_student(model, tmp_path / "large.safetensors", {})
    with pytest.raises(DtkdError, match=r"conv_first\.weight has values up to 1000000, too large for --half"):
        export(tmp_path / "large.safetensors", tmp_path / "x.onnx", "onnx", half=True)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DtkdError, match=r"ONNX export needs onnxruntime: pip install 'dtkd\[onnx\]'"):
        export(path, tmp_path / "x.onnx", "onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_the_checkpoint_itself_is_not_replaced(tmp_path, checkpoint):
    path = checkpoint()
    before = path.read_bytes()
    with pytest.raises(DtkdError, match="is the checkpoint itself"):
        export(path, path, half=True, overwrite=True)
    assert path.read_bytes() == before
    folder = export(path, tmp_path / "folder").path
    with pytest.raises(DtkdError, match="is the checkpoint itself"):
        export(folder, folder, half=True, overwrite=True)


class TestWhatIsThere:
    @pytest.mark.parametrize("name", ["s.onnx", "s.safetensors", "folder"])
    def test_an_export_is_replaced_when_asked(self, tmp_path, checkpoint, name):
        whole = export(checkpoint(), tmp_path / name)
        with pytest.raises(DtkdError, match="pass --overwrite to replace it"):
            export(checkpoint(), tmp_path / name, half=True)
        assert export(checkpoint(), tmp_path / name, half=True, overwrite=True).bytes < whole.bytes

    @pytest.mark.parametrize("name", ["s.onnx", "s.safetensors"])
    def test_files_of_others_are_never_replaced(self, tmp_path, checkpoint, name):
        graph = onnx.helper.make_graph([], "theirs", [], [])
        onnx.save(onnx.helper.make_model(graph), tmp_path / "theirs.onnx")
        safetensors.torch.save_file({"theirs": torch.zeros(1)}, tmp_path / "theirs.safetensors")
        foreign = (tmp_path / "theirs").with_suffix(f".{name[2:]}").read_bytes()
        for content in (b"", b"words", foreign):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DtkdError, match=r"exists and is not a student .* of ours"):
                export(checkpoint(), tmp_path / name, overwrite=True)
            assert (tmp_path / name).read_bytes() == content
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        with pytest.raises(DtkdError, match=r"is a folder, and a student .* is one file"):
            export(checkpoint(), tmp_path / name)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "notes.txt", "config.toml"])
    def test_a_folder_of_others_is_left_alone(self, tmp_path, checkpoint, name):
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / name).write_text('{"model_type": "bert"}')
        with pytest.raises(DtkdError, match=f"holds {name} and is not a student of ours"):
            export(checkpoint(), folder, overwrite=True)
        assert [file.name for file in folder.iterdir()] == [name]
        assert (folder / name).read_text() == '{"model_type": "bert"}'

    def test_a_clone_of_a_repository_is_filled_and_its_card_kept(self, tmp_path, checkpoint):
        folder = tmp_path / "clone"
        (folder / ".git").mkdir(parents=True)
        (folder / "README.md").write_text("mine")
        export(checkpoint(), folder)
        assert (folder / "README.md").read_text() == "mine" and (folder / "model.safetensors").exists()


def test_a_wrong_onnx_file_is_not_written(tmp_path, checkpoint, monkeypatch):
    differences = dict.fromkeys(CHECKED_SIZES, 0.0) | {CHECKED_SIZES[-1]: float("nan")}
    monkeypatch.setattr("student.export._difference", lambda model, session, size: differences[size])
    with pytest.raises(DtkdError, match="the ONNX file differs from the network by nan"):
        export(checkpoint(), tmp_path / "x.onnx", "onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["light.safetensors"]
