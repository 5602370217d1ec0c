"""How chat endpoints are asked to go on with a partial answer, as data.

Each dialect sends the partial answer as a last `assistant` message; what marks it as unfinished
differs. Vendors add and remove this ability, so the settings choose, and a refusal at run time is
remembered by the endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

__all__ = ["CONTINUATIONS", "Continuation", "ContinuationName"]

ContinuationName = Literal["none", "continue_final_message", "prefix", "trailing_assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """One way to ask for the rest of an answer.

    Attributes:
        possible: Whether there is one at all.
        body: Fields to add to the request.
        message: Fields to add to the message that holds the partial answer.
    """

    possible: bool = True
    body: Mapping[str, Any] = field(default_factory=dict)
    message: Mapping[str, Any] = field(default_factory=dict)


CONTINUATIONS: Final[Mapping[ContinuationName, Continuation]] = {
    # OpenAI, Azure, Claude 4.6 and later, Gemini 3.6 and later.
    "none": Continuation(possible=False),
    # llama.cpp, vLLM, SGLang, TGI. Both fields, because servers refuse a request where both are true.
    "continue_final_message": Continuation(
        body={"continue_final_message": True, "add_generation_prompt": False}
    ),
    # DeepSeek (under /beta) and Mistral; Mistral's reply repeats the prefix (`repeats_prefix = true`).
    "prefix": Continuation(message={"prefix": True}),
    # Claude up to 4.5, Gemini up to 3.1, older llama.cpp, LMDeploy, many models behind OpenRouter.
    "trailing_assistant": Continuation(),
}
"""The dialects by the name that `continuation` takes in the settings."""
