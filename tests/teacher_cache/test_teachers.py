import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    LDMSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from PIL import Image
from skimage import data
from torch.nn.functional import avg_pool2d
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipeline.system.errors import DtkdError
from teacher_cache import teachers
from teacher_cache.teachers.haar_diffusion import HaarDiffusionPipeline, fold, unfold, upsample


def haar_network(inputs, outputs):
    return UNet2DModel(
        in_channels=inputs,
        out_channels=outputs,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        add_attention=False,
        norm_num_groups=4,
    )


def haar_pipeline(scale=4, **options):
    torch.manual_seed(0)
    channels, levels = 3 * scale**2, scale.bit_length() - 1
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    pipe = HaarDiffusionPipeline(
        haar_network(3, channels),
        haar_network(2 * channels + 3, channels),
        scheduler,
        scale,
        [[0.3, 0.2], [0.2, 0.1], [0.1, 0.05], [0.05, 0.03]][: levels + 1],
        **options,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def haar_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    haar_pipeline(steps=3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ldm_folder(tmp_path_factory):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 8}
    unet = UNet2DModel(in_channels=6, out_channels=3, block_out_channels=(16, 32), layers_per_block=1, **blocks)
    coder = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vqvae = VQModel(block_out_channels=(8, 8, 8), latent_channels=3, norm_num_groups=8, **coder)
    folder = tmp_path_factory.mktemp("ldm")
    LDMSuperResolutionPipeline(vqvae, unet, DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd")
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=3,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        in_channels=7,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
        num_class_embeds=1000,
    )
    coder = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKL(block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=8, **coder)
    pipe = StableDiffusionUpscalePipeline(
        vae, text, tokenizer, unet, DDPMScheduler(), DDIMScheduler(prediction_type="v_prediction"), max_noise_level=350
    )
    pipe.save_pretrained(folder / "pipe")
    return folder / "pipe"


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_fold_is_orthonormal_and_inverted_by_unfold(levels):
    x = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    z = fold(x, levels)
    assert z.shape == (2, 3 * 4**levels, 32 >> levels, 48 >> levels)
    assert z.square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-5)
    torch.testing.assert_close(unfold(z, levels), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [2, 4])
def test_encode_and_decode_are_inverse(scale):
    pipe = haar_pipeline(scale)
    hr, lr = torch.rand(1, 3, 16 * scale, 16 * scale), torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(pipe.decode(pipe.encode(hr, lr), lr), hr, atol=1e-5, rtol=0)


def test_sampling_with_an_oracle_that_knows_the_residual_returns_the_photo():
    """With a network that sees the clean residual exactly, every number of steps ends at the HR image."""
    pipe = haar_pipeline()
    hr, lr = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 8, 8)
    clean = (pipe.encode(hr, lr) - pipe.predict(lr).detach()) / pipe.band_factors(lr.device)
    pipe.refine = lambda noisy, t, prediction, lr: clean
    for steps in (1, 2, 7):
        out = pipe(lr, [torch.Generator().manual_seed(0)], num_inference_steps=steps)
        torch.testing.assert_close(out, hr, atol=1e-4, rtol=0)


def test_networks_that_answer_zero_leave_the_bicubic_base():
    pipe = haar_pipeline()
    pipe.predict = pipe.refine = lambda *inputs: torch.zeros(1, 48, 8, 8)
    lr = torch.rand(1, 3, 8, 8)
    out = pipe(lr, [torch.Generator().manual_seed(0)])
    torch.testing.assert_close(out, upsample(lr, 4).clamp(0, 1), atol=1e-5, rtol=0)


def test_haar_pipeline_refuses_networks_for_another_scale():
    pipe = haar_pipeline()
    with pytest.raises(DtkdError, match="x2 teacher needs 2 band scales and 27 UNet inputs, got 2 and 99"):
        HaarDiffusionPipeline(pipe.predictor, pipe.unet, DDIMScheduler(), scale=2, band_scale=[[1, 1]] * 2)


@pytest.mark.parametrize(
    ("kind", "steps"), [("haar_folder", None), ("ldm_folder", 2), ("sd_folder", 2)], ids=["embedded", "ldm", "sd-x4"]
)
def test_a_teacher_is_a_function_of_lr_and_seed(kind, steps, request):
    folder = request.getfixturevalue(kind)
    name = {"ldm_folder": "ldm:", "sd_folder": "sd-x4:"}.get(kind, "") + str(folder)
    teacher = teachers.load(name, steps=steps)
    lr = torch.rand(3, 3, 10, 13, generator=torch.Generator().manual_seed(2))  # sides that no pipeline takes unpadded
    out = teacher.restore(lr, [5, 6, 7])
    assert out.shape == (3, 3, 40, 52)
    assert out.dtype == torch.float32
    assert 0 <= out.min() < out.max() <= 1
    again = teacher.restore(lr.flip(0), [7, 6, 5]).flip(0)
    torch.testing.assert_close(again, out, atol=1e-5, rtol=0)  # companions and order do not matter
    assert (teacher.restore(lr, [5, 6, 8])[2] - out[2]).abs().max() > 1e-3  # the seed does
    assert json.dumps(teacher.fingerprint())


def test_weights_of_a_teacher_are_in_its_fingerprint(haar_folder, tmp_path):
    other = haar_pipeline(steps=3)
    other.unet.conv_in.bias.data[0] += 1e-3
    other.save_pretrained(tmp_path)
    one, two = teachers.load(str(haar_folder)).fingerprint(), teachers.load(str(tmp_path)).fingerprint()
    assert one["weights"] != two["weights"]
    assert teachers.load(str(haar_folder)).fingerprint() == one
    assert teachers.load(str(haar_folder), steps=4).fingerprint()["steps"] == 4


