"""The diagnosis, which is the main study: traces, first errors, heads, step maps. The names stand in `__init__.pyi`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
