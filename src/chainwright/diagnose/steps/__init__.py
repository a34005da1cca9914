"""Steps: what each step of a chain draws on at every layer."""
