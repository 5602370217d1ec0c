"""`GET /openapi.json`: what every route takes and gives, for clients that are generated and for tests.

What clients of the API send and get is written by hand, because it promises what they may rely on, not what a
decoder happens to accept. The dashboard's data are as their types say.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

import msgspec
from aiohttp import web

from discostream.core.budget import Resource, Window
from discostream.core.qoe import Gap
from discostream.ledger.overview import Overview
from discostream.ledger.queries import OUTCOMES, RecordedRequest
from discostream.session.live import RequestNow
from discostream.session.models import VIRTUAL
from discostream.types import Attempt, Feature, FinishReason, Kind, Migration
from discostream.wire.openai_schema import DEFAULT_MODEL

__all__ = ["OPERATIONS", "SCHEMAS", "document"]

Schema = dict[str, Any]


def document(app: web.Application) -> Schema:
    """The OpenAPI document of an application's routes."""
    paths: Schema = {}
    for route in app.router.routes():
        if route.method != "HEAD" and route.resource is not None:
            path = route.resource.canonical
            paths.setdefault(path, {})[route.method.lower()] = OPERATIONS[route.method, path]
    return {
        "openapi": "3.1.0",
        "info": {"title": "discostream", "version": version("discostream")},
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _named(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _some(schema: Schema) -> Schema:
    """The same, or nothing said."""
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def _object(required: str = "", **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required.split()}


def _passed(says: str, *examples: Any) -> Schema:
    """What is passed on as it is: any value will do here, and what is wrong with it the endpoint says."""
    return {"description": says, "examples": list(examples)} if examples else {"description": says}


def _needs(feature: Feature, *examples: Any) -> Schema:
    return _passed(f"Passed to endpoints with the feature `{feature}`.", *examples)


def _only(value: Any) -> Schema:
    """A field that may ask for nothing."""
    return {"enum": [value, None]}


def _gives(schema: Schema, says: str, **others: Schema) -> Schema:
    return {"description": says, "content": {"application/json": {"schema": schema}, **others}}


def _events(chunk: str) -> Schema:
    """A stream: chunks, perhaps an error, and the word that ends it."""
    told = {
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_named(chunk), _named("Error")]},
    }
    event = _object("data", data={"type": "string", "anyOf": [{"const": "[DONE]"}, told]})
    return {"text/event-stream": {"schema": event}}


def _header(name: str, says: str, schema: Schema) -> Schema:
    return {"name": name, "in": "header", "description": says, "schema": schema}


_TEXT: Final[Schema] = {"type": "string"}
_ANY: Final[Schema] = {}
_FLAG: Final[Schema] = {"type": "boolean"}
_KIND: Final[Schema] = {"enum": [kind.value for kind in Kind]}
_TRUTH: Final[Schema] = {"type": "string", "enum": ["true", "false"]}
_NUMBER: Final[Schema] = {"type": "number"}
_SHARE: Final[Schema] = {"type": "number", "minimum": 0, "maximum": 1}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_LIMIT: Final[Schema] = _some({"type": "integer", "minimum": 1, "maximum": 2**31 - 1})
_PENALTY: Final[Schema] = _some({"type": "number", "minimum": -2, "maximum": 2})
_WORD: Final[Schema] = {"type": "string", "minLength": 1}
_PASSED: Final = _passed("Passed.")
_OPENAIS: Final = _passed("Accepted and not passed: it concerns OpenAI's own service.")

_MOMENT: Final[Schema] = {"type": "string", "format": "date-time"}

_MODEL: Final[Schema] = {"anyOf": [{"enum": list(VIRTUAL)}, _TEXT], "default": DEFAULT_MODEL}
_POLICIES: Final = ["cheap", "device-only", "disco", "fast", "optimal", "server-only", "stochastic"]
_POLICY: Final[Schema] = {"anyOf": [{"enum": _POLICIES}, _TEXT]}

