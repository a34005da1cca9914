"""What studying a large model will take, from its config alone: memory and hours by formulas, on a device named."""
