"""What all schemas of OpenAI's requests have in common."""

from pydantic import BaseModel, ConfigDict

MAX_ITEMS = 4096
"""Messages of a chat, or parts of one."""


class Given(BaseModel):
    """A part of a request; what is not named is harmless, and ignored."""

    model_config = ConfigDict(extra="ignore")
