"""``python -m tests.hostile``: what callers who mean no good cost one who does.

Four ranks of the demo model serve one caller, whose answers are compared with those that he gets in peace, and timed:
while headers come byte by byte, bodies are too large or broken, a thousand connections are idle, and others hang up in
the middle of their answers. The master's memory is compared before and after. The attackers are processes of low
priority: they would have machines of their own.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.cluster.serving import Served, serve

CLOSE = 0.25
"""Logits lie this close to those that a caller gets alone (``tests/cluster/test_api.py``)."""
MAX_RATIO = 1.5
MAX_GROWTH = 0.02
OPTIONS = ("--parallel", "8")
_HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_ASKED = {"messages": [{"role": "user", "content": "Tell me a story about a fox and a lantern."}], "max_tokens": 48}


@dataclass(frozen=True)
class Scale:
    """How much of each attack there is, and how long it lasts."""

    n_slow: int = 300
    n_large: int = 4
    n_idle: int = 1000
    n_hang_ups: int = 200
    attack_s: float = 15.0


WARM = Scale(attack_s=4.0)
"""As much at once, for less long: what threads, buffers and connections need at most is had then."""
SHORT = Scale(n_slow=50, n_large=2, n_idle=600, n_hang_ups=20, attack_s=1.0)


@dataclass(frozen=True)
class Answer:
    """Tokens with the logarithms of the probabilities of the best two, and how long all took."""

    tokens: tuple[str, ...]
    best: tuple[tuple[float, float], ...]
    took_s: float


@dataclass
class Result:
    """``ratio`` is the median time of an answer under attack ÷ that in peace before and after; ``seen`` what the
    attackers got, by status or end."""

    attack: str
    n_answers: int
    ratio: float
    is_right: bool
    seen: dict[str, int] = field(default_factory=dict)


def ask(url: str) -> Answer:
    """The well-behaved caller."""
    address = urlsplit(url)
    body = json.dumps({**_ASKED, "temperature": 0, "logprobs": True, "top_logprobs": 2})
    started_s = time.monotonic()
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
    assert response.status == 200, answer
    took_s, content = time.monotonic() - started_s, answer["choices"][0]["logprobs"]["content"]
    best = [tuple(other["logprob"] for other in entry["top_logprobs"]) for entry in content]
    return Answer(tuple(entry["token"] for entry in content), tuple(best), took_s)


def is_same(one: Answer, other: Answer) -> bool:
    """All tokens, or up to one where two were nearly tied: others in the same pass are summed in another order."""
    for mine, yours, best in zip(one.tokens, other.tokens, one.best, strict=False):
        if mine != yours:
            return best[0] - best[1] < 2 * CLOSE
    return len(one.tokens) == len(other.tokens)


def pss_bytes(pid: int) -> int:
    """The process's part of the memory that it uses."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1]) * 1024


def measure(served: Served, scale: Scale, attacks: Sequence[str] | None = None) -> Iterator[Result]:
    """Every attack, or those that are named, one after the other."""
    expected = ask(served.url)
    for attack in attacks or ATTACKS:
        quiet = [ask(served.url) for _ in range(_rounds(scale))]
        with _under(attack, served.url, scale) as seen:
            answers, until_s = list[Answer](), time.monotonic() + scale.attack_s
            while time.monotonic() < until_s or not answers:
                answers.append(ask(served.url))
        quiet += [ask(served.url) for _ in range(_rounds(scale))]
        usual_s = statistics.median(answer.took_s for answer in quiet)
        ratio = statistics.median(answer.took_s for answer in answers) / usual_s
        is_right = all(is_same(expected, answer) for answer in (*quiet, *answers))
        yield Result(attack, len(answers), ratio, is_right, seen)


def _rounds(scale: Scale) -> int:
    return 2 if scale is SHORT else 8


