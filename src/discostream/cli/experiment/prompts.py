"""What the experiment asks: prompts made here, or the user's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from discostream.builtin import builtin_prompt_lengths
from discostream.errors import ConfigError

__all__ = ["made_prompts", "read_prompts"]

SHORTENED = 16.0
"""Conversations of a service have 1,020 tokens in the median. A 16th of that, a small model on one core of a
CPU reads in a third of a second.
"""

CHARS_PER_TOKEN = 4.5
"""Of these prompts, in SmolLM2's vocabulary."""

QUESTIONS = (
    "Why is the sky blue?",
    "How do I get a cork back into the bottle?",
    "Name three rivers of Africa.",
    "What does a bookbinder do all day?",
    "Is it safe to eat snow?",
    "Why do cats purr?",
    "How many legs does a lobster have, and what are they for?",
    "What is the difference between a hill and a mountain?",
    "Give me one reason to learn to whistle.",
    "How do bees find their way home?",
    "What should I pack for two days by the sea in October?",
    "Who invented the zip?",
    "Explain in two sentences how a lock on a canal works.",
    "Which vegetables can I sow in March?",
    "What is a good name for a small brown dog?",
    "How long should I boil an egg if I like it soft?",
)

TASKS = (
    ("Sum up this logbook of a lighthouse in two sentences.", "lighthouse"),
    ("Which entry of this logbook matters most, and why?", "lighthouse"),
    ("Write a short reply to these notes from a meeting.", "meeting"),
    ("Make a list of who has to do what from these notes.", "meeting"),
    ("Write a friendly message to the customers of this shop from its notes.", "shop"),
    ("What should this shop order next? Give reasons from its notes.", "shop"),
)

LINES = {
    "lighthouse": (
        "{hour} o'clock: wind from the {side}, {strength}.",
        "{person} wound the clockwork and trimmed the lamp at {hour}.",
        "A {boat} passed on the {side} side, bound for {town}.",
        "The {thing} needs paint before the winter.",
        "Fog came in from the {side} at {hour} and stayed for {count} hours.",
    ),
    "meeting": (
        "{person} will ask {town} for an offer before {day}.",
        "{person} and {other} do not agree about the {thing}.",
        "The {thing} costs {count} hundred more than we thought.",
        "We meet again on {day} at {hour}.",
        "{other} has found a cheaper {thing} in {town}, but it comes {count} days later.",
    ),
    "shop": (
        "On {day} we sold {count} dozen rolls and only {few} loaves.",
        "{person} wants {count} seed cakes for {day}.",
        "The flour from {town} is {few} days late again.",
        "The {thing} by the door is broken; {person} knows somebody who can mend it.",
        "{other} paid for {few} weeks in advance.",
    ),
}

WORDS = {
    "hour": ("four", "six", "seven", "eight", "ten", "eleven"),
    "side": ("north", "south", "east", "west", "north-west"),
    "strength": ("light", "fresh", "strong", "a full gale", "hardly any"),
    "person": ("Hannah", "old Mr Price", "Joost", "Amina", "the new keeper", "Teresa"),
    "other": ("Karim", "the baker's wife", "Lin", "the harbour master", "Oskar"),
    "boat": ("coal barge", "fishing smack", "mail steamer", "pilot cutter"),
    "town": ("Ambleport", "Saint Clew", "Norrhaven", "Dunmarsh"),
    "thing": ("oven", "railing", "roof", "signal lamp", "second staircase", "door"),
    "day": ("Monday", "Tuesday", "Thursday", "Friday", "Saturday"),
    "count": ("three", "five", "nine", "twelve", "fifteen"),
    "few": ("two", "four", "six"),
}


def made_prompts(count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Questions, and tasks with some lines to work on, about daily things.

    Their lengths are evenly spaced quantiles of the built-in prompt lengths, shortened by 16, in a random
    order: short ones are as frequent among them, and long ones as long beside the others, as on a service.
    """
    tokens = builtin_prompt_lengths().quantile((np.arange(count) + 0.5) / count) / SHORTENED
    return tuple(_prompt(CHARS_PER_TOKEN * length, rng) for length in rng.permutation(tokens))


def _prompt(chars: float, rng: np.random.Generator) -> str:
    """A task with lines until it is so long, or a question where not even one line fits."""
    task, subject = TASKS[rng.integers(len(TASKS))]
    prompt = task
    while len(longer := f"{prompt}\n{_line(subject, rng)}") <= chars:
        prompt = longer
    return QUESTIONS[rng.integers(len(QUESTIONS))] if prompt == task else prompt


def _line(subject: str, rng: np.random.Generator) -> str:
    line = LINES[subject][rng.integers(len(LINES[subject]))]
    said = line.format_map({word: choices[rng.integers(len(choices))] for word, choices in WORDS.items()})
    return said[:1].upper() + said[1:]


def read_prompts(path: Path, most: int) -> tuple[str, ...]:
    """The first prompts of a file: one a line, or with the suffix `.jsonl` one in each line's `prompt`.

    Raises:
        ConfigError: The file cannot be read, or there is no prompt in it.
    """
    where = f"--prompts-file {path}: "
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ConfigError(f"{where}cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}is not UTF-8 text; save it as UTF-8") from None
    prompts = tuple(_told(lines, where) if path.suffix == ".jsonl" else filter(None, map(str.strip, lines)))
    if not prompts:
        raise ConfigError(f"{where}there is no prompt in it; write one on each line")
    return prompts[:most]


def _told(lines: list[str], where: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompt = _parsed(line)
            if not isinstance(prompt, str) or not prompt.strip():
                raise ConfigError(f'{where}line {number}: must be an object with a text as its "prompt"')
            yield prompt


def _parsed(line: str) -> Any:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    return parsed.get("prompt") if isinstance(parsed, dict) else None
