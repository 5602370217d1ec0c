"""How probable a text is to a model, token by token, asked of an embedded engine.

llama.cpp's server tells no probabilities of prompts, but of what it samples it tells them from before the
sampling: the softmax over the whole vocabulary, whatever was done to the logits since. So each token of the
text is made the only one that can be sampled, behind those before it, which are in the cache.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import accumulate, takewhile
from typing import Any
from urllib.parse import urlsplit

from discostream.engine.supervisor import EngineAddress

__all__ = ["Score", "Scorer"]

FORCED = 1e6
"""Added to a logit, more than all differences between them."""

BETWEEN = "\n\n"
"""What stands between a prompt and its answer: no model's chat template, as they may have different ones."""


@dataclass(frozen=True)
class Score:
    """The tokens of a text in the scorer's vocabulary.

    Attributes:
        begins: The character at which each one begins.
        logprobs: Its natural log-probability, given the prompt and those before it.
    """

    begins: tuple[int, ...]
    logprobs: tuple[float, ...]

    def mean(self, begin: int = 0, end: int | None = None) -> float | None:
        """Per token, over those that begin within these characters; `None` if none does."""
        within = [
            logprob
            for at, logprob in zip(self.begins, self.logprobs, strict=True)
            if begin <= at and (end is None or at < end)
        ]
        return sum(within) / len(within) if within else None

    def window(self, at_char: int, tokens: int) -> tuple[int, int | None]:
        """From which character to which so many tokens lie on either side of a place; `None` is the end."""
        seam = sum(at < at_char for at in self.begins)
        first, last = max(seam - tokens, 0), seam + tokens
        return self.begins[first], self.begins[last] if last < len(self.begins) else None


class Scorer:
    """Scores texts, one after another; texts that begin alike are the quicker for following each other.

    Args:
        address: Of a running engine.
    """

    def __init__(self, address: EngineAddress) -> None:
        self._address = address
        self._host = urlsplit(address.base_url).netloc
        self._vocabulary = self._ask("/v1/models")["data"][0]["meta"]["n_vocab"]
        self._whole = self._tokens("a")[0]["id"]
        self._given: list[int] = []
        self._ids: tuple[int, ...] = ()
        self._logprobs: tuple[float, ...] = ()

    def score(self, prompt: str, answer: str) -> Score:
        """How probable an answer is behind its prompt."""
        given = [token["id"] for token in self._tokens(prompt + BETWEEN, add_special=True)]
        tokens = self._tokens(answer)
        logprobs = self._continued(given, [token["id"] for token in tokens])
        ends = accumulate(len(_bytes(token["piece"])) for token in tokens)
        begins = [0, *ends][: len(tokens)]
        told = answer.encode()
        return Score(tuple(len(told[:at].decode(errors="ignore")) for at in begins), logprobs)

    def distribution(self, ids: Sequence[int]) -> dict[int, float]:
        """The log-probability of every token that could come next."""
        told = self._next(ids, self._whole, self._vocabulary)
        return {each["id"]: each["logprob"] for each in told[0]["top_logprobs"]}

    def _continued(self, given: list[int], ids: list[int]) -> tuple[float, ...]:
        """The log-probabilities of `ids` behind `given`; those that the text before began with are known."""
        whole = (*given, *ids)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._ids, whole, strict=False)))
        logprobs = self._logprobs[: max(same - len(given), 0)] if self._given == given else ()
        first = len(given) + len(logprobs)
        logprobs += tuple(self._logprob(whole[:at], whole[at]) for at in range(first, len(whole)))
        self._given, self._ids, self._logprobs = given, whole, logprobs
        return logprobs

    def _logprob(self, ids: Sequence[int], following: int) -> float:
        told = self._next(ids, following, 1)
        # Nothing is told of a token that is only a part of a character.
        return float(told[0]["logprob"]) if told else self.distribution(ids)[following]

    def _next(self, ids: Sequence[int], following: int, most: int) -> list[dict[str, Any]]:
        asked = {
            "prompt": ids,
            "n_predict": 1,
            "temperature": 0,
            "n_probs": most,
            "logit_bias": [[following, FORCED]],
            "cache_prompt": True,
        }
        told: list[dict[str, Any]] = self._ask("/completion", asked).get("completion_probabilities", [])
        return told

    def _tokens(self, text: str, *, add_special: bool = False) -> list[dict[str, Any]]:
        asked = {"content": text, "add_special": add_special, "with_pieces": True}
        tokens: list[dict[str, Any]] = self._ask("/tokenize", asked)["tokens"]
        return tokens

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Authorization": f"Bearer {self._address.api_key}", "Content-Type": "application/json"}
        connection = HTTPConnection(self._host)
        try:
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            told = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{path}: {told}")
        return told


def _bytes(piece: str | list[int]) -> bytes:
    return piece.encode() if isinstance(piece, str) else bytes(piece)
