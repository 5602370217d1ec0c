"""Newline-delimited JSON: the lines in a stream of bytes."""

from __future__ import annotations

from discostream.wire.sse import MAX_LINE_BYTES, SseError

__all__ = ["NdjsonDecoder"]


class NdjsonDecoder:
    """Finds the lines in bytes that arrive in pieces of any size.

    Args:
        max_line_bytes: The most bytes that one line may have.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._limit = max_line_bytes
        self._line = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Every line that these bytes complete.

        Raises:
            SseError: A line is longer than the limit.
        """
        *ends, rest = data.split(b"\n")
        lines = []
        for part in ends:
            self._extend(part)
            lines += self.end()
        self._extend(rest)
        return lines

    def end(self) -> list[bytes]:
        """A last line that no line end follows."""
        line = bytes(self._line)
        self._line.clear()
        return [line] if line else []

    def _extend(self, part: bytes) -> None:
        self._line += part
        if len(self._line) > self._limit:
            raise SseError(f"a line is longer than {self._limit} bytes")
