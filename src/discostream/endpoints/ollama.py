"""Ollama's own API.

It takes no token IDs. A last assistant message is continued only where the model's template leaves that turn
open, which the API does not tell, so nothing is continued unless the settings say so. Its raw route would
continue any model, if the documented API rendered templates; it does not.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from discostream.config import EndpointSettings
from discostream.endpoints.http import HttpEndpoint, HttpOptions, Question, without_blanks
from discostream.types import Prefix, Request
from discostream.wire.ndjson import NdjsonDecoder
from discostream.wire.ollama_upstream import decode_line
from discostream.wire.openai_answer import AnswerReader

__all__ = ["OllamaEndpoint"]


class OllamaOptions(HttpOptions, frozen=True):
    """The keys of `dialect = "ollama"`.

    Attributes:
        continuation: Whether a partial answer may go as a last `assistant` message.
        context_tokens: The longest prompt and answer together; without it the server decides, which cuts
            longer prompts short and does not say so.
    """

    base_url: str = "http://127.0.0.1:11434"
    continuation: Literal["none", "trailing_assistant"] = "none"
    context_tokens: Annotated[int, Meta(ge=1)] | None = None


class OllamaEndpoint(HttpEndpoint):
    """Streams from Ollama's `/api/chat`."""

    Options = OllamaOptions
    neutral_options = frozenset(OllamaOptions.__struct_fields__) - {"base_url", "context_tokens"}
    path = "api/chat"
    streams = "application/x-ndjson"

    def __init__(self, settings: EndpointSettings, options: OllamaOptions) -> None:
        self._context_tokens = options.context_tokens
        super().__init__(settings, options, continues=options.continuation != "none")

    def _question(self, request: Request, prefix: Prefix) -> Question:
        sent, blank = without_blanks(prefix)
        reader = AnswerReader(blank=blank, decode=decode_line, decoder=NdjsonDecoder())
        body = self._body(request, sent)
        return Question(url=self._url / self.path, body=body, reader=reader, continuing=bool(sent))

    def _body(self, request: Request, sent: str) -> dict[str, Any]:
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        if sent:
            messages.append({"role": "assistant", "content": sent})
        sampling = request.sampling
        wishes = {
            "num_ctx": self._context_tokens,
            "num_predict": request.max_tokens,
            "stop": request.stop or None,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
        }
        options = {name: wish for name, wish in wishes.items() if wish is not None}
        body = {"model": self.settings.model, "messages": messages, "stream": True}
        return body | ({"options": options} if options else {})
