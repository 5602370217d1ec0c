"""Sessions run in virtual time: half a minute of race takes milliseconds, and every moment is exact."""

from __future__ import annotations

import pytest
from trio.testing import MockClock


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}
