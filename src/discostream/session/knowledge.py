"""What is known of the endpoints and the requests, and grows with every outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from discostream.builtin import builtin_output_lengths, builtin_profiles, builtin_prompt_lengths
from discostream.config import ProfileSettings
from discostream.core.budget import Allowance
from discostream.core.cost import Rates
from discostream.core.distributions import Distribution
from discostream.core.profile import DeviceTtft, EndpointProfile, Known, Lengths, ServerTtft
from discostream.endpoints.base import Endpoint
from discostream.ledger.outcomes import history
from discostream.types import PROBE, Attempt, FinishReason, Kind, Outcome

__all__ = ["DEVICE_PRIOR", "SERVER_PRIOR", "Experience", "Knowledge"]

SERVER_PRIOR = "gpt-4o"
"""The built-in profile that every server is believed to be like, until it has been seen."""

DEVICE_PRIOR = "SmolLM2-135M Q4_1 on one core of a server CPU"
"""What every device is believed to be like, until it has been seen."""

DEVICE_S_PER_TOKEN, DEVICE_STARTUP_S, DEVICE_SPREAD_S = 1 / 100, 0.05, 0.1

DECODE_TOKENS_PER_S = 50.0
"""Until an endpoint has been timed; SmolLM2 on one core decodes 57, GPT-4o's median is 63."""

CHARS, TOKENS = 400.0, 100.0
"""A prompt of English text in the vocabularies of current models, until endpoints have counted some."""

MEMORY = 0.9
"""What a prompt's characters and tokens still count for after the next one's."""

RECALLED = 1024
"""The latest requests, from which knowledge is made anew; those before count for less than a quarter."""


@dataclass(frozen=True, slots=True)
class Experience:
    """How much of an endpoint has been seen.

    Attributes:
        attempts: Those that were started.
        newest_at_s: When the latest was settled (seconds since the epoch); `None` before the first.
    """

    attempts: int = 0
    newest_at_s: float | None = None

    def observe(self, at_s: float) -> Experience:
        """The same with one attempt more."""
        return Experience(self.attempts + 1, max(at_s, self.newest_at_s or at_s))


