"""Chainwright inside other people's tools: evaluation harnesses, and an OpenAI-compatible server."""
