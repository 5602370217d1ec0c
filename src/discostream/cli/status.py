"""How commands end, for whoever runs them."""

from __future__ import annotations

__all__ = ["FAILURE", "INTERRUPTED", "TERMINATED", "USAGE"]

FAILURE, USAGE = 1, 2
INTERRUPTED, TERMINATED = 130, 143
"""As shells tell of whoever was ended by SIGINT or SIGTERM."""
