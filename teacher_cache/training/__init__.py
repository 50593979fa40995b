"""Training a teacher of the embedded kind on photos: the loop, its settings, losses and patches."""
