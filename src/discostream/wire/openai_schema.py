"""What clients send to an OpenAI-compatible gateway, and what it sends back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from discostream.errors import RequestRejected
from discostream.types import Message, Outcome, Request, Sampling

__all__ = [
    "DEFAULT_MODEL",
    "ChatCall",
    "ChunkEncoder",
    "decode_chat_request",
    "encode_completion",
    "encode_error",
    "encode_model",
    "encode_models",
]

DEFAULT_MODEL = "disco"
"""The virtual model behind which the policy chooses."""

TokenLimit = Annotated[int, Meta(ge=1, le=2**31 - 1)]
StopString = Annotated[str, Meta(min_length=1)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]

_HARMLESS: Final[Mapping[str, tuple[Any, ...]]] = {
    "audio": (),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields that no endpoint carries yet, each with the values that ask for nothing.

Any other value is refused. What OpenAI's API does not define, or what does not change the answer
(`user`, `metadata`, `store`, `prediction`, …), is ignored.
"""


@dataclass(frozen=True, slots=True)
class ChatCall:
    """One decoded `POST /v1/chat/completions`.

    Attributes:
        request: What to answer.
        model: The model the client named; answers carry it back.
        stream: Whether the answer goes out as events.
        include_usage: Whether the stream ends with a usage chunk.
    """

    request: Request
    model: str
    stream: bool
    include_usage: bool


class _Part(Struct):
    type: str
    text: str | None = None


class _Message(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None
    tool_calls: Any = None
    function_call: Any = None


class _StreamOptions(Struct):
    include_usage: bool | None = None


class _Body(Struct):
    messages: list[_Message] = []
    model: str = DEFAULT_MODEL
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=4)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    modalities: Any = None
    n: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    tool_choice: Any = None
    tools: Any = None
    top_logprobs: Any = None
    verbosity: Any = None
    web_search_options: Any = None


_BODY = msgspec.json.Decoder(_Body)


def decode_chat_request(body: bytes, *, arrived_at: float, request_id: str) -> ChatCall:
    """The call that a request body makes.

    Raises:
        RequestRejected: The body is not JSON, has a field of the wrong type or value, or asks for
            something that no endpoint can carry yet; `param` names the field.
    """
    fields = _decode(body)
    _refuse_unsupported(fields)
    stop = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ())
    request = Request(
        messages=_messages(fields.messages),
        arrived_at=arrived_at,
        request_id=request_id,
        max_tokens=min(filter(None, (fields.max_tokens, fields.max_completion_tokens)), default=None),
        stop=stop,
        sampling=Sampling(
            temperature=fields.temperature,
            top_p=fields.top_p,
            seed=fields.seed,
            presence_penalty=fields.presence_penalty,
            frequency_penalty=fields.frequency_penalty,
        ),
    )
    include_usage = fields.stream_options is not None and bool(fields.stream_options.include_usage)
    return ChatCall(request, fields.model, bool(fields.stream), include_usage)


