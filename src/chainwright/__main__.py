"""`python -m chainwright`: the same as the `chainwright` command."""

from __future__ import annotations

from chainwright.cli import main

if __name__ == "__main__":
    main()
