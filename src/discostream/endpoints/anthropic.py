"""Anthropic's Messages API."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from discostream.config import EndpointSettings
from discostream.endpoints.http import HttpEndpoint, HttpOptions, Question, without_blanks
from discostream.endpoints.turns import ModelsContinuation, may_continue, without_system
from discostream.errors import EndpointError, Phase
from discostream.types import Prefix, Request
from discostream.wire.anthropic_upstream import decode_event
from discostream.wire.openai_answer import AnswerReader

__all__ = ["AnthropicEndpoint"]

VERSION = "2023-06-01"


class AnthropicOptions(HttpOptions, frozen=True):
    """The keys of `dialect = "anthropic"`.

    Attributes:
        continuation: Whether a partial answer may go as a last `assistant` message; `auto` goes by the model.
        default_max_tokens: The longest answer where a request sets no limit, which the API wants to be told.
            The default is what every model allows.
    """

    base_url: str = "https://api.anthropic.com/v1"
    api_key_env: str = "ANTHROPIC_API_KEY"
    continuation: ModelsContinuation = "auto"
    default_max_tokens: Annotated[int, Meta(ge=1)] = 4096


class AnthropicEndpoint(HttpEndpoint):
    """Streams from Claude."""

    Options = AnthropicOptions
    neutral_options = frozenset(AnthropicOptions.__struct_fields__) - {"base_url"}
    path = "messages"

    def __init__(self, settings: EndpointSettings, options: AnthropicOptions) -> None:
        self._options = options
        continues = may_continue("anthropic", settings.model, options.continuation)
        super().__init__(settings, options, continues=continues)

    def _key_headers(self) -> dict[str, str]:
        return {"anthropic-version": VERSION} | ({"x-api-key": self._key} if self._key else {})

    def _question(self, request: Request, prefix: Prefix) -> Question:
        sent, blank = without_blanks(prefix)
        reader = AnswerReader(blank=blank, decode=decode_event)
        body = self._body(request, sent)
        return Question(url=self._url / self.path, body=body, reader=reader, continuing=bool(sent))

    def _body(self, request: Request, sent: str) -> dict[str, Any]:
        self._refuse_penalties(request)
        system, turns = without_system(request.messages)
        messages = [{"role": message.role, "content": message.content} for message in turns]
        if sent:
            messages.append({"role": "assistant", "content": sent})
        wishes = {
            "system": system or None,
            # Stop strings of blanks alone are refused here; whoever delivers the answer minds those, too.
            "stop_sequences": [stop for stop in request.stop if stop.strip()] or None,
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
        }
        return {
            "model": self.settings.model,
            "max_tokens": request.max_tokens or self._options.default_max_tokens,
            "messages": messages,
            "stream": True,
        } | {name: wish for name, wish in wishes.items() if wish is not None}

    def _refuse_penalties(self, request: Request) -> None:
        """A seed is only ever a wish, but an answer without its penalties is another answer."""
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(request.sampling, name):
                raise EndpointError(self.name, Phase.REFUSED, f"knows no {name}; leave it out", status=400)
