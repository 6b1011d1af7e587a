"""How a route is described to whoever reads ``/openapi.json``: what it gives, and what its errors look like. Pure."""

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# What the engine refuses by itself is described here, so that whoever reads the description need not try.
Role: TypeAlias = Annotated[str, Field(min_length=1, max_length=64, json_schema_extra={"pattern": "^[A-Za-z0-9_-]+$"})]
Temperature: TypeAlias = Annotated[float | None, Field(json_schema_extra={"minimum": 0, "maximum": 100})]
TopK: TypeAlias = Annotated[int | None, Field(json_schema_extra={"minimum": 0, "maximum": (1 << 31) - 1})]
Share: TypeAlias = Annotated[float | None, Field(json_schema_extra={"minimum": 0, "maximum": 1})]
Penalty: TypeAlias = Annotated[float | None, Field(json_schema_extra={"minimum": -2, "maximum": 2})]
Repetition: TypeAlias = Annotated[float | None, Field(json_schema_extra={"minimum": 0.01, "maximum": 100})]
Recent: TypeAlias = Annotated[int | None, Field(json_schema_extra={"minimum": -1, "maximum": 1_000_000})]
Bias: TypeAlias = Annotated[float, Field(json_schema_extra={"minimum": -100, "maximum": 100})]

# A request is wrong with its first mistake. To collect all of them costs a thousand times the memory of the request, so
# lists are given up at the first item that is wrong (``fail_fast``), and of dicts the size is looked at first.

MAX_ITEMS = 4096
"""Messages of a chat, or parts of one."""
Tokens: TypeAlias = Annotated[list[int], Field(max_length=1 << 20, fail_fast=True)]
"""Of a text."""


class Given(BaseModel):
    """A part of a request; what is not named is harmless, and ignored."""

    model_config = ConfigDict(extra="ignore")


def few(n_most: int) -> BeforeValidator:
    """For a dict: at most so many entries."""

    def check(given: Any) -> Any:
        if isinstance(given, dict) and len(given) > n_most:
            raise ValueError(f"there are {len(given)} entries, at most {n_most} may be")
        return given

    return BeforeValidator(check)


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
        found["content"] = {streams: {"schema": {}}}
    return {200: found, **{status: {"model": error, "description": what} for status, what in _ERRORS.items()}}
