"""Settings of a training run: one TOML section for each component."""

from dataclasses import dataclass, field
from typing import Literal

from pipeline import config
from pipeline.system.device import Precision
from pipeline.system.errors import DtkdError
from pipeline.training.processes import DeviceChoice
from student.loss import LossSettings
from student.model import ModelSettings
from student.stream import DataSettings

FREE_KEYS = (
    "data.workers", "data.stall_seconds", "data.val", "data.local_folder", "data.local_gigabytes", "train.accumulate",
    "train.best_by", "train.compile", "train.device", "train.keep", "train.log_every", "train.sample_strips",
    "train.save_every", "train.spike", "train.val_every", "train.val_metrics",
)  # fmt: skip
"""Settings that may change when a run goes on, because its weights do not depend on them, or by rounding alone."""


@dataclass(frozen=True)
class TrainSettings:
    """The optimisation; TOML section [train]."""

    steps: int = 20_000
    """Optimiser steps."""
    batch_size: int = 16
    """Patches an optimiser step, over all processes and parts together."""
    accumulate: int = 1
    """Parts of equal size in which every process computes its patches of a step, one after the other: less memory, the
    same steps and, up to rounding, the same weights. batch_size must be divisible by accumulate * processes."""
    patch: int = 48
    """Side of an LR patch, LR pixels."""
    lr: float = 2e-4
    """Highest learning rate (AdamW, betas .9 and .99)."""
    lr_schedule: Literal["cosine", "multistep"] = "cosine"
    """Cosine to lr_floor * lr, or halved at each of lr_milestones."""
    lr_warmup: int = 100
    """Steps over which the learning rate rises."""
    lr_floor: float = 0.01
    """Last learning rate of the cosine, as a fraction of lr."""
    lr_milestones: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    """Fractions of the run at which multistep halves the learning rate."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    clip: float = 1.0
    """Highest gradient norm; larger gradients are scaled down. 0 leaves them."""
    ema: float = 0.999
    """Decay a step of the moving average of the weights, which is what is validated and exported; warms up from .1."""
    seed: int = 0
    """Of the initial weights, the order of the samples, crops, flips and drop path."""
    init: str = ""
    """Weights to start from: a student's or official SwinIR file, or shipped; empty starts from random ones."""
    precision: Precision = "auto"
    """auto is bf16 where GPU or CPU (AVX512-BF16, AMX) compute in it natively, else fp32; decided when a run begins.
    Weights and loss are fp32 always."""
    compile: bool = False
    """Run the student's steps through torch.compile, which needs a C++ compiler; the first step then takes a minute or
    more. The weights are the same up to rounding."""
    device: DeviceChoice = "auto"
    """auto takes an accelerator where there is one."""
    log_every: int = 50
    """Steps between lines of the log."""
    val_every: int = 1000
    """Steps between validations, on the held-out samples of the cache or on data.val."""
    val_metrics: tuple[str, ...] = ("psnr_y", "dss")
    """What validation measures: names of `dtkd evaluate --metrics`."""
    best_by: str = "dss"
    """Which of val_metrics decides what best.safetensors holds."""
    sample_strips: int = 4
    """Held-out pictures that every validation draws into RUN/samples and TensorBoard; 0: none."""
    save_every: int = 1000
    """Steps between checkpoints."""
    spike: float = 5.0
    """A step whose loss is this many times the median of the 100 before is logged with its samples; 0: none is."""
    keep: int = 2
    """Checkpoints that are kept, newest first."""

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        at_least_one = ("steps", "batch_size", "accumulate", "patch", "log_every", "val_every", "save_every", "keep")
        config.refuse_below("train", self, 1, *at_least_one)
        config.refuse_below(
            "train", self, 0, "lr_warmup", "lr_floor", "weight_decay", "clip", "seed", "spike", "sample_strips"
        )
        if self.best_by not in self.val_metrics:
            names = ", ".join(self.val_metrics) or "none"
            raise DtkdError(f"train.best_by must be one of train.val_metrics ({names}), got {self.best_by}")
        if self.lr <= 0:
            raise DtkdError(f"train.lr must be positive, got {self.lr}")
        if not 0 <= self.ema < 1:
            raise DtkdError(f"train.ema must be at least 0 and below 1, got {self.ema}")
        if not all(0 < fraction < 1 for fraction in self.lr_milestones):
            raise DtkdError(f"train.lr_milestones are fractions of the run between 0 and 1, got {self.lr_milestones}")


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run; `pipeline.config.load(RunSettings, toml, overrides)` makes them."""

    train: TrainSettings = field(default_factory=TrainSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    data: DataSettings = field(default_factory=DataSettings)

    def __post_init__(self) -> None:
        """Check what concerns two sections."""
        side, step = self.train.patch * self.model.scale, 2**self.loss.levels
        if self.loss.wavelet == "haar" and side % step:
            raise DtkdError(
                f"train.patch * model.scale must be a multiple of {step} for {self.loss.levels} Haar levels, got {side}"
            )
