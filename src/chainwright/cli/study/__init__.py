"""Run, follow and compare studies."""
