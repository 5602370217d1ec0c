"""What is known of the endpoints and the requests, and grows with every outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from discostream.builtin import builtin_output_lengths, builtin_profiles, builtin_prompt_lengths
from discostream.core.cost import Rates
from discostream.core.distributions import Distribution
from discostream.core.profile import DeviceTtft, EndpointProfile, Known, Lengths, ServerTtft
from discostream.endpoints.base import Endpoint
from discostream.types import Attempt, Kind, Outcome

__all__ = ["Knowledge"]

SERVER_PRIOR = "gpt-4o"
DEVICE_S_PER_TOKEN, DEVICE_STARTUP_S, DEVICE_SPREAD_S = 1 / 100, 0.05, 0.1
"""SmolLM2-135M Q4_1 on one core of a server CPU, until the device has been seen."""

DECODE_TOKENS_PER_S = 50.0
"""Until an endpoint has been timed; SmolLM2 on one core decodes 57, GPT-4o's median is 63."""

CHARS_PER_TOKEN = 4.0
"""English text in the vocabularies of current models, until endpoints have counted some prompts."""

MEMORY = 0.9
"""What the old estimate of a pace or a ratio keeps when a new one has been measured."""


@dataclass
class _Learnt:
    ttft: ServerTtft | DeviceTtft
    decode_tokens_per_s: float = DECODE_TOKENS_PER_S

    def observe(self, attempt: Attempt) -> None:
        if attempt.ttft_s is not None:
            self.ttft = self.ttft.observe(attempt.prompt_tokens, attempt.ttft_s - attempt.start_offset_s)
        if attempt.mean_tbt_s:
            pace = 1 / attempt.mean_tbt_s
            self.decode_tokens_per_s = MEMORY * self.decode_tokens_per_s + (1 - MEMORY) * pace


@dataclass
class Knowledge:
    """Priors, and what outcomes have taught since. `known` freezes it for one request."""

    endpoints: Mapping[str, Endpoint]
    prompt_tokens: Lengths = field(default_factory=lambda: Lengths(builtin_prompt_lengths()))
    answer_tokens: Lengths = field(default_factory=lambda: Lengths(builtin_output_lengths()))
    chars_per_token: float = CHARS_PER_TOKEN

    def __post_init__(self) -> None:
        self._learnt = {name: _Learnt(_believed(endpoint.kind)) for name, endpoint in self.endpoints.items()}

    def estimate_tokens(self, chars: int) -> int:
        """About how many tokens a prompt of so many characters has, before any endpoint has counted it."""
        return max(1, round(chars / self.chars_per_token))

    def expect_prompts(self, chars: Sequence[int]) -> None:
        """Take these prompt lengths for what is to come, until more is seen."""
        tokens = [self.estimate_tokens(length) for length in chars]
        self.prompt_tokens = Lengths(Distribution.of_samples(tokens))

    def known(self, usd_per_joule: float) -> Known:
        """One frozen snapshot, with energy converted at this exchange rate."""
        return Known(
            tuple(self._profile(endpoint, usd_per_joule) for endpoint in self.endpoints.values()),
            self.prompt_tokens,
            self.answer_tokens,
        )

    def observe(self, outcome: Outcome) -> None:
        """Learn from a settled request."""
        for attempt in outcome.attempts:
            self._learnt[attempt.endpoint].observe(attempt)
        # Plans are looked up by estimated lengths, so these are what the table must be made from.
        self.prompt_tokens = self.prompt_tokens.observe(self.estimate_tokens(outcome.prompt_chars))
        seen = outcome.prompt_chars / max(outcome.prompt_tokens, 1)
        self.chars_per_token = max(MEMORY * self.chars_per_token + (1 - MEMORY) * seen, 0.1)
        if outcome.finish_reason is not None:
            self.answer_tokens = self.answer_tokens.observe(outcome.completion_tokens)

    def _profile(self, endpoint: Endpoint, usd_per_joule: float) -> EndpointProfile:
        learnt = self._learnt[endpoint.name]
        rates = Rates.of(endpoint.prices, endpoint.energy, usd_per_joule)
        return EndpointProfile(endpoint.name, endpoint.kind, rates, learnt.ttft, learnt.decode_tokens_per_s)


def _believed(kind: Kind) -> ServerTtft | DeviceTtft:
    if kind is Kind.DEVICE:
        return DeviceTtft.believed(DEVICE_S_PER_TOKEN, DEVICE_STARTUP_S, DEVICE_SPREAD_S)
    return ServerTtft(builtin_profiles()[SERVER_PRIOR].ttft)
