"""Settings of a teacher training run: one TOML section for each component."""

from dataclasses import dataclass, field

from pipeline import config
from pipeline.degradation import Degradation
from pipeline.system.device import Precision
from pipeline.system.errors import DtkdError
from pipeline.training.processes import DeviceChoice

FREE_KEYS = (
    "data.workers", "sampling.steps", "sampling.temperature",
    "train.device", "train.keep", "train.log_every", "train.save_every", "train.val_every",
)  # fmt: skip
"""Settings that may change when a run goes on, because its weights do not depend on them."""
SCALES = (2, 4, 8)


@dataclass(frozen=True)
class TeacherTrainSettings:
    """The optimisation; TOML section [train]."""

    steps: int = 60_000
    """Optimiser steps, the predictor's included."""
    predictor_share: float = 0.5
    """Share of the steps that train the predictor; the refining network is trained after it, with it frozen."""
    batch_size: int = 8
    """Patches a step, over all processes together."""
    patch: int = 48
    """Side of an LR patch in pixels, a multiple of 2 to the number of model.channels less one."""
    lr: float = 5e-4
    """Highest learning rate (AdamW, betas .9 and .99): a warm-up, constant, then linear to zero, for either network."""
    lr_warmup: int = 200
    """Steps over which a network's learning rate rises."""
    lr_decay: float = 0.3
    """Share of a network's steps over which its learning rate falls to zero."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay."""
    clip: float = 1.0
    """Highest gradient norm; larger gradients are scaled down. 0 leaves them."""
    ema: float = 0.999
    """Decay a step of the moving average of the weights, which is what is saved as the teacher; warms up from .1."""
    seed: int = 0
    """Of patches, noise and initial weights."""
    init: str = ""
    """Teacher whose weights to start from, embedded or a folder; empty starts from random ones."""
    precision: Precision = "auto"
    """auto is bf16 where GPU or CPU (AVX512-BF16, AMX) compute in it natively, else fp32; decided when a run begins.
    Weights and loss are fp32 always."""
    device: DeviceChoice = "auto"
    """auto takes an accelerator where there is one."""
    log_every: int = 50
    """Steps between lines of the log."""
    val_every: int = 1000
    """Steps between validations on the held-out photos."""
    save_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints that are kept, newest first."""

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        at_least_one = ("steps", "batch_size", "patch", "log_every", "val_every", "save_every", "keep")
        config.refuse_below("train", self, 1, *at_least_one)
        config.refuse_below("train", self, 0, "lr_warmup", "weight_decay", "clip", "seed")
        if self.lr <= 0:
            raise DtkdError(f"train.lr must be positive, got {self.lr}")
        for name in ("predictor_share", "lr_decay"):
            _refuse_outside("train", name, getattr(self, name))
        if not 0 <= self.ema < 1:
            raise DtkdError(f"train.ema must be at least 0 and below 1, got {self.ema}")


@dataclass(frozen=True)
class TeacherModelSettings:
    """Both networks; TOML section [model]."""

    channels: tuple[int, ...] = (64, 96, 128)
    """Width of both networks at each resolution, finest first; multiples of 8."""
    layers: int = 2
    """Residual blocks at each resolution."""
    whitening: float = 0.5
    """Power of each level's coefficient spread that it is divided by: 0 leaves pixel scale, 1 whitens fully."""

    def __post_init__(self) -> None:
        """Refuse values that no network can have."""
        config.refuse_below("model", self, 1, "layers")
        if not self.channels or any(width < 8 or width % 8 for width in self.channels):
            raise DtkdError(f"model.channels must be multiples of 8, got {self.channels}")
        _refuse_outside("model", "whitening", self.whitening)


@dataclass(frozen=True)
class SamplingSettings:
    """How the finished teacher samples where nothing else is asked for; TOML section [sampling]."""

    steps: int = 10
    """Network evaluations that it refines with."""
    temperature: float = 1.0
    """Standard deviation of its initial noise: less than 1 trades texture for cleanness."""

    def __post_init__(self) -> None:
        """Refuse values that no teacher can have."""
        config.refuse_below("sampling", self, 1, "steps")
        config.refuse_below("sampling", self, 0, "temperature")


@dataclass(frozen=True)
class PatchSettings:
    """Where patches come from; TOML section [data]."""

    hold_out: int = 4
    """Photos kept out of training for validation."""
    workers: int = 1
    """Processes that make patches, for each training process, at most one a core; 0: the training process does it.
    Results do not depend on it."""

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        config.refuse_below("data", self, 0, "hold_out", "workers")


@dataclass(frozen=True)
class TeacherRunSettings:
    """All settings of a run; `pipeline.config.load(TeacherRunSettings, toml, overrides)` makes them."""

    train: TeacherTrainSettings = field(default_factory=TeacherTrainSettings)
    model: TeacherModelSettings = field(default_factory=TeacherModelSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    data: PatchSettings = field(default_factory=PatchSettings)
    degradation: Degradation = field(default_factory=Degradation)
    """What the teacher learns to undo; its scale becomes the teacher's."""

    def __post_init__(self) -> None:
        """Check what concerns two sections, and what a teacher can undo."""
        step = 2 ** (len(self.model.channels) - 1)
        if self.train.patch % step:
            count = len(self.model.channels)
            raise DtkdError(
                f"train.patch must be a multiple of {step} for {count} model.channels, got {self.train.patch}"
            )
        if self.degradation.scale not in SCALES:
            raise DtkdError(f"a teacher of this kind is made for scale 2, 4 or 8, got {self.degradation.scale}")
        if self.degradation.kind == "paired":
            raise DtkdError("a teacher of this kind is trained on photos: degradation.kind must be bicubic or real")


def _refuse_outside(section: str, name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise DtkdError(f"{section}.{name} must be within 0..1, got {value}")
