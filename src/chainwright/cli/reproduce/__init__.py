"""Reproduce the experiments of a paper."""
