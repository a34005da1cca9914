"""Traces: a question and a response as tokens, cut into segments and steps, and the files that store them.

The names stand in `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
