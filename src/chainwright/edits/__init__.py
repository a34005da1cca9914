"""Edits of the forward pass, used as a context manager: `with edit(model, KnockOut({(3, 1)})): ...`."""

from chainwright.edits.back_attention import AttendBack, BackHead
from chainwright.edits.base import Edit, Touched, edit
from chainwright.edits.knock_out import Head, KnockOut

__all__ = ["AttendBack", "BackHead", "Edit", "Head", "KnockOut", "Touched", "edit"]
