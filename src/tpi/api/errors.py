"""What went wrong, as status and body of a response in OpenAI's shape. Pure; other APIs have shapes of their own."""

from dataclasses import dataclass, field
from typing import Any

from tpi.errors import BusyError, ContextError, LinkError, TpiError, UsageError

RETRY_AFTER_S = 1
"""What a caller is told to wait when too many wait already."""


@dataclass(eq=False)
class Problem(Exception):
    """A request that gets no answer."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def problem_of(error: TpiError) -> Problem:
    """What a caller is told of one of our errors: what he can mend is his, everything else is the server's."""
    match error:
        case ContextError():
            return Problem(400, str(error), code="context_length_exceeded", param="messages")
        case UsageError():
            return Problem(400, str(error))
        case BusyError():
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            return Problem(429, str(error), "rate_limit_error", "queue_full", headers=headers)
        case LinkError():
            return Problem(503, str(error), "server_error", "cluster_unavailable")
        case _:
            return Problem(500, str(error), "server_error")


def unsupported(param: str, what: str) -> Problem:
    """Something that would change the answer, and cannot be done."""
    return Problem(400, f"{what} is not supported by this server: leave {param} out", code="unsupported", param=param)
