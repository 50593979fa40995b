"""The kernels of a block on a CPU."""
