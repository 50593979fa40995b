"""Upscaling people's pictures: tiles, reading, writing."""
