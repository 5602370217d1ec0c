"""A scripted endpoint, for tests and trials: it generates nothing, and says what it was told to."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Annotated, Any, Literal

import anyio
import msgspec
from msgspec import Meta, Struct

from discostream.config import EndpointSettings, convert_options
from discostream.endpoints.base import Endpoint
from discostream.errors import EndpointError, Phase
from discostream.types import (
    Carrier,
    Event,
    Extra,
    Feature,
    Finish,
    FinishReason,
    Kind,
    Piece,
    Prefix,
    Prompt,
    Request,
)

__all__ = ["ScriptedEndpoint"]

TOKEN = re.compile(r"\s*\S+|\s+")
NotNegative = Annotated[float, Meta(ge=0.0)]


class _Call(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    arguments: dict[str, Any] = {}


class ScriptedOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The script.

    Attributes:
        answer: The whole answer. A token is a word with the whitespace before it.
        reasoning: What it thinks aloud before, whenever it is not asked to go on by token IDs.
        tool_calls: What it calls instead, as `{"name": text, "arguments": {…}}`, when it is given tools; once
            the last message is a tool's, it answers.
        ttft_s: From the start to the first token.
        tbt_s: Between two tokens.
        prefill_s_per_token: Added to `ttft_s` for every token of prompt and prefix that no slot has read.
        slots: Requests served at a time; the others wait. Each slot keeps the last prompt it read. Any
            number of requests, and nothing kept, when absent.
        refuses: Fails at the start, with this message.
        breaks_after: Fails once it has sent this many tokens.
        hangs_after: Falls silent for good once it has sent this many tokens.
        continues: What it can take over from another endpoint: `tokens`, `text`, both or nothing.
        vocabulary: IDs may travel between endpoints that name the same one.
    """

    answer: str = "This answer was written in advance."
    reasoning: str = ""
    tool_calls: tuple[_Call, ...] = ()
    ttft_s: NotNegative = 0.0
    tbt_s: NotNegative = 0.0
    prefill_s_per_token: NotNegative = 0.0
    slots: Annotated[int, Meta(ge=1)] | None = None
    refuses: str = ""
    breaks_after: int | None = None
    hangs_after: int | None = None
    continues: tuple[Literal["tokens", "text"], ...] = ("tokens", "text")
    vocabulary: str = "utf-8"


