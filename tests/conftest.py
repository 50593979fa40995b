from pipeline import torchvision_guard

torchvision_guard.apply()
