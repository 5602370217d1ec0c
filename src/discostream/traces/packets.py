"""What a capture of packets says of an answer's tokens: a packet may hold a part of one, or twenty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from discostream.traces.tables import Table

__all__ = ["Capture", "token_times"]

Floats = NDArray[np.float64]

HEADER_BYTES = 88
"""What every frame of the whisper-leak captures carries beside the answer: Ethernet, IP, TCP and TLS."""

HEADERS_TOO = 1
"""The index of the packet after the handshake: as the first with content, it has the HTTP headers, too."""


@dataclass(frozen=True, eq=False)
class Capture:
    """The packets of several answers as the client received them.

    Attributes:
        ttft_s: From the handshake to the first packet with content, shape (answers,).
        arrived_s: For each answer, when its packets with content came, after the first of them.
        payloads: For each answer, the bytes that these carry, headers taken off; at least one each.
    """

    ttft_s: Floats
    arrived_s: list[Floats]
    payloads: list[Floats]

    @classmethod
    def of(cls, table: Table) -> Capture:
        """Read `dt_ms`, `bytes` and `first_content_idx`.

        Raises:
            ConfigError: A cell does not hold what it should, or an answer has no packet with content.
        """
        gaps_s = [gaps / 1000 for gaps in table.series("dt_ms")]
        sizes = table.series("bytes")
        first = table.numbers("first_content_idx", least=1).astype(int).tolist()
        for row, (gaps, size, index) in enumerate(zip(gaps_s, sizes, first, strict=True)):
            if gaps.size != size.size:
                raise table.wrong(row, "bytes", f"must be as many as in dt_ms, which has {gaps.size}")
            if index >= gaps.size:
                raise table.wrong(row, "first_content_idx", f"must be one of {gaps.size} packets, from 0")
        payloads = [
            np.maximum(size[index:] - HEADER_BYTES, 1.0) for size, index in zip(sizes, first, strict=True)
        ]
        _take_off_headers([each for each, index in zip(payloads, first, strict=True) if index == HEADERS_TOO])
        return cls(
            np.array([gaps[1 : index + 1].sum() for gaps, index in zip(gaps_s, first, strict=True)]),
            [np.cumsum(np.append(0.0, gaps[index + 1 :])) for gaps, index in zip(gaps_s, first, strict=True)],
            payloads,
        )

    def token_times(self, tokens: Floats) -> list[Floats]:
        """For each answer, of so many tokens, when each of them came after the first (seconds)."""
        answers = zip(self.arrived_s, self.payloads, tokens.tolist(), strict=True)
        return [token_times(arrived_s, payload, int(count)) for arrived_s, payload, count in answers]


def token_times(arrived_s: Floats, payload: Floats, tokens: int) -> Floats:
    """When each token of an answer came (seconds), by the packet that completed it; shape (tokens,).

    The events of a stream are about equally long, most of each being the same JSON, so tokens are dealt out
    by bytes: when a part of them has come, so has that part of the tokens, rounded to whole ones. The first
    token is in the first packet, whose moment is the TTFT. A silence between packets stays as long as it was.

    Args:
        arrived_s: When each packet came, never falling.
        payload: The bytes in each, all above zero.
        tokens: How many there are in all of them together.
    """
    come = np.cumsum(payload)
    complete = np.maximum(np.rint(tokens * (come / come[-1])), 1.0)
    return np.asarray(arrived_s[np.searchsorted(complete, np.arange(1, tokens + 1))])


def _take_off_headers(payloads: list[Floats]) -> None:
    """Count a first packet for what it has beyond the shortest, which hardly has any text beside its headers.

    Gemini's have 1,167 to 1,421 bytes, where later ones begin with some forty.
    """
    headers = min((payload[0] for payload in payloads), default=0.0)
    for payload in payloads:
        payload[0] = max(payload[0] - headers, 1.0)