class ScriptedEndpoint(Endpoint):
    """Says its script. Asked to continue an answer, it skips as many characters as exist already.

    Attributes:
        started: How many streams were ever begun.
        open: How many are open now.
    """

    Options = ScriptedOptions
    usual_features = frozenset({Feature.TOOLS, Feature.JSON, Feature.LOGPROBS, Feature.COMPLETIONS})

    def __init__(self, settings: EndpointSettings, options: ScriptedOptions) -> None:
        super().__init__(settings, options)
        self.script = options
        self.continues = frozenset(map(Carrier, options.continues))
        self.vocabulary = options.vocabulary
        self.slots = options.slots
        self._idle = [_Slot() for _ in range(options.slots or 0)]
        self._free = anyio.Semaphore(options.slots) if options.slots else None
        self.started = 0
        self.open = 0

    @classmethod
    def of(cls, name: str, kind: Kind, *, usd_per_mtok: float = 0.0, **script: Any) -> ScriptedEndpoint:
        """A scripted endpoint without a settings file; `script` holds `ScriptedOptions`."""
        settings = EndpointSettings(
            name=name,
            kind=kind,
            dialect="scripted",
            prompt_usd_per_mtok=usd_per_mtok,
            completion_usd_per_mtok=usd_per_mtok,
            options=script,
        )
        return cls(settings, convert_options(settings, ScriptedOptions))

    async def generate(self, request: Request, prefix: Prefix) -> AsyncGenerator[Event, None]:
        """Stream the script from where `prefix` ends. See `Endpoint.generate`."""
        script = self.script
        written = _decode(prefix.token_ids) if prefix.token_ids is not None else prefix.text
        prompt = [token for message in request.messages for token in TOKEN.findall(message.content)]
        prompt += TOKEN.findall(written)
        calls = _called(script.tool_calls, request)
        thoughts = TOKEN.findall("" if prefix.token_ids is not None else script.reasoning)
        pieces = [Piece("", extra=Extra(reasoning=thought)) for thought in thoughts]
        pieces += calls or [_said(token, request) for token in TOKEN.findall(script.answer[len(written) :])]
        limit = len(pieces) if request.max_tokens is None else min(request.max_tokens, len(pieces))
        with self._counted():
            if script.refuses:
                raise EndpointError(self.name, Phase.REFUSED, script.refuses, status=503)
            yield Prompt(len(prompt))
            async with self._slot(prompt) as slot:
                cached = None if slot is None else _common(slot.read, prompt)
                if cached is not None:
                    yield Prompt(len(prompt), cached)
                await self._read(prompt, cached or 0, slot)
                for sent, piece in enumerate(pieces[:limit]):
                    await anyio.sleep(script.tbt_s if sent else 0.0)
                    await self._mishap(sent)
                    yield piece
                await self._mishap(limit)
                whole = FinishReason.TOOL_CALLS if calls else FinishReason.STOP
                reason = FinishReason.LENGTH if limit < len(pieces) else whole
                yield Finish(reason, len(prompt), limit, cached)

    async def _read(self, prompt: list[str], cached: int, slot: _Slot | None) -> None:
        """Take the time for what is not cached; the slot keeps what was read, also of a cancelled request."""
        script, began_at = self.script, anyio.current_time()
        try:
            await anyio.sleep(script.ttft_s + script.prefill_s_per_token * (len(prompt) - cached))
        finally:
            if slot is not None:
                reading_s = max(anyio.current_time() - began_at - script.ttft_s, 0.0)
                per_token = script.prefill_s_per_token
                slot.read = prompt[: cached + int(reading_s / per_token + 1e-9)] if per_token else prompt

    @asynccontextmanager
    async def _slot(self, prompt: list[str]) -> AsyncGenerator[_Slot | None, None]:
        """The free slot that has read most of this prompt, as soon as there is one."""
        if self._free is None:
            yield None
            return
        async with self._free:
            slot = max(self._idle, key=lambda slot: _common(slot.read, prompt))
            self._idle.remove(slot)
            try:
                yield slot
            finally:
                self._idle.append(slot)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.started += 1
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    async def _mishap(self, sent: int) -> None:
        if sent == self.script.breaks_after:
            phase = Phase.DECODE if sent else Phase.PREFILL
            raise EndpointError(self.name, phase, "connection reset (scripted)")
        if sent == self.script.hangs_after:
            await anyio.sleep_forever()


@dataclass(eq=False)
class _Slot:
    """What it has read last."""

    read: list[str] = field(default_factory=list)


def _common(read: list[str], prompt: list[str]) -> int:
    """How many tokens two prompts have in common, from the start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(read, prompt, strict=False)))


def _called(calls: Sequence[_Call], request: Request) -> list[Piece]:
    """The calls as clients get them: who is called, then what with."""
    if Feature.TOOLS not in request.needs or request.messages[-1].role == "tool":
        return []
    pieces = []
    for index, call in enumerate(calls):
        function = {"name": call.name, "arguments": ""}
        opening = {"index": index, "id": f"call_{index}", "type": "function", "function": function}
        arguments = msgspec.json.encode(call.arguments).decode()
        pieces.append(_delta(opening))
        pieces.append(_delta({"index": index, "function": {"arguments": arguments}}))
    return pieces


def _delta(call: dict[str, Any]) -> Piece:
    return Piece("", extra=Extra(delta={"tool_calls": [call]}))


def _said(token: str, request: Request) -> Piece:
    """One token of text, with its log-probability if that is asked for: it is certain."""
    extra = None
    if Feature.LOGPROBS in request.needs:
        certain = {"token": token, "logprob": 0.0, "bytes": list(token.encode()), "top_logprobs": []}
        extra = Extra(logprobs={"content": [certain]})
    return Piece(token, 1, (_encode(token),), extra)


def _encode(token: str) -> int:
    return int.from_bytes(b"\x01" + token.encode(), "big")


def _decode(token_ids: tuple[int, ...]) -> str:
    return b"".join(token.to_bytes((token.bit_length() + 7) // 8, "big")[1:] for token in token_ids).decode()
