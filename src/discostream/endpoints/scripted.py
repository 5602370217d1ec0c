"""A scripted endpoint, for tests and trials: it generates nothing, and says what it was told to."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import anyio
from msgspec import Meta, Struct

from discostream.config import EndpointSettings, convert_options
from discostream.endpoints.base import Endpoint
from discostream.errors import EndpointError, Phase
from discostream.types import Carrier, Event, Finish, FinishReason, Kind, Piece, Prefix, Prompt, Request

__all__ = ["ScriptedEndpoint"]

TOKEN = re.compile(r"\s*\S+|\s+")
NotNegative = Annotated[float, Meta(ge=0.0)]


class ScriptedOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The script.

    Attributes:
        answer: The whole answer. A token is a word with the whitespace before it.
        ttft_s: From the start to the first token.
        tbt_s: Between two tokens.
        prefill_s_per_token: Added to `ttft_s` for every token of prompt and prefix.
        refuses: Fails at the start, with this message.
        breaks_after: Fails once it has sent this many tokens.
        hangs_after: Falls silent for good once it has sent this many tokens.
        continues: What it can take over from another endpoint: `tokens`, `text`, both or nothing.
        vocabulary: IDs may travel between endpoints that name the same one.
    """

    answer: str = "This answer was written in advance."
    ttft_s: NotNegative = 0.0
    tbt_s: NotNegative = 0.0
    prefill_s_per_token: NotNegative = 0.0
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

    def __init__(self, settings: EndpointSettings, options: ScriptedOptions) -> None:
        super().__init__(settings, options)
        self.script = options
        self.continues = frozenset(map(Carrier, options.continues))
        self.vocabulary = options.vocabulary
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
        prompt_tokens = sum(count_tokens(message.content) for message in request.messages)
        prompt_tokens += count_tokens(written)
        tokens = TOKEN.findall(script.answer[len(written) :])
        limit = len(tokens) if request.max_tokens is None else min(request.max_tokens, len(tokens))
        with self._counted():
            if script.refuses:
                raise EndpointError(self.name, Phase.REFUSED, script.refuses, status=503)
            yield Prompt(prompt_tokens)
            await anyio.sleep(script.ttft_s + script.prefill_s_per_token * prompt_tokens)
            for sent, token in enumerate(tokens[:limit]):
                await anyio.sleep(script.tbt_s if sent else 0.0)
                await self._mishap(sent)
                yield Piece(token, 1, (_encode(token),))
            await self._mishap(limit)
            reason = FinishReason.LENGTH if limit < len(tokens) else FinishReason.STOP
            yield Finish(reason, prompt_tokens, limit)

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


def count_tokens(text: str) -> int:
    """How many tokens a script counts in this text."""
    return len(TOKEN.findall(text))


def _encode(token: str) -> int:
    return int.from_bytes(b"\x01" + token.encode(), "big")


def _decode(token_ids: tuple[int, ...]) -> str:
    return b"".join(token.to_bytes((token.bit_length() + 7) // 8, "big")[1:] for token in token_ids).decode()
