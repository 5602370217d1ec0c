"""Google's Gemini API."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from discostream.config import EndpointSettings
from discostream.endpoints.http import HttpEndpoint, HttpOptions, Question, without_blanks
from discostream.endpoints.turns import ModelsContinuation, may_continue, without_system
from discostream.types import Message, Prefix, Request
from discostream.wire.gemini_upstream import decode_response
from discostream.wire.openai_answer import AnswerReader

__all__ = ["GeminiEndpoint"]


class GeminiOptions(HttpOptions, frozen=True):
    """The keys of `dialect = "gemini"`.

    Attributes:
        continuation: Whether a partial answer may go as a last turn of the model; `auto` goes by the model.
    """

    base_url: str = "https://generativelanguage.googleapis.com/v1beta"
    api_key_env: str = "GEMINI_API_KEY"
    continuation: ModelsContinuation = "auto"


class GeminiEndpoint(HttpEndpoint):
    """Streams from Gemini."""

    Options = GeminiOptions
    neutral_options = frozenset(GeminiOptions.__struct_fields__) - {"base_url"}
    path = "models"

    def __init__(self, settings: EndpointSettings, options: GeminiOptions) -> None:
        self._model = settings.model.removeprefix("models/")
        continues = may_continue("gemini", self._model, options.continuation)
        super().__init__(settings, options, continues=continues)

    @classmethod
    def defaults(cls, settings: EndpointSettings) -> Mapping[str, Any]:
        """Google bills a cancelled answer whole (OpenRouter's list). See `Endpoint.defaults`."""
        return {"cancel_stops_billing": False}

    def _key_headers(self) -> dict[str, str]:
        return {"x-goog-api-key": self._key} if self._key else {}

    def _question(self, request: Request, prefix: Prefix) -> Question:
        sent, blank = without_blanks(prefix)
        reader = AnswerReader(blank=blank, decode=decode_response)
        url = (self._url / self.path / f"{self._model}:streamGenerateContent").with_query(alt="sse")
        body = self._body(request, sent)
        return Question(url=url, body=body, reader=reader, continuing=bool(sent))

    def _body(self, request: Request, sent: str) -> dict[str, Any]:
        system, turns = without_system(request.messages)
        if sent:
            turns.append(Message("assistant", sent))
        sampling = request.sampling
        wishes = {
            "maxOutputTokens": request.max_tokens,
            "stopSequences": request.stop or None,
            "temperature": sampling.temperature,
            "topP": sampling.top_p,
            "seed": sampling.seed,
            "presencePenalty": sampling.presence_penalty,
            "frequencyPenalty": sampling.frequency_penalty,
        }
        config = {name: wish for name, wish in wishes.items() if wish is not None}
        body: dict[str, Any] = {"contents": _contents(turns)}
        if system:
            body["systemInstruction"] = {"parts": [{"text": system}]}
        return body | ({"generationConfig": config} if config else {})


def _contents(turns: list[Message]) -> list[dict[str, Any]]:
    """Turns that alternate, as the API wants them: one's successive messages are the parts of one turn."""
    speakers = groupby(turns, key=lambda turn: "model" if turn.role == "assistant" else "user")
    return [{"role": role, "parts": [{"text": turn.content} for turn in said]} for role, said in speakers]
