"""Pivots: where the probability that a response ends right falls, found by continuing its prefixes."""
