"""Measuring students: metrics, data, scores."""
