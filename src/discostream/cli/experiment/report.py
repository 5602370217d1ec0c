"""The measured beside the predicted: figures, how far chance can move them, and what tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from discostream.cli.experiment.design import Design
from discostream.cli.experiment.figures import FIGURES, JUDGED, Sample
from discostream.cli.experiment.measure import Answered, Measurements
from discostream.cli.experiment.predict import predicted
from discostream.core.budget import DEFAULT_SHARE
from discostream.sim.figures import Figures, Tally
from discostream.types import Kind

__all__ = ["Report", "Row", "as_json", "report_on"]

REDRAWS = 500
CONFIDENCE = 0.95

NEGLIGIBLE = 0.01
"""By how much a prediction may miss a span, relatively, and surprise nobody."""


@dataclass(frozen=True)
class Row:
    """One policy.

    Attributes:
        spans: Within which a figure falls in 95 of 100 measurements like this one, as the answers themselves
            say by being drawn anew (bootstrap).
    """

    measured: Figures
    predicted: Figures
    spans: Mapping[str, tuple[float, float]]

    @property
    def surprises(self) -> tuple[str, ...]:
        """The figures that were predicted outside of their spans."""
        return tuple(name for name in self.spans if self._surprises(name))

    def _surprises(self, name: str) -> bool:
        (low, high), foretold = self.spans[name], getattr(self.predicted, name)
        return not low <= foretold <= high and not np.isclose(foretold, (low, high), rtol=NEGLIGIBLE).any()


@dataclass(frozen=True)
class Report:
    """All that is told.

    Attributes:
        rounds: How many prompts were answered under every policy; the figures are of these.
        rows: None where there are no such prompts yet.
    """

    design: Design
    measured: Measurements
    rounds: int
    rows: tuple[Row, ...]

    @property
    def wanted(self) -> int:
        """How many answers there should be."""
        return len(self.design.prompts) * len(self.design.policies)

    @property
    def interrupted(self) -> bool:
        """Whether some are missing."""
        return len(self.measured.answers) < self.wanted


def report_on(design: Design, measured: Measurements) -> Report:
    """What the answers so far come to, and what was to be expected of them."""
    rounds = min(len(measured.of(policy)) for policy in design.policies)
    whole = replace(measured, answers=[each for each in measured.answers if each.prompt < rounds])
    rows = tuple(_row(policy, design, whole) for policy in design.policies) if rounds else ()
    return Report(design, measured, rounds, rows)


def _row(policy: str, design: Design, measured: Measurements) -> Row:
    settings, outcomes = measured.settings, [each.outcome for each in measured.of(policy)]
    constrained, reader = Kind(settings.policy.constraint), settings.migration.consumption_tokens_per_s
    share = DEFAULT_SHARE if settings.policy.share is None else settings.policy.share
    device = settings.endpoint[0].model or settings.endpoint[0].name
    sample = Sample.of(outcomes, constrained, measured.usd_per_joule, reader)
    figures = Figures(
        policy=policy,
        constraint=constrained.value,
        share=share,
        device=device,
        server_trace=design.trace.name,
        n=len(outcomes),
        **{name: judge(sample) for name, judge in FIGURES.items()},
    )
    tally = Tally(constrained)
    for answers in predicted(policy, measured, design):
        tally = tally.add(answers)
    foretold = tally.figures(policy=policy, share=share, device=device, server_trace=design.trace.name)
    return Row(figures, foretold, _spans(sample, np.random.default_rng(design.seed)))


def _spans(sample: Sample, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    redrawn = [sample.redrawn(rng) for _ in range(REDRAWS)]
    ends = (1.0 - CONFIDENCE) / 2, (1.0 + CONFIDENCE) / 2
    spans = {name: np.quantile([FIGURES[name](each) for each in redrawn], ends).tolist() for name in JUDGED}
    return {name: (low, high) for name, (low, high) in spans.items()}


def as_json(report: Report) -> dict[str, Any]:
    """Everything as one object; the figures have the names that the simulator's have."""
    settings, design = report.measured.settings, report.design
    return {
        "seed": design.seed,
        "prompts": len(design.prompts),
        "max_tokens": design.max_tokens,
        "usd_per_joule": settings.cost.usd_per_joule,
        "reader_tokens_per_s": settings.migration.consumption_tokens_per_s,
        "taken_by_others": report.measured.taken_by_others,
        "interrupted": report.interrupted,
        "measured": [row.measured.as_dict() for row in report.rows],
        "predicted": [row.predicted.as_dict() for row in report.rows],
        "spans": [{"policy": row.measured.policy, **row.spans} for row in report.rows],
        "surprises": [{"policy": row.measured.policy, "figures": list(row.surprises)} for row in report.rows],
        "answers": [
            _answer(answered, report.measured.answers[0].at_s) for answered in report.measured.answers
        ],
    }


def _answer(answered: Answered, began_at_s: float) -> dict[str, Any]:
    outcome = answered.outcome
    return {
        "policy": answered.policy,
        "prompt": answered.prompt,
        "turn": answered.turn,
        "at_s": answered.at_s - began_at_s,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "cached_tokens": {attempt.endpoint: attempt.cached_tokens for attempt in outcome.attempts},
        "error": outcome.error,
        "disco": outcome.as_disco(),
    }
