"""The stages of facts, and two hops, measured over every fact that a model knows."""
