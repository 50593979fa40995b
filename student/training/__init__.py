"""Training a student from a cache: the loop, its settings and its state."""