def test_sd_x4_sees_the_lr_image_in_minus_one_to_one(sd_folder, monkeypatch):
    """A dark LR image must not be taken for one in [-1, 1] that needs no mapping (or the reverse)."""
    teacher = teachers.load(f"sd-x4:{sd_folder}", steps=1)
    seen = []
    original = teacher._pipe.unet.forward
    monkeypatch.setattr(teacher._pipe.unet, "forward", lambda x, *a, **k: (seen.append(x), original(x, *a, **k))[1])
    teacher._pipe.low_res_scheduler.add_noise = lambda image, noise, level: image
    teacher.restore(torch.full((1, 3, 8, 8), 0.1), [0])
    torch.testing.assert_close(seen[0][:, 4:], torch.full((1, 3, 8, 8), -0.8), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nonsense", {}, "no teacher 'nonsense': expected embedded"),
        ("embedded", {"steps": 0}, "steps must be at least 1, got 0"),
        ("import:nowhere", {}, "no such folder"),
        ("ldm:nowhere-at-all", {}, "cannot load a LDMSuperResolutionPipeline from nowhere-at-all"),
        ("ldm", {"dtype": "bf16"}, "fp32 only"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(name, options, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DtkdError, match=message) as error:
        teachers.load(name, **options)
    assert "\n" not in str(error.value)


def test_a_folder_of_another_scale_is_refused(haar_folder):
    with pytest.raises(DtkdError, match="made for scale 4, got --scale 3"):
        teachers.load(str(haar_folder), scale=3)


def test_a_folder_with_pickled_weights_is_refused(haar_folder, tmp_path):
    pipe = haar_pipeline()
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(DtkdError, match="cannot load a HaarDiffusionPipeline"):
        teachers.load(str(tmp_path))


def test_imported_outputs_are_found_by_path_then_by_stem(tmp_path):
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for name in ("a/one.png", "b/one.webp", "two.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.save(tmp_path / name)
    teacher = teachers.load(f"import:{tmp_path}")
    assert teacher.lookup("a/one.jpeg") == tmp_path / "a/one.png"
    assert teacher.lookup("deep/two.png") == tmp_path / "two.jpg"
    with pytest.raises(DtkdError, match="several imported outputs"):
        teacher.lookup("c/one.png")
    with pytest.raises(DtkdError, match="no imported output for three"):
        teacher.lookup("three.png")
    with pytest.raises(DtkdError, match=r"two\.jpg would serve deep/two\.png and two\.png"):
        teacher.refuse_shared(["deep/two.png", "three.png", "two.png"])
    before = teacher.fingerprint()
    Image.fromarray(np.ones((8, 8, 3), np.uint8)).save(tmp_path / "two.jpg")
    assert teachers.load(f"import:{tmp_path}").fingerprint() != before


def test_a_picture_of_another_folder_is_never_taken(tmp_path):
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "x").mkdir()
    image.save(tmp_path / "x" / "001.png")
    teacher = teachers.load(f"import:{tmp_path}")
    for photo in ("y/001.png", "001.png"):
        with pytest.raises(DtkdError, match=f"no imported output for {photo}"):
            teacher.lookup(photo)
    image.save(tmp_path / "001.png")
    teacher = teachers.load(f"import:{tmp_path}")
    assert teacher.lookup("001.jpg") == tmp_path / "001.png"
    with pytest.raises(DtkdError, match="several imported outputs"):
        teacher.lookup("y/001.png")


def test_two_pictures_for_one_photo_are_refused(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    with pytest.raises(DtkdError, match=r"a\.jpg and a\.png are both for photo a: remove one") as error:
        teachers.load(f"import:{tmp_path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["", "ldm", "sd-x4"])
def test_where_a_teacher_lies_is_not_in_its_fingerprint(
    kind, haar_folder, ldm_folder, sd_folder, tmp_path, monkeypatch
):
    folder = {"": haar_folder, "ldm": ldm_folder, "sd-x4": sd_folder}[kind]
    copy = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, copy)
    monkeypatch.chdir(copy)
    names = [f"{kind}:{place}".removeprefix(":") for place in (folder, copy, ".")]
    loaded = [teachers.load(name, steps=2) for name in names]
    assert [teacher.name for teacher in loaded] == names
    one, *others = (teacher.fingerprint() for teacher in loaded)
    assert others == [one, one]
    assert one["name"] == (kind or folder.name)
    assert "repository" not in one
    assert str(folder.parent) not in json.dumps(one)


def test_a_repository_is_in_the_fingerprint():
    assert teachers._repository("somebody/some-model") == {"repository": "somebody/some-model"}


@pytest.mark.parametrize("name", sorted(teachers.EMBEDDED))
def test_two_seeds_differ_in_texture_and_agree_in_tone(name):
    lr = torch.from_numpy(data.astronaut()[128:256:4, 128:256:4].copy()).permute(2, 0, 1)[None] / 255
    one, two = (teachers.load(name).restore(lr, [seed]) for seed in (1, 2))
    difference = one - two
    tone, texture = avg_pool2d(difference, 4).std(), difference.std()
    assert texture > 2 / 255 and tone < texture / 3


def test_the_embedded_teacher_refuses_fp16():
    with pytest.raises(DtkdError, match="embedded runs in fp32 or bf16"):
        teachers.load("embedded", dtype="fp16", device="meta")


def test_the_embedded_teacher_of_another_degradation_is_warned_of():
    assert teachers.warning("embedded", "real") is None
    assert teachers.warning("embedded-bicubic", "bicubic") is None
    assert teachers.warning("embedded", "paired") is None
    assert teachers.warning("ldm", "bicubic") is None
    assert "embedded-bicubic restores bicubic LR images better" in teachers.warning("embedded", "bicubic")
