"""What all schemas of OpenAI's requests have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_ITEMS = 4096
"""Messages of a chat, or parts of one."""
Tokens = Annotated[list[int], Field(max_length=1 << 20, fail_fast=True)]
"""Of a text."""


class Given(BaseModel):
    """A part of a request; what is not named is harmless, and ignored."""

    model_config = ConfigDict(extra="ignore")
