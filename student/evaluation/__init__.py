"""Measuring students: candidates, data, metrics, figures and how sure they are."""
