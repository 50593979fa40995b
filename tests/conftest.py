import os

# Tiny tensors gain nothing from threads, and a busy machine loses much; also the processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pipeline.system import torchvision_guard

torchvision_guard.apply()
