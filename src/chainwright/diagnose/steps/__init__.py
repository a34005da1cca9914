"""Steps: how strongly each step of a chain depends on each earlier one, at every layer."""
