"""TCR: doubtful tokens are decided by runs without single heads."""
