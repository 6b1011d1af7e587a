"""How a route is described to whoever reads ``/openapi.json``: what it gives, and what its errors look like. Pure."""

from typing import Any

from pydantic import BaseModel

_ERRORS: dict[int | str, str] = {
    "4XX": "The request is wrong, or too much.",
    503: "The cluster cannot compute now.",
}


def described(told: Any, error: type[BaseModel], *, streams: str = "") -> dict[int | str, dict[str, Any]]:
    """For ``add_api_route(responses=…)``: the body of a response, and of what goes wrong; ``streams`` is the media type
    of the events that come in its place where they are asked for."""
    found: dict[str, Any] = {"description": "What was asked for."}
    if told is not None:
        found["model"] = told
    if streams:
        found["content"] = {streams: {"schema": {"type": "string"}}}
    return {200: found, **{status: {"model": error, "description": what} for status, what in _ERRORS.items()}}
