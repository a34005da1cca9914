"""The entry point: vLLM calls `register` in each of its processes, possibly more than once."""

from __future__ import annotations


def register() -> None:
    """Put the plug-in into vLLM.

    Raises:
        RuntimeError: The installed vLLM lacks a place that the plug-in needs.
    """
    from chainwright_vllm import admission, bridging, caching, runner_v1, runner_v2, scheduling

    for part in (admission, bridging, caching, scheduling, runner_v1, runner_v2):
        part.install()
