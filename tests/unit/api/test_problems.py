"""What callers are told of errors."""

import pytest

from tpi.api.errors import problem_of
from tpi.errors import BusyError, ContextError, KernelError, LinkError, TpiError, UsageError


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (UsageError("x"), 400, "invalid_request_error", None),
        (ContextError("x", 3), 400, "invalid_request_error", "context_length_exceeded"),
        (BusyError("x"), 429, "rate_limit_error", "queue_full"),
        (LinkError("x"), 503, "server_error", "cluster_unavailable"),
        (KernelError("x"), 500, "server_error", None),
    ],
)
def test_statuses(error: TpiError, status: int, kind: str, code: str | None) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.kind, problem.code) == (status, kind, code)
    assert problem.body["error"]["message"] == "x"
    assert ("Retry-After" in problem.headers) == (status == 429)