_COMMON: Final[Schema] = {
    "model": _MODEL,
    "stream": _some(_FLAG),
    "stream_options": _some(_object(include_usage=_some(_FLAG))),
    "max_tokens": _LIMIT,
    "max_completion_tokens": _LIMIT,
    "stop": {"anyOf": [_WORD, _list(_WORD, maxItems=4), {"type": "null"}]},
    "temperature": _some({"type": "number", "minimum": 0, "maximum": 2}),
    "top_p": _some({"type": "number", "minimum": 0, "maximum": 1}),
    "seed": _some({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}),
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "n": _only(1),
    "logit_bias": _PASSED,
    "store": _OPENAIS,
    "metadata": _OPENAIS,
    "user": _OPENAIS,
    "safety_identifier": _OPENAIS,
    "service_tier": _OPENAIS,
    "prompt_cache_key": _OPENAIS,
    "prompt_cache_retention": _OPENAIS,
}
_FUNCTION: Final[Schema] = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
_ASKS: Final[Schema] = {
    "tools": _needs(Feature.TOOLS, [{"type": "function", "function": _FUNCTION}]),
    "tool_choice": _needs(Feature.TOOLS, "auto", "required"),
    "parallel_tool_calls": _PASSED,
    "functions": _needs(Feature.TOOLS, [_FUNCTION]),
    "function_call": _needs(Feature.TOOLS, {"name": "weather"}),
    "response_format": _needs(Feature.JSON, {"type": "json_object"}),
    "json_schema": _needs(Feature.JSON),
    "grammar": _needs(Feature.JSON),
    "guided_json": _needs(Feature.JSON),
    "guided_choice": _needs(Feature.JSON),
    "guided_regex": _needs(Feature.JSON),
    "guided_grammar": _needs(Feature.JSON),
    "structured_outputs": _needs(Feature.JSON),
    "logprobs": _needs(Feature.LOGPROBS, True),
    "top_logprobs": _needs(Feature.LOGPROBS, 2),
    "modalities": _needs(Feature.AUDIO, ["text"]),
    "audio": _needs(Feature.AUDIO),
    "reasoning_effort": _passed("Passed.", "low"),
    "top_k": _PASSED,
    "min_p": _PASSED,
    "chat_template_kwargs": _PASSED,
}
"""What is passed, beside fields yet unknown."""
_ROLES: Final = ["system", "developer", "user", "assistant", "tool", "function"]
_CALLED: Final = {"name": "weather", "arguments": "{}"}
_ENDED: Final[Schema] = {"enum": [reason.value for reason in FinishReason]}
_LOGPROBS: Final = _some({"type": "object"})
_CALL: Final = _object("name arguments", name=_TEXT, arguments=_TEXT)
_ANSWER: Final[Schema] = {
    "id": _TEXT,
    "created": _COUNT,
    "model": _TEXT,
    "usage": _named("Usage"),
    "disco": _named("Disco"),
}
_CHUNK: Final[Schema] = {
    **_ANSWER,
    "usage": _some(_named("Usage")),
    "disco": {"anyOf": [_named("Disco"), _named("Annotation")]},
}

_DATA: Final = msgspec.json.schema_components(
    [Overview, RecordedRequest, Attempt, Migration, Gap, RequestNow],
    ref_template="#/components/schemas/{name}",
)[1]
_COURSE: Final[Schema] = {
    "attempts": _list(_named("Attempt")),
    "migrations": _list(_named("Migration")),
    "longest_gaps": _some(_list(_named("Gap"))),
}

