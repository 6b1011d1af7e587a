"""How a model's file says that its tokens are best drawn: the GGUF keys ``general.sampling.*``. Pure; any thread."""

from collections.abc import Mapping
from typing import Any

from tpi.engine.settings import MAX_PENALTY_WINDOW, SamplingSettings
from tpi.errors import UsageError

_FIELDS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
    "penalty_last_n": "penalty_window_tokens",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
}


def suggested_sampling(metadata: Mapping[str, Any]) -> dict[str, float | int]:
    """Fields of ``SamplingSettings``, for what the model suggests and these settings allow; the rest is left out, as
    its file is a stranger's. Below 0, a window is all tokens and ``top_k`` keeps all."""
    found: dict[str, float | int] = {}
    for key, field in _FIELDS.items():
        value: Any = metadata.get(f"general.sampling.{key}")
        if isinstance(value, float):
            value = float(f"{value:.7g}")  # what a number of 32 bits was written as
        elif key.startswith(("top_k", "penalty_last")) and isinstance(value, int) and value < 0:
            value = 0 if key == "top_k" else MAX_PENALTY_WINDOW
        if _is_allowed(field, value):
            found[field] = value
    return found


def _is_allowed(field: str, value: Any) -> bool:
    try:
        SamplingSettings(**{field: value})
    except UsageError:
        return False
    return True
