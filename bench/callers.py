"""Several callers of one server at once: streamed completions over HTTP, and how fast they come. Threads of its own.

    python -m bench.callers PORT N-TOKENS < PROMPTS-AS-JSON

asks where the port is, inside an emulated device's network say, and prints what came of it as a JSON line.
"""

import contextlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Sequence

import msgspec

from tpi.errors import LinkError

_ANSWER_S = 7200.0


class Crowd(msgspec.Struct, frozen=True):
    """Tokens per second of all answers together: from asking to the last end, and while all of them grow."""

    tokens_per_s: float
    growing_tokens_per_s: float


def ask_crowd(port: int, prompts: Sequence[str], n_tokens: int) -> Crowd:
    """Asks all at once, each for ``n_tokens``.

    Raises:
        LinkError: an answer was refused, or has fewer tokens than were asked for, or they did not grow at the same
            time.
    """
    times: list[list[float]] = [[] for _ in prompts]
    counts = [0] * len(prompts)
    refused: list[str] = []

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
        body = {
            "prompt": prompts[number], "max_tokens": n_tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, "cache_prompt": False, "logprobs": 0,
        }  # fmt: skip
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                refused.append(response.read().decode("utf-8", "replace"))
                return
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if usage := event.get("usage"):
                    counts[number] = usage["completion_tokens"]
                elif any(choice.get("finish_reason") is None for choice in event.get("choices", ())):
                    times[number].append(time.perf_counter())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - started_s
    if refused:
        raise LinkError(f"the server refuses: {refused[0]}")
    if min(counts) < n_tokens:
        raise LinkError(f"an answer has {min(counts)} tokens, {n_tokens} were asked for")
    first_s, end_s = max(some[0] for some in times), min(some[-1] for some in times)
    n_passed = sum(1 for some in times for at in some if first_s < at <= end_s)
    if not n_passed:
        raise LinkError(f"the answers of {n_tokens} tokens did not grow at the same time: make them longer")
    return Crowd(sum(counts) / took_s, n_passed / (end_s - first_s))


if __name__ == "__main__":
    try:
        found = ask_crowd(int(sys.argv[1]), json.load(sys.stdin), int(sys.argv[2]))
    except (LinkError, OSError, http.client.HTTPException) as error:
        sys.exit(f"{error}")
    print(msgspec.json.encode(found).decode())
