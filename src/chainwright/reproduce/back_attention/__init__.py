"""The back-attention paper, measured again."""