@contextlib.contextmanager
def _under(attack: str, url: str, scale: Scale) -> Iterator[dict[str, int]]:
    """Runs an attack meanwhile; afterwards the dictionary has what it saw."""
    command = [sys.executable, "-m", "tests.hostile", "--attack", attack, "--url", url]
    amounts = [f"{name}={value}" for name, value in vars(scale).items()]
    with subprocess.Popen([*command, *amounts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "begins\n"
        seen: dict[str, int] = {}
        yield seen
        process.stdin.close()
        seen.update(json.loads(process.stdout.readline()))


# The attackers, in a process of their own.


class Attacker:
    """Does it until it is told to end, and counts what comes of it."""

    def __init__(self, url: str, scale: Scale) -> None:
        address = urlsplit(url)
        self._address, self._scale = (str(address.hostname), address.port), scale
        self.seen: Counter[str] = Counter()
        self.has_begun = asyncio.Event()

    async def slow(self) -> None:
        """Headers that come byte by byte."""

        async def one() -> None:
            reader, writer = await self._open()
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nA: ")
            while not reader.at_eof():
                writer.write(b"a")
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        self._note(await reader.readline())
                        break

        await self._many(self._scale.n_slow, one)

    async def large(self) -> None:
        """Bodies of 10 MB, told in advance or not."""
        data = b'{"prompt": "' + b"x" * 10_000_000 + b'"}'

        async def one() -> None:
            for told in (f"Content-Length: {len(data)}\r\n", f"Transfer-Encoding: chunked\r\n\r\n{len(data):x}"):
                reader, writer = await self._open()
                writer.write(f"{_HEAD}{told}\r\n".encode())
                for start in range(0, len(data), 1 << 16):
                    writer.write(data[start : start + (1 << 16)])
                    await writer.drain()
                if "chunked" in told:
                    writer.write(b"\r\n0\r\n\r\n")
                self._note(await reader.readline())
                writer.close()
                await asyncio.sleep(0.5)

        await self._many(self._scale.n_large, one)

    async def broken(self) -> None:
        """Broken UTF-8, deep nesting, values that JSON has not, heads that are none."""
        bodies = [
            b'{"prompt": "\xff\xfe"}', b"[" * 100_000, b'{"a":' * 50_000, b'{"prompt": NaN}', b'{"seed": 1e999}',
            b'{"prompt": "\\ud800"}', b'{"seed": ' + b"9" * 100_000 + b"}", b"", b"\0" * 1000,
            json.dumps({"prompt": "x", "logit_bias": {str(number): 1 for number in range(5000)}}).encode(),
        ]  # fmt: skip
        requests = [f"{_HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
        requests += [b"\xff" * 200 + b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"a" * 100_000]

        async def one() -> None:
            for request in requests:
                reader, writer = await self._open()
                writer.write(request)
                await writer.drain()
                self._note(await reader.readline())
                writer.close()
                await asyncio.sleep(0.1)

        await self._many(4, one)

    async def idle(self) -> None:
        """Connections that say nothing; all at once, and some time after one is closed another."""
        n_open = 0

        async def one() -> None:
            nonlocal n_open
            reader, _ = await self._open()
            n_open += 1
            if n_open == self._scale.n_idle:
                self.has_begun.set()
            self._note(await reader.readline())
            await asyncio.sleep(5)

        await self._many(self._scale.n_idle, one)

    async def hang_up(self) -> None:
        """Callers who go in the middle of their answers: one after the other, so that a few are there at any time."""
        pause_s = self._scale.attack_s / self._scale.n_hang_ups
        body = json.dumps({**_ASKED, "max_tokens": 900, "stream": True}).encode()
        head = f"{_HEAD}Content-Length: {len(body)}\r\n\r\n".replace("completions", "chat/completions")

        async def one(number: int) -> None:
            await asyncio.sleep(pause_s * number)
            reader, writer = await self._open()
            writer.write(head.encode() + body)
            self._note(await reader.readline())
            for _ in range(12):
                await reader.readline()
            writer.transport.abort()

        await asyncio.gather(*(one(number) for number in range(self._scale.n_hang_ups)), return_exceptions=True)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self._address)

    def _note(self, line: bytes) -> None:
        self.seen[line.split()[1].decode() if line else "closed"] += 1

    async def _many(self, n: int, one: Callable[[], Awaitable[None]]) -> None:
        async def again() -> None:
            while True:
                try:
                    await one()
                except OSError:
                    self.seen["cut off"] += 1
                    await asyncio.sleep(0.5)

        await asyncio.gather(*(again() for _ in range(n)))


ATTACKS = ("slow", "large", "broken", "idle", "hang_up")


async def _attack(name: str, url: str, scale: Scale) -> None:
    os.nice(10)
    attacker = Attacker(url, scale)
    work = asyncio.ensure_future(getattr(attacker, name)())
    if name != "idle":
        attacker.has_begun.set()
    await attacker.has_begun.wait()
    print("begins", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    print(json.dumps(attacker.seen), flush=True)
    os._exit(0)  # with connections that are still open


def _report(served: Served, scale: Scale) -> bool:
    pid = served.master.process.pid
    for _ in measure(served, SHORT if scale is SHORT else WARM):
        pass
    before = pss_bytes(pid)
    are_good = []
    for result in measure(served, scale):
        are_good.append(result.is_right and result.ratio <= MAX_RATIO)
        print(json.dumps(vars(result) | {"pss_bytes": pss_bytes(pid)}), flush=True)
    growth = pss_bytes(pid) / before - 1
    print(json.dumps({"pss_bytes_before": before, "growth": growth}))
    return all(are_good) and growth <= MAX_GROWTH


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0 if all limits are kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--short", action="store_true", help="as among the tests")
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("amounts", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.attack:
        amounts: dict[str, Any] = {name: json.loads(value) for name, value in (a.split("=") for a in given.amounts)}
        asyncio.run(_attack(given.attack, given.url, Scale(**amounts)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        cache.mkdir()
        with serve("demo", Path(folder), cache, 4, *OPTIONS) as served:
            return 0 if _report(served, SHORT if given.short else Scale()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
