"""Edits of the forward pass, used as a context manager: `with edit(model, KnockOut({(3, 1)})): ...`."""

from chainwright.edits.back_attention import AttendBack, BackHead
from chainwright.edits.base import Edit, Touched, edit
from chainwright.edits.bridge import Bridge
from chainwright.edits.cut_attention import Cut, CutAttention
from chainwright.edits.knock_out import Head, KnockOut
from chainwright.edits.momentum import Momentum

__all__ = [
    "AttendBack",
    "BackHead",
    "Bridge",
    "Cut",
    "CutAttention",
    "Edit",
    "Head",
    "KnockOut",
    "Momentum",
    "Touched",
    "edit",
]
