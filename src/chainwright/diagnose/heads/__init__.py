"""Heads: the effect of each on a token, its role, and what it writes."""
