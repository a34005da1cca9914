"""A task, a detector and a repair for Chainwright."""
