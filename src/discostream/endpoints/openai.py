"""Any server with an OpenAI-compatible `/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from msgspec import field

from discostream.config import EndpointSettings, suggest
from discostream.endpoints.dialects import CONTINUATIONS, ContinuationName
from discostream.endpoints.http import HttpEndpoint, HttpOptions, Question, without_blanks
from discostream.endpoints.presets import PRESETS
from discostream.errors import ConfigError
from discostream.types import Feature, Prefix, Request
from discostream.wire.openai_answer import AnswerReader
from discostream.wire.openai_request import request_body

__all__ = ["OpenAIEndpoint"]


class OpenAIOptions(HttpOptions, frozen=True):
    """The keys of `dialect = "openai"`.

    Attributes:
        preset: A server whose keys are known; whatever the settings say goes before them.
        continuation: How the server is asked to go on with a partial answer.
        repeats_prefix: Whether its continuation starts by repeating the partial answer.
        max_tokens_field: Which of OpenAI's two names for the limit the server knows.
        seed_field: What the server calls a seed, as Mistral's `random_seed`.
        include_usage: Whether to ask for token counts; off for servers that refuse `stream_options`.
        embedding_model: The model for `/embeddings` there; empty where it has none.
        extra_body: Fields added to every request, such as OpenRouter's `provider`.
    """

    preset: str = ""
    continuation: ContinuationName = "none"
    repeats_prefix: bool = False
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seed_field: Literal["seed", "random_seed"] = "seed"
    include_usage: bool = True
    embedding_model: str = ""
    extra_body: dict[str, Any] = field(default_factory=dict)


class OpenAIEndpoint(HttpEndpoint):
    """Streams from a server that speaks OpenAI's chat completions, and raw ones where that is declared."""

    Options = OpenAIOptions
    neutral_options = frozenset(OpenAIOptions.__struct_fields__) - {"base_url", "extra_body"}
    usual_features = frozenset({Feature.TOOLS, Feature.JSON, Feature.LOGPROBS})
    path = "chat/completions"

    def __init__(self, settings: EndpointSettings, options: OpenAIOptions) -> None:
        self._options = options
        self._continuation = CONTINUATIONS[options.continuation]
        super().__init__(settings, options, continues=self._continuation.possible)
        self.embedding_model = options.embedding_model

    @classmethod
    def defaults(cls, settings: EndpointSettings) -> Mapping[str, Any]:
        """What the server's preset says. See `Endpoint.defaults`."""
        preset = settings.options.get("preset", "")
        if not isinstance(preset, str) or not preset:
            return {}
        if preset not in PRESETS:
            raise ConfigError(f"endpoint {settings.name!r}: preset = {preset!r}: {suggest(preset, PRESETS)}")
        return PRESETS[preset]

    async def embed(self, fields: Mapping[str, Any]) -> bytes:
        """What the server's `/embeddings` says. See `Endpoint.embed`."""
        return await self._ask("embeddings", {**fields, "model": self.embedding_model})

    def _question(self, request: Request, prefix: Prefix) -> Question:
        if request.raw_prompt is not None:
            body, url = self._body(request, prefix), self._url / "completions"
            return Question(url=url, body=body, reader=AnswerReader(), continuing=False)
        sent, blank = without_blanks(prefix)
        reader = AnswerReader(sent if self._options.repeats_prefix else "", blank)
        body = self._body(request, replace(prefix, text=sent))
        return Question(url=self._url / self.path, body=body, reader=reader, continuing=bool(sent))

    def _body(self, request: Request, sent: Prefix) -> dict[str, Any]:
        is_chat = request.raw_prompt is None
        body = request_body(
            request,
            sent,
            unfinished=self._continuation.message,
            max_tokens_field=self._options.max_tokens_field if is_chat else "max_tokens",
            seed_field=self._options.seed_field,
        )
        body = {**self._options.extra_body, **body, "model": self.settings.model}
        if self._options.include_usage:
            body["stream_options"] = {"include_usage": True}
        return {**body, **self._continuation.body} if sent.text and is_chat else body
