"""What the method is worth: audit of a cache, ablations, and mixtures of students."""
