"""``python -m tests.fuzz.api``: what the served description of the API promises, tried with thousands of requests.

schemathesis makes requests from ``/openapi.json``, most of them as described and some not, and checks that what comes
back was described as well. Routes are found there: a new one is tried without a word here.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.cluster.serving import serve

OPTIONS = ("--context", "64", "--any-model", "--parallel", "8")
"""Short answers; names of models are made up."""
ENDLESS = frozenset(("GET /v1/cluster/events",))
MIN_GOOD = 0.3
N_REFUSALS = 8
"""That are shown of an operation."""
_NEGATIVE_EVERY = 5
_TIMEOUT_S = 60.0
_CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)


@dataclass
class Tried:
    """Of one operation: responses by status, and what was wrong with some, by the first line of it."""

    statuses: Counter[int] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    """By the beginnings of what was said."""
    faults: dict[str, str] = field(default_factory=dict)
    """Each with a request that shows it."""

    @property
    def n(self) -> int:
        return sum(self.statuses.values())

    @property
    def n_good(self) -> int:
        return sum(n for status, n in self.statuses.items() if 200 <= status < 300)


def fuzz(root: str, n_requests: int, number: int) -> dict[str, Tried]:
    """About so many requests, as many of each operation; ``number`` makes them reproducible."""
    schema = schemathesis.openapi.from_url(f"{root}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) == sum(len(methods) for methods in schema.raw_schema["paths"].values()), "all can be read"
    tried = {operation.label: Tried() for operation in operations if operation.label not in ENDLESS}
    with requests.Session() as session:
        n_before = -1
        while n_before < (n_sent := sum(one.n for one in tried.values())) < n_requests:
            # Where there is nothing to vary there is one request a round.
            n_before, number = n_sent, number + 1
            for operation in operations:
                if operation.label in tried:
                    n = -(-(n_requests - n_sent) // len(tried))
                    _try(
                        operation,
                        GenerationMode.NEGATIVE,
                        n // _NEGATIVE_EVERY,
                        number,
                        tried[operation.label],
                        session,
                    )
                    _try(
                        operation,
                        GenerationMode.POSITIVE,
                        n - n // _NEGATIVE_EVERY,
                        number,
                        tried[operation.label],
                        session,
                    )
    return tried


def _try(operation: Any, mode: GenerationMode, n: int, number: int, tried: Tried, session: requests.Session) -> None:
    if not n or (mode is GenerationMode.NEGATIVE and not operation.body.items):
        return  # there is nothing to do wrong

    @seed(number)
    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def once(case: Any) -> None:
        response = case.call(session=session, timeout=_TIMEOUT_S)
        tried.statuses[response.status_code] += 1
        if 400 <= response.status_code < 500:
            tried.refusals[_said(response)] += 1
        try:
            case.validate_response(response, checks=list(_CHECKS))
        except AssertionError as error:
            _note(tried, case, response, error)
        except BaseExceptionGroup as group:
            for one in group.exceptions:
                _note(tried, case, response, one)

    once()


def _said(response: Any) -> str:
    error = response.json().get("error", "")
    return str(error.get("message", error) if isinstance(error, dict) else error)[:70]


def _note(tried: Tried, case: Any, response: Any, error: BaseException) -> None:
    what = f"{response.status_code} {type(error).__name__}: {str(error).strip()[:300]}"
    shown = json.dumps(case.body, default=str)[:2000]
    tried.faults.setdefault(what, f"{case.method} {case.path} {shown} -> {response.content[:500]!r}")


def report(tried: dict[str, Tried]) -> bool:
    """Prints what was found; whether all is well."""
    for label, one in tried.items():
        print(f"{label:40} {one.n:6} requests, {one.n_good / max(one.n, 1):4.0%} good  {dict(one.statuses)}")
        for said, n in one.refusals.most_common(N_REFUSALS):
            print(f"    {n:5} x {said}")
        for what, shown in one.faults.items():
            print(f"    {what}\n        {shown}")
    n, n_good = sum(one.n for one in tried.values()), sum(one.n_good for one in tried.values())
    n_failed = sum(one.statuses[500] for one in tried.values())
    n_faults = sum(len(one.faults) for one in tried.values())
    print(f"{n} requests, {n_good / n:.0%} of them good, {n_failed} with status 500; {n_faults} kinds of faults")
    return n_good >= MIN_GOOD * n and not n_failed and not n_faults


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.api", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    given_options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        cache.mkdir()
        with serve("demo", Path(folder), cache, 1, *OPTIONS) as served:
            return 0 if report(fuzz(served.root, given_options.requests, given_options.seed)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
