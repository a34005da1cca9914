"""Chainwright: find out why an open language model's chain of thought breaks, and repair it while it decodes.

The public names stand in `__init__.pyi`. They are imported on first use, so that `import chainwright` and
`chainwright --help` do not wait for PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
