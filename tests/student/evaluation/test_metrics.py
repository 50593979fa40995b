import http.server
import json
import math
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pipeline import images
from pipeline.filters import bicubic
from pipeline.system.errors import DtkdError, UsageError
from student.evaluation import metrics
from student.evaluation.libraries import offline

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the evaluation sets are not beside this checkout")


@pytest.fixture
def pair():
    gt = skimage.data.chelsea()[20:180, 50:233]
    noise = np.random.default_rng(0).normal(0, 9, gt.shape)
    return np.clip(gt + noise, 0, 255).astype(np.uint8), gt


@pytest.mark.parametrize("border", [0, 4, 7])
def test_fidelity_equals_scikit_image_on_luma(pair, border):
    sr, gt = (rgb2ycbcr(image)[..., 0] for image in pair)
    inside = slice(border, -border or None)
    sr, gt = sr[inside, inside], gt[inside, inside]
    expected_ssim = structural_similarity(
        sr, gt, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert metrics.psnr_y(*pair, border) == pytest.approx(peak_signal_noise_ratio(gt, sr, data_range=255), abs=1e-9)
    assert metrics.ssim_y(*pair, border) == pytest.approx(expected_ssim, abs=1e-9)


def test_equal_images_are_perfect(pair):
    _, gt = pair
    assert metrics.psnr_y(gt, gt, 4) == math.inf
    assert metrics.ssim_y(gt, gt, 4) == pytest.approx(1)


def test_refuses_other_sizes_and_too_small_images(pair):
    sr, gt = pair
    with pytest.raises(DtkdError, match="183x160 against 182x160"):
        metrics.psnr_y(sr, gt[:, 1:], 0)
    with pytest.raises(DtkdError, match="16x16 leaves less than 11x11 pixels inside a border of 4"):
        metrics.ssim_y(sr[:16, :16], gt[:16, :16], 4)


@needs_shared
def test_fidelity_equals_an_independent_judge_on_a_published_set(tmp_path):
    """Set5 x4 bicubic: the judge's figures image by image, and the published 28.42 dB within the rounding of luma."""
    expected, ours = {}, {}
    for path in sorted((SHARED / "data/eval/Set5/LR").iterdir()):
        lr, gt = images.load_rgb(path), images.load_rgb(SHARED / "data/eval/Set5/HR" / path.name)
        sr = bicubic(lr, 4)
        gt = gt[: sr.shape[0], : sr.shape[1]]
        images.save(tmp_path / f"{path.stem}.png", sr)
        ours[path.stem] = {"psnr_y": metrics.psnr_y(sr, gt, 4), "ssim_y": metrics.ssim_y(sr, gt, 4)}
    judge = [sys.executable, str(SHARED / "tools/score.py"), str(tmp_path), "--hr", str(SHARED / "data/eval/Set5/HR")]
    subprocess.run([*judge, "--no-niqe", "--json", str(tmp_path / "scores.json")], check=True, capture_output=True)
    expected = json.loads((tmp_path / "scores.json").read_text())["images"]
    assert ours.keys() == expected.keys()
    for name, figures in ours.items():
        for metric, value in figures.items():
            assert value == pytest.approx(expected[name][metric], abs=1e-9), (name, metric)
    assert np.mean([figures["psnr_y"] for figures in ours.values()]) == pytest.approx(28.42, abs=0.02)
    assert np.mean([figures["ssim_y"] for figures in ours.values()]) == pytest.approx(0.8104, abs=0.001)


def test_pinned_pyiqa_agrees_with_ours(pair):
    """With BT.601 pinned, pyiqa's psnry and ssim are ours without a border; with its default luma they are not."""
    psnry, ssim = metrics.load(["psnry", "ssim"]).metrics
    assert psnry.settings["color_space"] == "ycbcr"
    assert psnry.measure(*pair, 4) == pytest.approx(metrics.psnr_y(*pair, 0), abs=1e-3)
    assert ssim.measure(*pair, 4) == pytest.approx(metrics.ssim_y(*pair, 0), abs=2e-3)


def test_the_pins_given_replace_our_own(pair):
    """Without pins pyiqa's own luma is taken: YIQ."""
    (ours,), (theirs,) = metrics.load(["psnry"]).metrics, metrics.load(["psnry"], pins={}).metrics
    assert theirs.settings.get("color_space") != "ycbcr"
    assert abs(theirs.measure(*pair, 0) - ours.measure(*pair, 0)) > 0.1


def test_piqe_needs_no_reference_and_no_download(pair):
    loaded = metrics.load(["piqe"])
    (piqe,) = loaded.metrics
    assert piqe.reference is None
    assert piqe.lower_is_better
    assert piqe.measure(pair[0], None, 0) > piqe.measure(pair[1], None, 0)


def test_unknown_names_the_nearest():
    with pytest.raises(DtkdError, match="unknown metric 'psnr_yy': the nearest known one is 'psnr_y'"):
        metrics.load(["psnr_yy"])
    with pytest.raises(UsageError, match="unknown metric 'inception_score'"):
        metrics.load(["inception_score"])
    for wrong, near in (("PSNR_Y", "psnr_y"), ("Teacher-PSNR_Y", "teacher_psnr_y"), ("LPIPS", "lpips")):
        with pytest.raises(UsageError, match=f"unknown metric '{wrong}': the nearest known one is '{near}'"):
            metrics.load([wrong])


@pytest.fixture
def server(monkeypatch):
    """Address of a host that answers everything with an error."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    monkeypatch.setattr("pyiqa.utils.download_util.DEFAULT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))


def test_the_host_that_the_user_chose_is_asked_for_weights(server, tmp_path):
    """In a process of its own, as both libraries read the environment when they are imported."""
    code = "from student.evaluation import metrics; print(metrics.load(['niqe']).unavailable[0].reason)"
    chosen = {"HF_ENDPOINT": server, "HF_HUB_OFFLINE": "0", "TORCH_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | chosen, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "HTTPError: HTTP Error 501" in done.stdout, done.stdout  # before: huggingface.co does not answer


def test_who_forbade_the_network_is_not_asked_to_wait_for_it(no_weights, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(offline, "reachable", lambda url: pytest.fail("the network was asked"))
    (missing,) = metrics.load(["niqe"]).unavailable
    assert "HF_HUB_OFFLINE is set" in missing.reason and missing.remedy.startswith("unset it")


def test_without_network_a_learned_metric_is_told_apart_and_the_others_run(no_weights, monkeypatch):
    monkeypatch.setattr(offline, "reachable", lambda url: False)
    monkeypatch.setattr(offline, "forbidden", lambda: False)
    loaded = metrics.load(["niqe", "psnr_y", "lpips"])
    assert [metric.name for metric in loaded.metrics] == ["psnr_y"]
    assert [missing.name for missing in loaded.unavailable] == ["niqe", "lpips"]
    assert all("weights are not on this machine" in missing.reason for missing in loaded.unavailable)
    assert all("network" in missing.remedy for missing in loaded.unavailable)


def test_without_pyiqa_only_its_metrics_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    loaded = metrics.load(["ssim_y", "piqe"])
    assert [metric.name for metric in loaded.metrics] == ["ssim_y"]
    assert loaded.unavailable[0].remedy == "pip install 'dtkd[metrics]'"


class TestOffline:
    def test_a_host_that_answers_anything_is_reachable(self, server):
        assert offline.reachable(server)  # it answers 501 to HEAD

    def test_a_closed_port_is_not(self, monkeypatch):
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            assert not offline.reachable(f"http://127.0.0.1:{unused.getsockname()[1]}")

    def test_no_network_refuses_connections_and_gives_them_back(self, server):
        address = ("127.0.0.1", int(server.rpartition(":")[2]))
        with offline.no_network(), pytest.raises(OSError, match="no network"):
            socket.create_connection(address)
        with offline.no_network(), pytest.raises(OSError, match="no network"):
            socket.socket().connect(address)
        socket.create_connection(address).close()

    def test_patience_is_for_the_block_only(self):
        before = socket.getdefaulttimeout()
        with offline.patience(7):
            assert socket.getdefaulttimeout() == 7
        assert socket.getdefaulttimeout() == before