SCHEMAS: Final[Schema] = {
    **_DATA,
    "RecordedRequests": _object(
        "requests next", requests=_list(_named("RecordedRequest")), next=_some(_TEXT)
    ),
    "SettledRequest": _object(" ".join(_COURSE), **{**_DATA["RecordedRequest"]["properties"], **_COURSE}),
    "SettledRequests": _object("requests", requests=_list(_named("SettledRequest"), minItems=1)),
    "RunningRequests": _object("now requests", now=_MOMENT, requests=_list(_named("RequestNow"))),
    "Error": _object("error", error=_object("message type param code", message=_TEXT, type=_TEXT)),
    "Model": _object("id object created owned_by", id=_TEXT, object={"const": "model"}, created=_COUNT),
    "Models": _object("object data", object={"const": "list"}, data=_list(_named("Model"))),
    "Message": _object(
        "role",
        role={"enum": _ROLES},
        content={"anyOf": [_TEXT, _list(_named("Part")), {"type": "null"}]},
        name=_PASSED,
        tool_calls=_needs(Feature.TOOLS, [{"id": "call_0", "type": "function", "function": _CALLED}]),
        function_call=_needs(Feature.TOOLS, _CALLED),
        tool_call_id=_passed("Passed; whose result this is.", "call_0"),
        audio=_needs(Feature.AUDIO),
    ),
    "Part": {
        "anyOf": [
            _object("type text", type={"const": "text"}, text=_TEXT),
            _object("type", type={"type": "string", "not": {"const": "text"}}),
        ],
        "description": f"`input_audio` needs `{Feature.AUDIO}`, `image_url` and others `{Feature.IMAGES}`.",
    },
    "ChatRequest": _object("messages", messages=_list(_named("Message"), minItems=1), **_COMMON, **_ASKS),
    "ChatCompletion": _object(
        "id object created model choices usage disco",
        object={"const": "chat.completion"},
        choices=_list(
            _object(
                "index message logprobs finish_reason",
                index=_COUNT,
                message=_named("Answer"),
                logprobs=_LOGPROBS,
                finish_reason=_ENDED,
            )
        ),
        **_ANSWER,
    ),
    "ChatCompletionChunk": _object(
        "id object created model choices",
        object={"const": "chat.completion.chunk"},
        choices=_list(
            _object(
                "index delta logprobs finish_reason",
                index=_COUNT,
                delta=_named("Delta"),
                logprobs=_LOGPROBS,
                finish_reason=_some(_ENDED),
            ),
            maxItems=1,
        ),
        **_CHUNK,
    ),
    "Delta": _object(
        role={"const": "assistant"},
        content=_TEXT,
        refusal=_TEXT,
        reasoning_content=_TEXT,
        tool_calls=_list(_object("index", index=_COUNT, id=_TEXT, type=_TEXT, function={"type": "object"})),
    ),
    "Answer": _object(
        "role content refusal",
        role={"const": "assistant"},
        content=_some(_TEXT),
        refusal=_some(_TEXT),
        reasoning_content=_TEXT,
        tool_calls=_list(_object("id type function", id=_TEXT, type=_TEXT, function=_CALL)),
        function_call=_CALL,
        audio={"type": "object"},
    ),
    "CompletionRequest": _object(
        "prompt",
        prompt={"anyOf": [_TEXT, _list(_TEXT, minItems=1, maxItems=1)]},
        logprobs=_needs(Feature.LOGPROBS, 1),
        best_of=_only(1),
        echo=_only(False),
        suffix=_only(""),
        **_COMMON,
    ),
    "Completion": _object(
        "id object created model choices usage disco",
        object={"const": "text_completion"},
        choices=_list(
            _object(
                "index text logprobs finish_reason",
                index=_COUNT,
                text=_TEXT,
                logprobs=_LOGPROBS,
                finish_reason=_ENDED,
            )
        ),
        **_ANSWER,
    ),
    "CompletionChunk": _object(
        "id object created model choices",
        object={"const": "text_completion"},
        choices=_list(
            _object(
                "index text logprobs finish_reason",
                index=_COUNT,
                text=_TEXT,
                logprobs=_LOGPROBS,
                finish_reason=_some(_ENDED),
            ),
            maxItems=1,
        ),
        **_CHUNK,
    ),
    "Usage": _object(
        "prompt_tokens completion_tokens total_tokens",
        prompt_tokens=_COUNT,
        completion_tokens=_COUNT,
        total_tokens=_COUNT,
    ),
    "Disco": _object(
        "request_id policy winner ttft_s attempts migrations stayed usd joules",
        request_id=_TEXT,
        policy=_TEXT,
        winner=_some(_TEXT),
        ttft_s=_some(_NUMBER),
        attempts=_list({"type": "object"}),
        migrations=_list({"type": "object"}),
        stayed=_some(_TEXT),
        usd=_NUMBER,
        joules=_NUMBER,
    ),
    "Annotation": _object("endpoint tokens at_s", endpoint=_TEXT, tokens=_COUNT, at_s=_NUMBER),
    "EmbeddingsRequest": _object("input", input=_ANY, model=_MODEL),
    "Playground": _object(
        "consumption_tokens_per_s policy policies sharing_policies virtual_models endpoints",
        consumption_tokens_per_s=_NUMBER,
        policy=_TEXT,
        policies=_list(_TEXT),
        sharing_policies=_list(_TEXT),
        virtual_models={
            "type": "object",
            "additionalProperties": _object("policy private", policy=_some(_TEXT), private=_FLAG),
        },
        endpoints=_list(
            _object(
                "name kind model prompt_usd_per_mtok completion_usd_per_mtok decode_joules_per_token",
                name=_TEXT,
                kind=_KIND,
                model=_TEXT,
                prompt_usd_per_mtok=_NUMBER,
                completion_usd_per_mtok=_NUMBER,
                decode_joules_per_token=_NUMBER,
            )
        ),
    ),
    "Plan": _object(
        "policy share of made_at requests_since endpoints rows prompt_tokens answer_tokens chars_per_token "
        "forecast profiles",
        policy=_TEXT,
        share=_some(_SHARE),
        of=_some(_KIND),
        made_at=_TEXT,
        requests_since=_COUNT,
        endpoints=_list(_TEXT),
        rows=_list(
            _object(
                "longest_tokens actions",
                longest_tokens=_some(_COUNT),
                actions=_list(_object("weight starts", weight=_SHARE, starts=_list(_named("Start")))),
            )
        ),
        prompt_tokens=_named("Lengths"),
        answer_tokens=_named("Lengths"),
        chars_per_token=_NUMBER,
        forecast=_object("mean_ttft_s p99_ttft_s", mean_ttft_s=_NUMBER, p99_ttft_s=_some(_NUMBER)),
        profiles=_list(
            _object(
                "endpoint kind attempts_seen newest_at ttft_s s_per_prompt_token decode_tokens_per_s "
                "prompt_usd_per_mtok completion_usd_per_mtok prefill_joules_per_token "
                "decode_joules_per_token slots",
                endpoint=_TEXT,
                kind=_KIND,
                attempts_seen=_COUNT,
                newest_at=_some(_TEXT),
                ttft_s=_object("p50 p90 p99", p50=_some(_NUMBER), p90=_some(_NUMBER), p99=_some(_NUMBER)),
                s_per_prompt_token=_some(_NUMBER),
                decode_tokens_per_s=_NUMBER,
                prompt_usd_per_mtok=_NUMBER,
                completion_usd_per_mtok=_NUMBER,
                prefill_joules_per_token=_NUMBER,
                decode_joules_per_token=_NUMBER,
                slots=_some(_COUNT),
            )
        ),
    ),
    "Start": _object("endpoint offset_s", endpoint=_TEXT, offset_s=_some(_NUMBER)),
    "Lengths": _object("p10 p50 p90 p99", p10=_NUMBER, p50=_NUMBER, p90=_NUMBER, p99=_NUMBER),
    "Budgets": _object(
        "budgets usd_per_joule battery_charge",
        budgets=_list(
            _object(
                "name resource of amount hard per renews_at spent held allowance_per_request multiplier "
                "shadow_price_s_per_unit",
                name=_TEXT,
                resource={"enum": [resource.value for resource in Resource]},
                of=_some(_KIND),
                amount=_NUMBER,
                hard=_FLAG,
                per=_some({"enum": [window.value for window in Window]}),
                renews_at=_some(_TEXT),
                spent=_NUMBER,
                held=_NUMBER,
                allowance_per_request=_some(_NUMBER),
                multiplier=_some(_NUMBER),
                shadow_price_s_per_unit=_some(_NUMBER),
            )
        ),
        usd_per_joule=_NUMBER,
        battery_charge=_some(_NUMBER),
    ),
    "Standing": _object(
        "status endpoints",
        status={"enum": ["ready", "starting"]},
        endpoints={
            "type": "object",
            "additionalProperties": {"enum": ["starting", "ready", "failed"]},
        },
    ),
}