class Knowledge:
    """Priors, and what outcomes have taught since. `known` freezes it for one request.

    It is nothing but `observe`, folded over outcomes: `recall` makes it anew from those in a ledger.

    Args:
        endpoints: By name.
        settings: How soon what was learnt is forgotten.

    Attributes:
        prompt_tokens: How long prompts are.
        answer_tokens: How long answers are.
    """

    def __init__(self, endpoints: Mapping[str, Endpoint], settings: ProfileSettings | None = None) -> None:
        self.endpoints = endpoints
        self._settings = settings or ProfileSettings()
        self.prompt_tokens = self._lengths(builtin_prompt_lengths())
        self.answer_tokens = self._lengths(builtin_output_lengths())
        self._counted = CHARS, TOKENS
        self._profiles = {name: self._believed(endpoint) for name, endpoint in endpoints.items()}
        self._experience = dict.fromkeys(endpoints, Experience())

    @property
    def chars_per_token(self) -> float:
        """How many characters stand for a token, in the prompts that endpoints have counted."""
        chars, tokens = self._counted
        return max(chars / tokens, 0.1)

    @property
    def changes(self) -> int:
        """How often an endpoint has changed at once; plans from before that are out of date."""
        return sum(profile.changes for profile in self._profiles.values())

    def experience(self, endpoint: str) -> Experience:
        """How much of an endpoint has been seen."""
        return self._experience[endpoint]

    def estimate_tokens(self, chars: int) -> int:
        """About how many tokens a prompt of so many characters has, before any endpoint has counted it."""
        return max(1, round(chars / self.chars_per_token))

    def expect_prompts(self, chars: Sequence[int]) -> None:
        """Take these prompt lengths for what is to come, until more is seen."""
        tokens = [self.estimate_tokens(length) for length in chars]
        self.prompt_tokens = self._lengths(Distribution.of_samples(tokens))

    def known(
        self, usd_per_joule: float, allowances: tuple[Allowance, ...] = (), now_s: float | None = None
    ) -> Known:
        """One frozen snapshot.

        Args:
            usd_per_joule: The exchange rate, at which energy is converted.
            allowances: What an average request may use of each budget.
            now_s: The moment (seconds since the epoch), until which what was seen has aged; when the newest
                of it was seen, if left out.
        """
        if now_s is not None:
            self._age_until(now_s)
        profiles = tuple(self._profile(endpoint, usd_per_joule) for endpoint in self.endpoints.values())
        return Known(profiles, self.prompt_tokens, self.answer_tokens, allowances)

    def observe(self, outcome: Outcome, at_s: float) -> None:
        """Learn from a request that was settled at this moment (seconds since the epoch)."""
        for attempt in outcome.attempts:
            self._learn(attempt, at_s)
        if outcome.policy != PROBE:
            self._learn_lengths(outcome, at_s)

    def recall(self, ledger: str | Path) -> None:
        """Learn from the latest requests in a ledger, as if they were settled once more.

        Raises:
            ConfigError: There is no ledger that could be read.
        """
        for at_s, outcome in history(ledger, RECALLED):
            self.observe(outcome, at_s)

    def _learn(self, attempt: Attempt, at_s: float) -> None:
        name = attempt.endpoint
        endpoint = self.endpoints.get(name)
        if endpoint is None or attempt.identity != endpoint.identity:
            return
        profile = self._profiles[name]
        if profile.slots != endpoint.slots:
            profile = replace(profile, slots=endpoint.slots)
        self._profiles[name] = profile.observe(attempt, at_s)
        self._experience[name] = self._experience[name].observe(at_s)

    def _learn_lengths(self, outcome: Outcome, at_s: float) -> None:
        # Plans are looked up by estimated lengths, so these are what the table must be made from.
        estimated = self.estimate_tokens(outcome.prompt_chars)
        self.prompt_tokens = self.prompt_tokens.observe(estimated, at_s)
        chars, tokens = self._counted
        self._counted = MEMORY * chars + outcome.prompt_chars, MEMORY * tokens + outcome.prompt_tokens
        if outcome.completion_tokens:
            self.answer_tokens = self.answer_tokens.observe(
                outcome.completion_tokens, at_s, censored=outcome.finish_reason in (None, FinishReason.LENGTH)
            )

    def _age_until(self, now_s: float) -> None:
        self.prompt_tokens = self.prompt_tokens.as_of(now_s)
        self.answer_tokens = self.answer_tokens.as_of(now_s)
        for name, profile in self._profiles.items():
            if isinstance(profile.ttft, ServerTtft):
                self._profiles[name] = replace(profile, ttft=profile.ttft.as_of(now_s))

    def _profile(self, endpoint: Endpoint, usd_per_joule: float) -> EndpointProfile:
        return replace(
            self._profiles[endpoint.name],
            rates=Rates.of(endpoint.prices, endpoint.energy, usd_per_joule),
            prices=endpoint.prices,
            energy=endpoint.energy,
            slots=endpoint.slots,
        )

    def _lengths(self, prior: Distribution) -> Lengths:
        return Lengths(prior, self._settings.half_life_requests, self._settings.half_life_s)

    def _believed(self, endpoint: Endpoint) -> EndpointProfile:
        ttft: ServerTtft | DeviceTtft
        if endpoint.kind is Kind.DEVICE:
            ttft = DeviceTtft.believed(DEVICE_S_PER_TOKEN, DEVICE_STARTUP_S, DEVICE_SPREAD_S)
        else:
            forgetting = self._settings.half_life_requests, self._settings.half_life_s
            ttft = ServerTtft(builtin_profiles()[SERVER_PRIOR].ttft, *forgetting)
        rates = Rates.of(endpoint.prices, endpoint.energy, 0.0)
        return EndpointProfile(
            endpoint.name, endpoint.kind, rates, ttft, DECODE_TOKENS_PER_S, slots=endpoint.slots
        )
