"""What went wrong, as status and body of a response in the shape of the API that was asked. Pure."""

from dataclasses import dataclass, field
from typing import Any

from tpi.errors import BusyError, Cancelled, ContextError, LinkError, TpiError, UnsupportedModelError, UsageError

RETRY_AFTER_S = 1
"""What a caller is told to wait when too many wait already."""


_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}
_LLAMA_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
_LLAMA_PATHS = frozenset((
    "apply-template", "completion", "completions", "detokenize", "embedding", "embeddings", "infill", "props",
    "rerank", "reranking", "slots", "tokenize",
))  # fmt: skip


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
        """In OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def anthropic_body(self) -> dict[str, Any]:
        kind = _ANTHROPIC_KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}, "request_id": None}

    @property
    def ollama_body(self) -> dict[str, Any]:
        return {"error": self.message}

    @property
    def llama_body(self) -> dict[str, Any]:
        """As llama.cpp's server has it."""
        kind = _LLAMA_KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"code": self.status, "message": self.message, "type": kind}}

    def body_at(self, path: str) -> dict[str, Any]:
        """In the shape of the API that has this path."""
        if path.startswith("/v1/messages"):
            return self.anthropic_body
        if path.startswith("/api/"):
            return self.ollama_body
        if path[1:].split("/")[0] in _LLAMA_PATHS:
            return self.llama_body
        return self.body


def problem_of(error: TpiError) -> Problem:
    """What a caller is told of one of our errors: what he can mend is his, everything else is the server's."""
    match error:
        case ContextError():
            return Problem(400, str(error), code="context_length_exceeded")
        case UsageError() | UnsupportedModelError():
            return Problem(400, str(error))
        case BusyError():
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            return Problem(429, str(error), "rate_limit_error", "queue_full", headers=headers)
        case LinkError() | Cancelled():
            return Problem(503, str(error), "server_error", "cluster_unavailable")
        case _:
            return Problem(500, str(error), "server_error")


def unsupported(param: str, what: str) -> Problem:
    """Something that would change the answer, and cannot be done."""
    return Problem(400, f"{what} is not supported by this server: leave {param} out", code="unsupported", param=param)
