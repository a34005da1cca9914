"""The iteration-heads paper, measured again."""
