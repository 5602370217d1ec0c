"""Server-sent events: the payloads in a stream of bytes, and the bytes of a payload.

Decoding works on bytes: text line iterators also cut at U+2028 and its kin, which JSON may hold.
"""

from __future__ import annotations

__all__ = ["DONE", "MAX_LINE_BYTES", "SseDecoder", "SseError", "comment", "data_event"]

MAX_LINE_BYTES = 1 << 20
DONE = b"data: [DONE]\n\n"
"""What ends every chat stream."""

_BOM = b"\xef\xbb\xbf"


class SseError(ValueError):
    """The stream holds a line or an event that is longer than allowed."""


class SseDecoder:
    """Finds the `data:` payloads in bytes that arrive in pieces of any size.

    Lines end in CR, LF or CRLF. Comments and other fields are skipped. Whatever the pieces, the time
    is linear in the bytes fed, and what is held back stays below twice the limit.

    Args:
        max_line_bytes: The most bytes that one line, or all the data of one event, may have.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._limit = max_line_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._first_line = True

    def feed(self, data: bytes) -> list[bytes]:
        """The payload of every event that these bytes complete; the lines of one are joined by LF.

        Raises:
            SseError: A line or an event is longer than the limit.
        """
        if not data:
            return []
        if not (self._line or self._data or self._after_cr) and self._is_plain_event(data):
            self._first_line = False
            return [data[6:-2]]
        whole = data.rfind(b"\n\n") + 2
        payloads = self._plain_events(data[:whole]) if whole > 1 else []
        if payloads:
            self._first_line = False
            data = data[whole:]
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        for part in data.splitlines(keepends=True):
            self._extend_line(part.rstrip(b"\r\n"))
            if part.endswith((b"\n", b"\r")):
                self._end_line(payloads)
        self._after_cr = data.endswith(b"\r")
        return payloads

    def end(self) -> list[bytes]:
        """The payload of an event whose closing blank line never came; call at the end of the bytes.

        The standard drops it; servers that end right after `data: [DONE]` make it worth having.
        """
        payloads: list[bytes] = []
        for _ in range(2):
            self._end_line(payloads)
        return payloads

    def _is_plain_event(self, data: bytes) -> bool:
        """Whether these bytes are one event of one data line, as nearly all that come by themselves."""
        ends = data.find(b"\n") == len(data) - 2 and data.endswith(b"\n")
        return ends and data.startswith(b"data: ") and b"\r" not in data and len(data) <= self._limit

    def _plain_events(self, data: bytes) -> list[bytes]:
        """The payloads of whole events of one data line each, as most servers send them; none for others."""
        if self._data or self._after_cr or b"\r" in data:
            return []
        events = (bytes(self._line) + data)[:-2].split(b"\n\n")
        for event in events:
            if not event.startswith(b"data: ") or b"\n" in event or len(event) > self._limit:
                return []
        self._line.clear()
        return [event[6:] for event in events]

    def _extend_line(self, part: bytes) -> None:
        self._line += part
        if len(self._line) > self._limit:
            raise SseError(f"a line is longer than {self._limit} bytes")

    def _end_line(self, payloads: list[bytes]) -> None:
        line = bytes(self._line)
        self._line.clear()
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BOM)
        field, _, value = line.partition(b":")
        if field == b"data":
            self._keep(value.removeprefix(b" "))
        elif not line and self._data:
            payloads.append(b"\n".join(self._data))
            self._data, self._data_bytes = [], 0

    def _keep(self, value: bytes) -> None:
        self._data.append(value)
        self._data_bytes += len(value) + 1
        if self._data_bytes > self._limit + 1:
            raise SseError(f"an event is longer than {self._limit} bytes")


def data_event(payload: bytes) -> bytes:
    """The bytes of one event that carries `payload`, which must not contain a line end."""
    return b"data: %b\n\n" % payload


def comment(text: str) -> bytes:
    """The bytes of a comment, which keeps a silent connection open and no client sees as an event."""
    return b": %b\n\n" % text.encode()
