"""What vLLM reuses: blocks of keys and values, and compiled graphs. Both must know about edits.

The keys and values of an edited request are not those of a plain one with the same tokens, so what it asks for goes
into the hash of every block that holds an edited position, whatever `cache_salt` a client sets. Blocks before the first
edited position are shared with plain requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from chainwright_vllm import __version__
from chainwright_vllm.patching import wrap
from chainwright_vllm.spec import KEY, KnockOut, UseRepair, asked


def install() -> None:
    """Put edits into the hashes of blocks, and the plug-in into that of compiled graphs."""
    from vllm.config import VllmConfig
    from vllm.v1.core import kv_cache_utils

    # of the parts of a block's extra keys this is the one that is made for every request and knows the positions
    wrap(kv_cache_utils, "_gen_prompt_embeds_extra_hash_keys", _extra_keys)
    wrap(VllmConfig, "compute_hash", _compute_hash)


def block_key(request: Any, end: int) -> list[tuple[str, str]]:
    """Return what an edited request adds to the hash of a block of its tokens.

    Args:
        request: vLLM's Request.
        end: One past the block's last position.
    """
    params = request.sampling_params
    spec = asked(params.extra_args) if params is not None else None
    # a TCR changes which token is chosen, not what is computed of a token
    if spec is None or isinstance(spec, UseRepair):
        return []
    n_prompt = request.num_prompt_tokens
    if end <= (first := spec.first_edited(n_prompt) if isinstance(spec, KnockOut) else n_prompt):
        return []
    # with the position: a longer prompt, such as the next turn of a chat, may have the same tokens and begin later
    return [(KEY, json.dumps([spec.record(), first], sort_keys=True))]


def _extra_keys(own: Callable[..., Any]) -> Callable[..., Any]:
    def extra_keys(request: Any, start_token_idx: int, end_token_idx: int) -> list[Any]:
        return [*own(request, start_token_idx, end_token_idx), *block_key(request, end_token_idx)]

    return extra_keys


def _compute_hash(own: Callable[..., Any]) -> Callable[..., Any]:
    def compute_hash(self: Any, *args: Any, **kwargs: Any) -> str:
        found: str = own(self, *args, **kwargs)
        # a graph that was compiled without the hooks must not be found again; the length stays what it was
        return f"cw{__version__.replace('.', '')}{found}"[: len(found)]

    return compute_hash
