"""Heads: what each does to a token, which role it plays, what it writes."""
