"""What clients send to an OpenAI-compatible gateway, and the replies that are no answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from discostream.errors import RequestRejected
from discostream.types import MOST_TOKENS, Feature, Message, Request, Sampling

__all__ = [
    "DEFAULT_MODEL",
    "MAPPED_FIELDS",
    "Call",
    "chat_message",
    "decode_chat_request",
    "decode_completion_request",
    "encode_error",
    "encode_model",
    "encode_models",
    "needs_of",
    "passed_on",
]

DEFAULT_MODEL = "disco"
"""The virtual model behind which the policy chooses."""

COMPLETION_TOKENS = 16
"""The most tokens of a raw completion that names no limit, as OpenAI's API has it."""

TokenLimit = Annotated[int, Meta(ge=1, le=MOST_TOKENS)]
StopString = Annotated[str, Meta(min_length=1)]
Value = TypeVar("Value")
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]

_OPENAIS_OWN = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
"""Fields for OpenAI's own service, which change no answer: accepted, and not passed on."""

_SAYS_NOTHING: Final[Mapping[str, tuple[Any, ...]]] = {
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Values that ask for nothing; some servers refuse them all the same, so they are left out."""

_CHOICES: Final[Mapping[str, str]] = {
    "function_call": "functions",
    "parallel_tool_calls": "tools",
    "tool_choice": "tools",
}
"""Fields that mean something only beside another."""

_NO_CHOICE: Final = (b'"auto"', b'"none"', b"true", b"false")
"""What they say where there is nothing to choose among."""

_REFUSED: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}
"""Fields that are refused, but for the values that ask for nothing: `n` always, all in raw completions."""

_NEEDS: Final[Mapping[str, Feature]] = {
    "audio": Feature.AUDIO,
    "function_call": Feature.TOOLS,
    "functions": Feature.TOOLS,
    "grammar": Feature.JSON,
    "guided_choice": Feature.JSON,
    "guided_grammar": Feature.JSON,
    "guided_json": Feature.JSON,
    "guided_regex": Feature.JSON,
    "json_schema": Feature.JSON,
    "logprobs": Feature.LOGPROBS,
    "modalities": Feature.AUDIO,
    "response_format": Feature.JSON,
    "structured_outputs": Feature.JSON,
    "tool_choice": Feature.TOOLS,
    "tools": Feature.TOOLS,
    "top_logprobs": Feature.LOGPROBS,
}
"""What a field needs of an endpoint: OpenAI's own, llama.cpp's and vLLM's."""

_PART_NEEDS = {"input_audio": Feature.AUDIO}
"""What a part of a message needs that is not text; any other kind, as `image_url`, needs images."""


@dataclass(frozen=True, slots=True)
class Call:
    """One decoded `POST /v1/chat/completions` or `/v1/completions`.

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


class _Told(Struct):
    """What in a message needs something of an endpoint."""

    role: str
    content: str | list[_Part] | None = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None


class _StreamOptions(Struct):
    include_usage: bool | None = None


class _Body(Struct):
    """The fields that are understood here, and mapped to what each endpoint calls them."""

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


class _ChatBody(_Body):
    messages: list[_Message] = []


class _CompletionBody(_Body):
    prompt: str | list[str] = []


_CHAT = msgspec.json.Decoder(_ChatBody)
_COMPLETION = msgspec.json.Decoder(_CompletionBody)
_ONE_MESSAGE = msgspec.json.Decoder(_Message)
_TOLD = msgspec.json.Decoder(_Told)
_ANY = msgspec.json.Decoder()
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_MESSAGES = msgspec.json.Decoder(list[dict[str, Raw]])

MAPPED_FIELDS = frozenset({*_ChatBody.__struct_fields__, "prompt"})
"""What is understood here, and so never passed on as it is."""


def decode_chat_request(body: bytes, *, arrived_at: float, request_id: str) -> Call:
    """The call that the body of a chat completion makes.

    Raises:
        RequestRejected: The body is not JSON, has a field of the wrong type or value, or asks for what is
            never passed on; `param` names the field.
    """
    said, fields = _decode(body, _CHAT), _decode(body, _FIELDS)
    if not said.messages:
        raise RequestRejected("`messages`: must hold at least one message", param="messages")
    raws = _MESSAGES.decode(fields["messages"])
    messages = tuple(
        _message(message, raw, f"messages[{index}]")
        for index, (message, raw) in enumerate(zip(said.messages, raws, strict=True))
    )
    extras = passed_on(fields, refused=("n",))
    request = _request(said, messages, extras, needs_of(messages, extras), arrived_at, request_id)
    return _call(said, request)


def decode_completion_request(body: bytes, *, arrived_at: float, request_id: str) -> Call:
    """The call that the body of a raw completion makes. Its one message is the prompt.

    Raises:
        RequestRejected: As for chats.
    """
    said, fields = _decode(body, _COMPLETION), _decode(body, _FIELDS)
    extras = passed_on(fields, refused=_REFUSED)
    messages = (Message("prompt", _prompt(said.prompt)),)
    needs = needs_of(messages, extras) | {Feature.COMPLETIONS}
    said.max_tokens = said.max_tokens or said.max_completion_tokens or COMPLETION_TOKENS
    return _call(said, _request(said, messages, extras, needs, arrived_at, request_id))


def chat_message(message: Mapping[str, Any], where: str) -> Message:
    """A message as OpenAI's API spells it.

    Raises:
        RequestRejected: It is none, or cannot be written as JSON.
    """
    raw = _encoded(message, where)
    said, members = _decode(raw, _ONE_MESSAGE, where), _decode(raw, _FIELDS, where)
    return _message(said, members, where)


def passed_on(fields: Mapping[str, Any], refused: Iterable[str] = ("n",)) -> dict[str, bytes]:
    """The fields of a body that endpoints get as they are, in JSON.

    Args:
        fields: JSON as `Raw`, or values to be written as such.
        refused: Those that are never passed on.

    Raises:
        RequestRejected: A field is refused, or is no JSON.
    """
    passed = {}
    for name, field in fields.items():
        if name in MAPPED_FIELDS or name in _OPENAIS_OWN:
            continue
        raw = bytes(field) if isinstance(field, Raw) else _encoded(field, name)
        value = _decode(raw, _ANY, name)
        if name in refused:
            _refuse_unless(value, name)
        elif value is not None and not _is_one_of(value, _SAYS_NOTHING.get(name, ())):
            passed[name] = raw
    for choice, among in _CHOICES.items():
        if among not in passed and passed.get(choice) in _NO_CHOICE:
            del passed[choice]
    return passed


def needs_of(messages: Iterable[Message], fields: Mapping[str, bytes]) -> frozenset[Feature]:
    """What an endpoint must be able to do to be asked for this."""
    return frozenset((*_needs_of_fields(fields), *_needs_of_messages(messages)))


def _needs_of_fields(fields: Mapping[str, bytes]) -> Iterator[Feature]:
    return (_NEEDS[name] for name in fields if name in _NEEDS)


def _needs_of_messages(messages: Iterable[Message]) -> Iterator[Feature]:
    for raw in (message.raw for message in messages if message.raw is not None):
        message = _TOLD.decode(raw)
        if message.role in ("tool", "function") or message.tool_calls or message.function_call:
            yield Feature.TOOLS
        if message.audio:
            yield Feature.AUDIO
        parts = message.content if isinstance(message.content, list) else ()
        kinds = {part.type for part in parts} - {"text", "refusal"}
        yield from (_PART_NEEDS.get(kind, Feature.IMAGES) for kind in kinds)


def _request(
    said: _Body,
    messages: tuple[Message, ...],
    fields: Mapping[str, bytes],
    needs: frozenset[Feature],
    arrived_at: float,
    request_id: str,
) -> Request:
    return Request(
        messages=messages,
        arrived_at=arrived_at,
        request_id=request_id,
        max_tokens=min(filter(None, (said.max_tokens, said.max_completion_tokens)), default=None),
        stop=(said.stop,) if isinstance(said.stop, str) else tuple(said.stop or ()),
        sampling=Sampling(
            temperature=said.temperature,
            top_p=said.top_p,
            seed=said.seed,
            presence_penalty=said.presence_penalty,
            frequency_penalty=said.frequency_penalty,
        ),
        needs=needs,
        fields=fields,
    )


def _call(said: _Body, request: Request) -> Call:
    include_usage = said.stream_options is not None and bool(said.stream_options.include_usage)
    return Call(request, said.model, bool(said.stream), include_usage)


def _decode(raw: bytes, decoder: msgspec.json.Decoder[Value], within: str = "") -> Value:
    """The value in some JSON, which stands for the whole body, or for what `within` names."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        param = (within + path.rstrip("`")).removeprefix(".") or None
        where = f"`{param}`: " if param else "The body: "
        raise RequestRejected(f"{where}{what[:1].lower()}{what[1:]}", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestRejected(f"The body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise RequestRejected("The body is nested too deeply", code="invalid_json") from None


def _encoded(value: Any, where: str) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestRejected(f"`{where}`: cannot be written as JSON: {error}", param=where) from None


def _refuse_unless(value: Any, name: str) -> None:
    if value is not None and not _is_one_of(value, _REFUSED[name]):
        raise RequestRejected(
            f"`{name}` is not supported; leave it out", param=name, code="unsupported_parameter"
        )


def _is_one_of(value: Any, known: Iterable[Any]) -> bool:
    """Whether it is; true is not 1."""
    return any(value == one and type(value) is type(one) for one in known)


def _message(said: _Message, raw: Mapping[str, Raw], where: str) -> Message:
    # "developer" is OpenAI's newer word for "system"; most chat templates know only the older one.
    role = "system" if said.role == "developer" else said.role
    more = {name for name, value in raw.items() if bytes(value) != b"null"} - {"role", "content"}
    if said.content is None and not more:
        raise RequestRejected(f"`{where}.content`: must be text or a list of parts", param=f"{where}.content")
    parts = said.content if isinstance(said.content, list) else []
    for index, part in enumerate(parts):
        if part.type == "text" and part.text is None:
            raise RequestRejected(
                f"`{where}.content[{index}].text`: is missing", param=f"{where}.content[{index}].text"
            )
    text = "\n".join([part.text for part in parts if part.text]) if parts else str(said.content or "")
    plain = said.role not in ("tool", "function") and not more and _are_plain(parts, raw)
    if plain:
        return Message(role, text)
    whole = msgspec.json.encode({**raw, "role": role})
    _decode(whole, _ANY, where)  # what was not looked at so far could be no JSON
    return Message(role, text, whole)


def _are_plain(parts: Iterable[_Part], raw: Mapping[str, Raw]) -> bool:
    """Whether the parts of a message are nothing but text."""
    return not parts or all(
        part.keys() == {"type", "text"} and part["type"] == "text"
        for part in msgspec.json.decode(raw["content"])
    )


def _prompt(prompt: str | list[str]) -> str:
    texts = [prompt] if isinstance(prompt, str) else prompt
    if len(texts) != 1:
        raise RequestRejected("`prompt`: must be one string, or a list with one string", param="prompt")
    return texts[0]


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
