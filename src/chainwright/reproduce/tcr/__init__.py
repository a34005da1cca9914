"""The TCR paper, measured again."""
