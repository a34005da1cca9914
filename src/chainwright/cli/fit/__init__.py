"""Fit repairs."""
