from collections.abc import Iterator

import pytest

from serving import Running, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as it:
        yield it
        it.wait_until_idle()
