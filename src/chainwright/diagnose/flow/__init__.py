"""Logit flow: what writes an answer, and what switched that on."""
