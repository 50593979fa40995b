"""Stage one: run a teacher once over a corpus, and the only writer of a cache.

Importing any part of it makes torchvision importable first, without which diffusers is not (see the guard).
"""

from pipeline.system import torchvision_guard

torchvision_guard.apply()
