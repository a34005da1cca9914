"""Which number type a machine multiplies fast."""

from __future__ import annotations

import torch


def multiplies_bfloat16(device: str | torch.device) -> bool:
    """Return whether a device has instructions for products in bfloat16; without them they are emulated, and slow.

    Args:
        device: A processor is asked for its instructions; every other device is taken to have them.
    """
    if torch.device(device).type != "cpu":
        return True
    # private names of torch, which has no public ones for this; where they are missing, the answer is no
    known = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(bool(supported()) for supported in known if supported is not None)
