"""Ollama's `/api/chat`, as its docs/api.md describes it.

`open` is a model whose template leaves a last assistant turn open, so that it goes on; `closed` begins anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from standins.serving import PROMPT_TOKENS, Asked, Reply, refusal, words


def handle(asked: Asked) -> Reply:
    model = asked.body["model"]
    if asked.path != "/api/chat" or model not in ("open", "closed"):
        return refusal(404, {"error": f"model '{model}' not found"})
    last = asked.body["messages"][-1]
    told = last["content"] if last["role"] == "assistant" and model == "open" else ""
    return "application/x-ndjson", _stream(model, told, asked.body.get("options", {}).get("num_predict"))


def _stream(model: str, told: str, most: int | None) -> Iterator[bytes]:
    said, whole = words(told, most)
    head = {"model": model, "created_at": "2026-11-01T00:00:00Z"}
    thinking = {"role": "assistant", "content": "", "thinking": "Hm."}
    yield _line({**head, "message": thinking, "done": False})
    for word in said:
        yield _line({**head, "message": {"role": "assistant", "content": word}, "done": False})
    yield _line(
        {
            **head,
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop" if whole else "length",
            "total_duration": 4_883_583_458,
            "prompt_eval_count": PROMPT_TOKENS,
            "eval_count": len(said) + 1,
        }
    )


def _line(body: dict[str, object]) -> bytes:
    return json.dumps(body).encode() + b"\n"
