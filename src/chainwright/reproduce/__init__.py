"""Reproductions: one command a paper, a study whose tables say what was published and what came out here."""
