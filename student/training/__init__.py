"""Training a student from a cache."""
