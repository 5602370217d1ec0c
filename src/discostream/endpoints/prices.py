"""List prices by model name, out of the genai-prices library's own data; nothing is fetched."""

from __future__ import annotations

from discostream.core.cost import Prices

__all__ = ["price_of"]


def price_of(model: str) -> Prices | None:
    """What the model's first-hand provider charges today; `None` for a model it does not know.

    Where the price depends on the prompt's length this is the price of short prompts.

    Args:
        model: The provider's own name for it, such as `gpt-4o-mini`.
    """
    from genai_prices import Usage, calc_price  # 0.3 s, and most settings state their prices

    try:
        price = calc_price(Usage(input_tokens=1, output_tokens=1), model_ref=model)
    except LookupError:
        return None
    if price.model_price.input_mtok is None or price.model_price.output_mtok is None:
        return None
    return Prices(float(price.input_price * 1_000_000), float(price.output_price * 1_000_000))
