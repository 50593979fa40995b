import json
import tomllib
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from cache_support import NoisyBicubic, make_corpus, settings

from pipeline import config
from pipeline.images import to_image, to_tensor
from pipeline.system.errors import DtkdError
from student.stream import open_cache
from student.study.audit import audit
from student.study.audit_plots import audit_svg
from student.study.bands import band_names, bicubic, measure
from student.training.settings import RunSettings
from teacher_cache.building.build import build_cache

NOISE = 0.02


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    build_cache(str(make_corpus(folder / "photos")), folder / "cache", NoisyBicubic(noise=NOISE), settings())
    return open_cache(folder / "cache")


def half(lr):
    """A student that keeps half of bicubic's contrast."""
    return 0.25 + bicubic(lr, 4) / 2


def test_noise_of_a_known_strength_has_the_consistency_that_follows_from_it(cache):
    """T = bicubic + noise, so rho = e / (e + noise^2), e bicubic's mean square, and the noise itself is not shared."""
    found = audit(cache, student=half, teacher=NoisyBicubic(noise=NOISE), tiles=16)
    assert (found.tiles, found.photos) == (16, 4)
    for band in found.bands[1:]:
        energy = band.bicubic_rms.value**2
        assert band.teacher_rms.value**2 == pytest.approx(energy + NOISE**2, rel=0.05)
        assert band.rho.value == pytest.approx(energy / (energy + NOISE**2), abs=0.03)
        assert abs(band.rho_added.value) < 0.05
        assert band.ceiling_rms == pytest.approx(band.bicubic_rms.value, rel=0.05, abs=0.001)
        assert band.student_rms.value == pytest.approx(band.bicubic_rms.value / 2, rel=0.05)  # it sees no surroundings
        assert band.rho.low <= band.rho.value <= band.rho.high
    assert found.l_std.value == pytest.approx(255 * NOISE * 2 / np.pi**0.5 / 2**0.5, rel=0.1)  # E|N - N'| / sqrt 2
    assert found.drift.value < 1


def test_stored_outputs_are_second_seeds_without_a_teacher(cache, tmp_path):
    """Two seeds are two seeds, whoever asks for the second one; a teacher that is given is asked."""
    teacher = NoisyBicubic(noise=NOISE)
    build_cache(str(make_corpus(tmp_path / "photos")), tmp_path / "two", teacher, settings(samples=2))
    several = open_cache(tmp_path / "two")
    asked = teacher.calls
    stored, live = audit(several, student=half, tiles=16), audit(cache, student=half, teacher=teacher, tiles=16)
    assert teacher.calls > asked and stored.weights == pytest.approx(live.weights, rel=0.05)
    for one, other in zip((*stored.bands, *stored.groups), (*live.bands, *live.groups), strict=True):
        assert one.teacher_rms.value == other.teacher_rms.value, "the first outputs are the same"
        assert one.rho.value == pytest.approx(other.rho.value, abs=0.03) and one.rho.value < 1 - 1e-5
    assert stored.l_std.value == pytest.approx(live.l_std.value, rel=0.05)
    assert stored.g_std.value == pytest.approx(live.g_std.value, rel=1.0) and stored.g_std.value > 0
    third = audit(several, teacher=NoisyBicubic(noise=0), tiles=4)  # says that it adds nothing of its own
    assert third.bands[-1].rho.value != pytest.approx(audit(several, tiles=4).bands[-1].rho.value, abs=0.01)


def test_weights_are_discrepancy_times_consistency_and_train_student_takes_them(cache, tmp_path):
    found = audit(cache, student=half, teacher=NoisyBicubic(noise=NOISE), tiles=16)
    raw = [group.from_student.value * group.rho.value for group in found.groups]
    assert found.weights == pytest.approx([3 * value / sum(raw) for value in raw])
    path = tmp_path / "weights.toml"
    path.write_text(found.weights_toml())
    loaded = config.load(RunSettings, path, [])
    assert loaded.loss.weights == pytest.approx(tomllib.loads(found.weights_toml())["loss"]["weights"])


def test_measured_figures_are_those_of_the_tiles(cache):
    import pywt

    found = audit(cache, tiles=len(cache))
    squares: dict[str, list[float]] = {name: [] for name, _ in band_names(2)}
    for index in range(len(cache)):
        teacher = cache.images(index)[2].astype(np.float64) / 255
        low, *details = pywt.wavedec2(teacher, "haar", level=2, axes=(0, 1))
        squares["LL2"].append(np.square(low / 4).mean())
        for level, detail in zip((2, 1), details, strict=True):
            for name, values in zip(("LH", "HL", "HH"), detail, strict=True):
                squares[f"{name}{level}"].append(np.square(values).mean())
    for band in found.bands:
        assert band.teacher_rms.value == pytest.approx(np.mean(squares[band.name]) ** 0.5, rel=1e-4), band.name
        assert band.rho is None and band.student_rms is None
    assert found.weights is None
    with pytest.raises(DtkdError, match="need a GT-only student"):
        found.weights_toml()


def test_the_second_seed_sees_what_the_teacher_saw(cache):
    """With the cache's own seeds the second picture would be the first one: context and margins are right."""
    seen = []

    class Watch(NoisyBicubic):
        def restore(self, lr, seeds):
            seen.append(lr)
            return super().restore(lr, seeds)

    audit(cache, teacher=Watch(noise=0.0), tiles=3)
    context = (seen[0].shape[-1] - cache.images(0)[0].shape[1]) // 2
    assert context == 4
    inner = seen[0][0, :, context:-context, context:-context]
    assert np.array_equal(to_image(inner), cache.images(0)[0])
    assert torch.equal(seen[0][0], to_tensor(cache.seen_by_teacher(0)))


def test_text_json_and_plots(cache):
    found = audit(cache, student=half, teacher=NoisyBicubic(noise=NOISE), tiles=8)
    text = "\n".join(found.lines())
    assert "of what it adds," in text and "calibrated weights (low, mid, high): " in text and "photos or more" in text
    loaded = json.loads(json.dumps(found.to_json()))
    assert [row["name"] for row in loaded["bands"]] == [name for name, _ in band_names(2)]
    svg = ElementTree.fromstring(audit_svg(found))
    assert svg.tag.endswith("svg")
    assert audit_svg(found) == audit_svg(found)
    assert "no second seed" in audit_svg(audit(cache, tiles=4))


def test_what_cannot_be_audited(cache):
    with pytest.raises(DtkdError, match="levels must be 1 to 3"):
        audit(cache, levels=0)
    with pytest.raises(DtkdError, match="is x2, the cache x4"):
        audit(cache, teacher=NoisyBicubic(scale=2))


def test_a_band_that_is_not_there_is_left_out():
    image = torch.rand(1, 3, 16, 16)
    from student.study.bands import Pictures

    rows = measure(Pictures(image, image, image, None, None), 1, "haar")
    assert rows.shape[0] == len(band_names(1)) == 4
    assert np.isnan(rows[:, 3]).all() and np.isfinite(rows[:, :3]).all()
