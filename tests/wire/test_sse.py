from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discostream.wire.sse import DONE, SseDecoder, SseError, comment, data_event


def payloads_of(*pieces: bytes) -> list[bytes]:
    decoder = SseDecoder()
    return [payload for piece in pieces for payload in decoder.feed(piece)]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_every_line_end_closes_lines_and_events(end: bytes) -> None:
    """CR, LF and CRLF all end a line, and two of them an event."""
    assert payloads_of(b"data: one" + end * 2 + b"data: two" + end * 2) == [b"one", b"two"]


def test_lines_of_one_event_are_joined_by_line_feeds() -> None:
    """Several data lines are one payload, with LF between them and only one leading space taken off."""
    assert payloads_of(b"data: a\ndata:b\ndata:  c\ndata\n\n") == [b"a\nb\n c\n"]


def test_comments_and_other_fields_are_skipped() -> None:
    """Comments, `id`, `event`, `retry` and blank lines yield nothing."""
    assert payloads_of(b": hi\n\nid: 1\nevent: ping\nretry: 5\n\n\n\ndatax: no\n\ndata: yes\n\n") == [b"yes"]


def test_unicode_line_separators_stay_inside_a_payload() -> None:
    """U+2028, U+2029, U+0085, vertical tab and form feed do not end a line."""
    payload = "a\u2028b\u2029c\u0085d\x0be\x0cf".encode()
    assert payloads_of(data_event(payload)) == [payload]


def test_a_byte_order_mark_before_the_first_line_is_dropped() -> None:
    """A leading BOM belongs to the encoding, not to the first field's name."""
    assert payloads_of(b"\xef\xbb", b"\xbfdata: x\n\n") == [b"x"]


def test_an_unfinished_event_waits_for_its_blank_line() -> None:
    """Nothing is given out before the event is complete, and `end` gives what is left."""
    decoder = SseDecoder()
    assert decoder.feed(b"data: [DO") == []
    assert decoder.feed(b"NE]") == []
    assert decoder.end() == [b"[DONE]"]
    assert decoder.end() == []


def test_an_overlong_line_is_refused_while_it_grows() -> None:
    """A line over the limit raises as soon as it is too long, ended or not."""
    decoder = SseDecoder(max_line_bytes=16)
    decoder.feed(b"data: 0123456789")
    with pytest.raises(SseError, match="line is longer than 16 bytes"):
        decoder.feed(b"x")


def test_an_endless_event_is_refused() -> None:
    """Lines within the limit cannot add up to an event over it, not even empty ones."""
    for line in (b"data: 0123\n", b"data:\n"):
        with pytest.raises(SseError, match="event is longer than 16 bytes"):
            SseDecoder(max_line_bytes=16).feed(line * 20)


def test_single_byte_feeds_take_linear_time() -> None:
    """Ten times the bytes, fed one at a time, take far less than a hundred times as long."""

    def seconds(size: int) -> float:
        decoder, started = SseDecoder(), time.perf_counter()
        for _ in range(size):
            decoder.feed(b"x")
        return time.perf_counter() - started

    seconds(10_000)
    assert seconds(200_000) < 50 * max(seconds(20_000), 1e-3)


def test_encoders_write_what_the_decoder_reads() -> None:
    """`data_event` and `DONE` come back as payloads, `comment` as nothing."""
    assert payloads_of(data_event(b"{}") + comment("keep-alive") + DONE) == [b"{}", b"[DONE]"]


LINES = st.sampled_from(
    [b"data: a", b"data:", b"data", b"data:\xe2\x80\xa8", b": note", b"", b"id: 3", b"\xff"]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@given(st.lists(st.tuples(LINES, ENDS)), st.lists(st.integers(0, 200)))
def test_any_chunking_gives_the_same_events(lines: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    """Where the network cuts the bytes changes nothing."""
    stream = b"".join(line + end for line, end in lines)
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    pieces = [stream[start:stop] for start, stop in pairwise(edges)]
    single = [stream[index : index + 1] for index in range(len(stream))]
    assert payloads_of(*pieces) == payloads_of(stream) == payloads_of(*single)


@given(st.lists(st.binary(max_size=20).filter(lambda payload: not set(payload) & {10, 13})))
def test_every_payload_survives_the_round_trip(payloads: list[bytes]) -> None:
    """Encoding then decoding gives back each payload, empty ones included."""
    assert payloads_of(b"".join(map(data_event, payloads))) == payloads