_ID: Final = _header("x-request-id", "Comes back; made up where there is none.", _TEXT)
_PRIVATE: Final = _header("x-disco-private", "Never leave the device.", _TRUTH)
_WISHES: Final = [
    _ID,
    _header("x-disco-policy", "Plan by another policy.", _POLICY),
    _header(
        "x-disco-share",
        "Plan as if `policy.share` were this; policies that know no share refuse it.",
        _SHARE,
    ),
    _PRIVATE,
    _header("x-disco-migrate", "Whether the answer may move for cost.", _TRUTH),
    _header("x-disco-rescue", "Whether another endpoint may go on when its stream breaks.", _TRUTH),
    _header(
        "x-disco-annotate",
        "Whether each chunk of a stream says who made it and when, and others who has started.",
        _TRUTH,
    ),
]
_ERROR: Final = _gives(_named("Error"), "An error, in OpenAI's shape.")
_KEY: Final[list[Schema]] = [{}, {"key": []}]


def _asks(body: str, answer: Schema, parameters: list[Schema], says: str) -> Schema:
    content = {"application/json": {"schema": _named(body)}}
    return {
        "summary": says,
        "security": _KEY,
        "parameters": parameters,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": answer, "default": _ERROR},
    }


def _shows(answer: Schema, says: str, **more: Any) -> Schema:
    return {"summary": says, "responses": {"200": answer, "default": _ERROR}, **more}


def _file(content_type: str, says: str) -> Schema:
    return _shows({"description": "It.", "content": {content_type: {"schema": _TEXT}}}, says)


def _query(name: str, says: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "description": says, "schema": schema}


_NAME: Final = {"name": "name", "in": "path", "required": True, "schema": _WORD}
_PART: Final = {**_NAME, "name": "part"}

