"""The knockout sweep: many runs without one head, with everything they share computed once."""
