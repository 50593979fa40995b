"""Upscaling of whole pictures: which ones, reading, tiles, writing."""
