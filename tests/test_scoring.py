"""The scorer on the real engine, against what probabilities must be and what generation reports."""

from __future__ import annotations

import json
import math
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest
from scoring import BETWEEN, Score, Scorer

pytestmark = pytest.mark.anyio

PROMPT = "Why is the sky blue?"


@pytest.fixture
async def address(engine):
    """Where the shared engine listens."""
    return await engine.address()


def generated(address, tokens):
    """What the engine goes on with behind the prompt, greedily, and the log-probabilities it reports."""
    asked = {
        "prompt": PROMPT + BETWEEN,
        "n_predict": tokens,
        "temperature": 0,
        "n_probs": 1,
        "cache_prompt": True,
    }
    connection = HTTPConnection(urlsplit(address.base_url).netloc)
    connection.request(
        "POST", "/completion", json.dumps(asked), {"Authorization": f"Bearer {address.api_key}"}
    )
    told = json.loads(connection.getresponse().read())
    connection.close()
    return told["content"], [each["logprob"] for each in told["completion_probabilities"]]


async def test_probabilities_are_of_the_whole_vocabulary(address):
    """Over all tokens that could come next, probabilities add up to one; forcing one tells the same of it."""
    scorer = Scorer(address)
    ids = [token["id"] for token in scorer._tokens(PROMPT + BETWEEN, add_special=True)]
    told = scorer.distribution(ids)
    assert len(told) == 49_152
    assert math.fsum(map(math.exp, told.values())) == pytest.approx(1.0, abs=1e-3)
    for answer in ("The", " zebra", "\n"):
        [token] = scorer._tokens(answer)
        assert scorer.score(PROMPT, answer).logprobs == (pytest.approx(told[token["id"]], abs=0.01),)


async def test_a_greedy_answer_is_as_probable_as_its_generation_reported(address):
    """Read token by token, an answer has the log-probabilities that it was generated with.

    But for rounding: prompts and single tokens are computed in different orders.
    """
    answer, reported = generated(address, 16)
    score = Scorer(address).score(PROMPT, answer)
    assert score.logprobs == pytest.approx(reported, abs=0.3)
    assert score.mean() == pytest.approx(sum(reported) / len(reported), abs=0.05)


async def test_parts_of_characters_are_scored_too(address):
    """A character of several tokens, of which llama.cpp tells nothing by itself, has a probability each."""
    score = Scorer(address).score("Say it in Japanese.", "It is 猐.")
    assert len(score.logprobs) > len(set(score.begins))
    assert all(logprob < 0.0 for logprob in score.logprobs)


async def test_texts_that_begin_alike_are_scored_alike(address):
    """What the text before has told of a common beginning is what it would be told anew."""
    scorer = Scorer(address)
    first = scorer.score(PROMPT, "The sky is blue because of the air.")
    second = scorer.score(PROMPT, "The sky is blue because of the sea.")
    assert second.logprobs[:6] == first.logprobs[:6]
    assert second.logprobs == pytest.approx(
        Scorer(address).score(PROMPT, "The sky is blue because of the sea.").logprobs, abs=0.3
    )
    other = scorer.score("Why is the sea blue?", "The sky is blue because of the sea.")
    assert other.logprobs != second.logprobs


def test_a_mean_is_of_the_tokens_within():
    """Means and windows go by the characters at which tokens begin."""
    score = Score((0, 3, 7, 8, 12), (-1.0, -2.0, -3.0, -4.0, -5.0))
    assert score.mean() == -3.0
    assert score.mean(3, 8) == -2.5
    assert score.mean(13) is None
    assert score.window(8, 2) == (3, None)
    assert score.window(7, 1) == (3, 8)
    assert score.window(0, 1) == (0, 3)
