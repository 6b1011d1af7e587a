"""What callers are told of errors."""

import pytest

from tpi.api.errors import Problem, problem_of
from tpi.errors import (
    BusyError,
    Cancelled,
    ContextError,
    KernelError,
    LinkError,
    TpiError,
    UnsupportedModelError,
    UsageError,
)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (UsageError("x"), 400, "invalid_request_error", None),
        (UnsupportedModelError("x"), 400, "invalid_request_error", None),
        (ContextError("x", 3), 400, "invalid_request_error", "context_length_exceeded"),
        (BusyError("x"), 429, "rate_limit_error", "queue_full"),
        (LinkError("x"), 503, "server_error", "cluster_unavailable"),
        (Cancelled("x"), 503, "server_error", "cluster_unavailable"),
        (KernelError("x"), 500, "server_error", None),
    ],
)
def test_statuses(error: TpiError, status: int, kind: str, code: str | None) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.kind, problem.code) == (status, kind, code)
    assert problem.body["error"]["message"] == "x"
    assert ("Retry-After" in problem.headers) == (status == 429)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"error": {"message": "x", "type": "t", "param": None, "code": None}}),
        ("/v1/messages", {"type": "error", "error": {"type": "not_found_error", "message": "x"}, "request_id": None}),
        ("/api/chat", {"error": "x"}),
        ("/completion", {"error": {"code": 404, "message": "x", "type": "not_found_error"}}),
        ("/slots/3", {"error": {"code": 404, "message": "x", "type": "not_found_error"}}),
        ("", {"error": {"message": "x", "type": "t", "param": None, "code": None}}),
    ],
)
def test_every_api_has_its_shape(path: str, body: dict[str, object]) -> None:
    assert Problem(404, "x", "t").body_at(path) == body
