"""Logit flow: which components write an answer, and which earlier ones activate those."""