_SPAN: Final[Schema] = {
    "anyOf": [{"type": "string", "pattern": r"^[1-9][0-9]{0,4}[smhd]$"}, _MOMENT],
    "examples": ["15m", "7d"],
}
_WITHIN_500: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": 500}
_CURSOR: Final[Schema] = {"type": "string", "pattern": "^[1-9][0-9]{0,17}$"}
_FILTERS: Final = [
    _query("since", "From then on; 1h ago if left out.", {"anyOf": [*_SPAN["anyOf"], {"const": "all"}]}),
    _query("until", "Before then; now if left out.", _SPAN),
    _query("policy", "Planned by this policy, private or not.", _TEXT),
    _query("endpoint", "That started this endpoint.", _TEXT),
    _query("outcome", "That ended so.", {"type": "string", "enum": list(OUTCOMES)}),
]

OPERATIONS: Final[dict[tuple[str, str], Schema]] = {
    ("POST", "/v1/chat/completions"): _asks(
        "ChatRequest",
        _gives(_named("ChatCompletion"), "The answer, or its events.", **_events("ChatCompletionChunk")),
        _WISHES,
        "Answer a chat.",
    ),
    ("POST", "/v1/completions"): _asks(
        "CompletionRequest",
        _gives(_named("Completion"), "The continuation, or its events.", **_events("CompletionChunk")),
        _WISHES,
        "Continue a text.",
    ),
    ("POST", "/v1/embeddings"): _asks(
        "EmbeddingsRequest",
        _gives(_ANY, "What the endpoint that embeds says."),
        [_ID, _PRIVATE],
        "Embed texts.",
    ),
    ("GET", "/v1/models"): _shows(
        _gives(_named("Models"), "All of them."), "The names that `model` may have.", security=_KEY
    ),
    ("GET", "/v1/models/{name}"): _shows(
        _gives(_named("Model"), "It."), "One model.", security=_KEY, parameters=[_NAME]
    ),
    ("GET", "/health"): _shows(_gives(_object("status", status={"const": "ok"}), "Up."), "Whether it is up."),
    ("GET", "/ready"): {
        "summary": "Whether an endpoint could answer at once.",
        "responses": {
            "200": _gives(_named("Standing"), "One could."),
            "503": _gives(_named("Standing"), "None could yet."),
            "default": _ERROR,
        },
    },
    ("GET", "/metrics"): _shows(
        {"description": "In Prometheus' text format.", "content": {"text/plain": {"schema": _TEXT}}},
        "Counts and times since the gateway was started.",
        security=_KEY,
    ),
    ("GET", "/"): _file("text/html", "The playground, for browsers."),
    ("GET", "/dashboard"): _file("text/html", "The dashboard, for browsers."),
    ("GET", "/dashboard/request"): _file("text/html", "A request's page; its `id` is in the query."),
    ("GET", "/pages/{part}"): {
        **_file("text/javascript", "A style sheet or script of these pages."),
        "parameters": [_PART],
    },
    ("GET", "/playground.json"): _shows(
        _gives(_named("Playground"), "It."), "What it shows of the settings.", security=_KEY
    ),
    ("GET", "/dashboard/api/plan"): _shows(
        _gives(_named("Plan"), "It."),
        "Who starts when by prompt length, and what that rests on; under another policy or share, if asked.",
        security=_KEY,
        parameters=[
            _query("policy", "As under this policy.", _POLICY),
            _query("share", "As with this share.", _SHARE),
        ],
    ),
    ("GET", "/dashboard/api/budgets"): _shows(
        _gives(_named("Budgets"), "They."), "How every budget stands, and what it is worth.", security=_KEY
    ),
    ("GET", "/dashboard/api/overview"): _shows(
        _gives(_named("Overview"), "Totals, quantiles, and how they came about over time."),
        "What came of the requests of a span of time.",
        security=_KEY,
        parameters=_FILTERS,
    ),
    ("GET", "/dashboard/api/requests"): _shows(
        _gives(_named("RecordedRequests"), "A page of them, the newest first."),
        "Settled requests.",
        security=_KEY,
        parameters=[
            *_FILTERS,
            _query("limit", "So many, at most; 50 if left out.", _WITHIN_500),
            _query("before", "`next` of the page before.", _CURSOR),
        ],
    ),
    ("GET", "/dashboard/api/requests/{id}"): _shows(
        _gives(_named("SettledRequests"), "All that have it: clients may use one again."),
        "Everything about the requests with one ID.",
        security=_KEY,
        parameters=[{**_NAME, "name": "id"}],
    ),
    ("GET", "/dashboard/api/live"): _shows(
        _gives(_named("RunningRequests"), "The oldest first."),
        "The requests that are being answered at this moment.",
        security=_KEY,
    ),
    ("GET", "/openapi.json"): _shows(_gives({"type": "object"}, "It."), "This document."),
}
"""What is said of each route, by its method and path."""