def _decode(body: bytes) -> _Body:
    try:
        return _BODY.decode(body)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        param = path.rstrip("`").removeprefix(".") or None
        where = f"`{param}`: " if param else "The body: "
        raise RequestRejected(f"{where}{what[:1].lower()}{what[1:]}", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestRejected(f"The body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise RequestRejected("The body is nested too deeply", code="invalid_json") from None


def _refuse_unsupported(fields: _Body) -> None:
    for name, harmless in _HARMLESS.items():
        value = getattr(fields, name)
        if value is not None and not any(value == none and type(value) is type(none) for none in harmless):
            raise _unsupported(f"`{name}`", name)


def _unsupported(what: str, param: str) -> RequestRejected:
    return RequestRejected(
        f"{what} is not supported by this version; leave it out", param=param, code="unsupported_parameter"
    )


def _messages(messages: list[_Message]) -> tuple[Message, ...]:
    if not messages:
        raise RequestRejected("`messages`: must hold at least one message", param="messages")
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def _message(message: _Message, where: str) -> Message:
    if message.role in ("tool", "function"):
        raise _unsupported(f"`{where}.role`: {message.role!r}", f"{where}.role")
    for name in ("tool_calls", "function_call"):
        if getattr(message, name):
            raise _unsupported(f"`{where}.{name}`", f"{where}.{name}")
    # "developer" is OpenAI's newer word for "system"; most chat templates know only the older one.
    role = "system" if message.role == "developer" else message.role
    return Message(role, _content(message.content, f"{where}.content"))


def _content(content: str | list[_Part] | None, where: str) -> str:
    if content is None:
        raise RequestRejected(f"`{where}`: must be text or a list of text parts", param=where)
    if isinstance(content, str):
        return content
    return "\n".join(_part_text(part, f"{where}[{index}]") for index, part in enumerate(content))


def _part_text(part: _Part, where: str) -> str:
    if part.type != "text":
        raise _unsupported(f"`{where}`: a part of type {part.type!r}", f"{where}.type")
    if part.text is None:
        raise RequestRejected(f"`{where}.text`: is missing", param=f"{where}.text")
    return part.text


class ChunkEncoder:
    """Writes the chunks of one streamed answer; `id`, `created` and `model` stay the same on all.

    Call `opening` once, `piece` per piece, `finish` once, and `usage` last if the client asked for it.
    """

    def __init__(self, call: ChatCall, created: int) -> None:
        self._head = _head(call, created, "chat.completion.chunk")
        self._delta = b'%b,"choices":[{"index":0,"delta":' % self._head
        self._usage = b',"usage":null' if call.include_usage else b""
        self._tail = b',"logprobs":null,"finish_reason":null}]%b}' % self._usage

    def opening(self) -> bytes:
        """The first chunk: who speaks. Sent once, because clients join repeated roles."""
        return b'%b{"role":"assistant","content":""}%b' % (self._delta, self._tail)

    def piece(self, text: str) -> bytes:
        """A chunk that carries text."""
        return b'%b{"content":%b}%b' % (self._delta, msgspec.json.encode(text), self._tail)

    def finish(self, outcome: Outcome) -> bytes:
        """The chunk that ends the answer: why it ended, and the `disco` account at top level."""
        reason, disco = _finish_reason(outcome).encode(), msgspec.json.encode(outcome.as_disco())
        choice = b'{},"logprobs":null,"finish_reason":"%b"}]' % reason
        return b'%b%b%b,"disco":%b}' % (self._delta, choice, self._usage, disco)

    def usage(self, outcome: Outcome) -> bytes:
        """The chunk that carries the token counts: no choices, and nothing but [DONE] after it."""
        return b'%b,"choices":[],"usage":%b}' % (self._head, msgspec.json.encode(_usage(outcome)))


def encode_completion(call: ChatCall, created: int, text: str, outcome: Outcome) -> bytes:
    """The body of an answer that is not streamed."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(outcome)}
    rest = {"choices": [choice], "usage": _usage(outcome), "disco": outcome.as_disco()}
    return b"%b,%b" % (_head(call, created, "chat.completion"), msgspec.json.encode(rest)[1:])


def encode_error(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """An error object, the same for a response's body and for an event in a stream."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def encode_model(name: str, created: int) -> bytes:
    """One model."""
    return msgspec.json.encode(_model(name, created))


def encode_models(names: list[str], created: int) -> bytes:
    """The list of models."""
    return msgspec.json.encode({"object": "list", "data": [_model(name, created) for name in names]})


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "discostream"}


def _head(call: ChatCall, created: int, kind: str) -> bytes:
    """An unclosed JSON object with the fields that all chunks of an answer share."""
    shared = {
        "id": f"chatcmpl-{call.request.request_id}",
        "object": kind,
        "created": created,
        "model": call.model,
    }
    return msgspec.json.encode(shared)[:-1]


def _finish_reason(outcome: Outcome) -> str:
    assert outcome.finish_reason is not None
    return outcome.finish_reason.value


def _usage(outcome: Outcome) -> dict[str, int]:
    prompt, completion = outcome.prompt_tokens, outcome.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
