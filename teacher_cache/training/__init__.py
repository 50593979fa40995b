"""Training a teacher of the embedded kind on photos: the loop, its settings, losses and patches."""

from pipeline.system import torchvision_guard

torchvision_guard.apply()  # before diffusers
