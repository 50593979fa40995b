"""What both stages must agree on: photos, degradations, images, the cache, settings, the wavelet, what a teacher is."""
