"""What both stages must agree on: corpus, pairs, degradations, images, the cache schema, settings."""
