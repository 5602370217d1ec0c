"""What is known of servers that speak OpenAI's chat completions: the keys that `preset` stands for.

Each is a part of an `[[endpoint]]` as the settings would have it. Where a continuation depends on the model
that is served (Ollama, LM Studio, OpenRouter, Together, Fireworks), none is presumed: `disco doctor --probe`
finds out. Sources are in docs/endpoints.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["PRESETS"]

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama-server": {"base_url": "http://127.0.0.1:8080/v1", "continuation": "continue_final_message"},
    "llama-cpp-python": {"base_url": "http://127.0.0.1:8000/v1"},
    "vllm": {"base_url": "http://127.0.0.1:8000/v1", "continuation": "continue_final_message"},
    "sglang": {"base_url": "http://127.0.0.1:30000/v1", "continuation": "continue_final_message"},
    "ollama": {"base_url": "http://127.0.0.1:11434/v1"},
    "lm-studio": {"base_url": "http://127.0.0.1:1234/v1"},
    "deepseek": {
        "base_url": "https://api.deepseek.com/beta",
        "api_key_env": "DEEPSEEK_API_KEY",
        "continuation": "prefix",
    },
    "mistral": {
        "base_url": "https://api.mistral.ai/v1",
        "api_key_env": "MISTRAL_API_KEY",
        "continuation": "prefix",
        "repeats_prefix": True,
        "seed_field": "random_seed",
        "include_usage": False,  # counts come unasked, and fields that it does not know are refused
        "cancel_stops_billing": False,
    },
    "groq": {
        "base_url": "https://api.groq.com/openai/v1",
        "api_key_env": "GROQ_API_KEY",
        "continuation": "trailing_assistant",
        "max_tokens_field": "max_completion_tokens",
        "cancel_stops_billing": False,
    },
    "openrouter": {"base_url": "https://openrouter.ai/api/v1", "api_key_env": "OPENROUTER_API_KEY"},
    "together": {"base_url": "https://api.together.xyz/v1", "api_key_env": "TOGETHER_API_KEY"},
    "fireworks": {"base_url": "https://api.fireworks.ai/inference/v1", "api_key_env": "FIREWORKS_API_KEY"},
    "openai": {
        "base_url": "https://api.openai.com/v1",
        "api_key_env": "OPENAI_API_KEY",
        "max_tokens_field": "max_completion_tokens",
    },
    "azure": {"api_key_env": "AZURE_OPENAI_API_KEY", "max_tokens_field": "max_completion_tokens"},
}
"""By name. `base_url` is where the server listens by default, or where the service is."""
