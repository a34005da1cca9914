"""Iteration heads: circuits of iterative tasks, and heads of trained models that work like them."""
