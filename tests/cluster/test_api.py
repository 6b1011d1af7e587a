"""The API as its clients see it: the official one against four ranks; many at once; callers who hang up; strangers."""

import asyncio
import dataclasses
import http.client
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from tests.certificates import make_certificate
from tests.cluster.commands import LONG_FORM, Home
from tests.cluster.serving import Served, serve

FOX = [{"role": "user", "content": "Tell me a story about a fox and a lantern."}]
TRAINED = Path(__file__).parents[1] / "trained"
CLOSE = 0.25
"""Logits lie this close to those that a caller gets alone: 6.8e-3 of their range is what rounding activations to 8 bits
makes (ARCHITECTURE.md), and another number of rows is summed in another order."""


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Served]:
    with serve("demo", tmp_path_factory.mktemp("four"), cache, 4) as served:
        yield served


def chat(served: Served, **more: Any) -> Any:
    asked: dict[str, Any] = {"model": served.model, "messages": FOX, "max_tokens": 24, "seed": 5} | more
    return served.client().chat.completions.create(**asked)


def test_a_chat_and_what_it_took(four: Served) -> None:
    answer = chat(four, temperature=0)
    [choice] = answer.choices
    assert choice.message.role == "assistant" and len(choice.message.content.split()) > 10
    assert choice.finish_reason == "length" and answer.model == "demo" and answer.object == "chat.completion"
    usage = answer.usage
    assert (usage.completion_tokens, usage.total_tokens) == (24, 24 + usage.prompt_tokens)
    again = chat(four, temperature=0)
    assert again.choices[0].message.content == choice.message.content and again.id != answer.id
    assert again.usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_a_stream_gives_what_the_whole_gives(four: Served) -> None:
    whole = chat(four).choices[0]
    chunks = list(chat(four, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == whole.message.content and sum(map(bool, texts)) > 10
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] == "length" and set(reasons[:-1]) == {None}
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 24
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_answers_to_one_question(four: Served) -> None:
    answer = chat(four, n=3, temperature=1.0)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert answer.usage.completion_tokens == 72
    assert chat(four, temperature=1.0).choices[0].message.content == texts[0], "the first has the seed of the request"


def test_stops_and_biases(four: Served) -> None:
    whole = chat(four, temperature=0).choices[0].message.content
    word = whole.split()[5]
    stopped = chat(four, temperature=0, stop=[word, "zzz"]).choices[0]
    assert stopped.finish_reason == "stop" and stopped.message.content == whole[: whole.index(word)]
    first = chat(four, temperature=0, logprobs=True, max_tokens=1, top_logprobs=3).choices[0].logprobs.content[0]
    assert [entry.logprob for entry in first.top_logprobs] == sorted(
        (entry.logprob for entry in first.top_logprobs), reverse=True
    )
    assert (
        first.token == first.top_logprobs[0].token and first.logprob < 0 and bytes(first.bytes) == first.token.encode()
    )
    with four.client() as client:
        raw = client.completions.create(model="demo", prompt="Once upon", max_tokens=1, temperature=0)
        banned = [" a", "a"]
        assert raw.choices[0].text in banned
        biased = {str(token): -100 for token in range(2000) if token % 2}
        few = dict(list(biased.items())[:300])
        client.completions.create(model="demo", prompt="Once upon", max_tokens=4, logit_bias=few)


def test_completions_of_several_prompts(four: Served) -> None:
    with four.client() as client:
        answer = client.completions.create(
            model="demo", prompt=["Once upon", "The fox"], max_tokens=5, n=2, echo=True, seed=1
        )
        starts = [choice.text[:7] for choice in answer.choices]
        assert starts == ["Once up", "Once up", "The fox", "The fox"]
        told = client.completions.create(model="demo", prompt="Once upon", max_tokens=5, logprobs=1, temperature=0)
        logprobs = told.choices[0].logprobs
        assert logprobs is not None and logprobs.tokens is not None and logprobs.text_offset is not None
        assert "".join(logprobs.tokens) == told.choices[0].text
        assert logprobs.text_offset == [len("".join(logprobs.tokens[:n])) for n in range(5)]
        with pytest.raises(openai.BadRequestError, match="an echo with the logprobs of the prompt"):
            client.completions.create(model="demo", prompt="Once upon", echo=True, logprobs=1)
        streamed = client.completions.create(
            model="demo", prompt="Once upon", max_tokens=5, stream=True, temperature=0, echo=True
        )
        alone = client.completions.create(model="demo", prompt="Once upon", max_tokens=5, temperature=0)
        assert "".join(chunk.choices[0].text for chunk in streamed) == "Once upon" + alone.choices[0].text


def test_models(four: Served) -> None:
    with four.client() as client:
        assert [model.id for model in client.models.list()] == ["demo"]
        assert client.models.retrieve("demo").object == "model"
        with pytest.raises(openai.NotFoundError, match="no model 'gpt-7'"):
            client.models.retrieve("gpt-7")


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        ({"model": "gpt-7"}, openai.NotFoundError, "no model 'gpt-7' here, but 'demo'"),
        ({"temperature": 1000}, openai.BadRequestError, "temperature is 1000.0, it must be a number from 0 to 100"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens: Input should be greater than or equal to 1"),
        ({"messages": []}, openai.BadRequestError, "messages: List should have at least 1 item"),
        ({"n": 17}, openai.BadRequestError, "n: Input should be less than or equal to 16"),
        ({"top_logprobs": 21, "logprobs": True}, openai.BadRequestError, "top_logprobs"),
        ({"logit_bias": {"9999999": 1}}, openai.BadRequestError, "'9999999' is no token"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools.0 has no name"),
        ({"response_format": {"type": "xml"}}, openai.BadRequestError, "response_format"),
        ({"messages": [FOX[0] | {"content": "fox " * 3000}]}, openai.BadRequestError, "more than the 1023 that fit"),
        ({"messages": [{"role": "no role", "content": "x"}]}, openai.BadRequestError, "the message role 'no role'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    four: Served, asked: dict[str, Any], kind: type[openai.APIStatusError], said: str
) -> None:
    with pytest.raises(kind) as caught:
        chat(four, **asked)
    body: Any = caught.value.body
    assert said in body["message"] and body["type"] == "invalid_request_error"
    with pytest.raises(kind):
        list(chat(four, stream=True, **asked))


def test_what_is_harmless_is_taken(four: Served) -> None:
    more = {"store": False, "metadata": {"a": "b"}, "user": "me", "service_tier": "auto", "parallel_tool_calls": True}
    assert chat(four, **more).choices[0].message.content
    parts = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    assert chat(four, messages=parts).choices[0].message.content


def raw(served: Served, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    address = urlsplit(served.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
    connection.request(method, path, body, {"content-type": "application/json", **headers})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/health", b"", {}, 200),
        ("GET", "/v1/cluster", b"", {}, 200),
        ("GET", "/v2", b"", {}, 404),
        ("PUT", "/v1/models", b"", {}, 405),
        ("GET", "/v1/models", b"", {"Host": "evil.example"}, 403),
        ("GET", "/v1/models", b"", {"Origin": "http://evil.example"}, 403),
        ("POST", "/v1/completions", b"{}", {"content-type": "text/plain"}, 415),
        ("POST", "/v1/completions", b"{", {}, 400),
        ("POST", "/v1/completions", b'{"prompt": "\xff\xfe"}', {}, 400),
        ("POST", "/v1/completions", b"[" * 100_000, {}, 400),
        ("POST", "/v1/completions", b'{"prompt": ' + b'"x"' * 9_000_000, {}, 413),
        ("POST", "/v1/completions", b"{}", {"content-length": "99999999"}, 413),
    ],
)
def test_strangers(four: Served, method: str, path: str, body: bytes, headers: dict[str, str], status: int) -> None:
    found, answer = raw(four, method, path, body, **headers)
    assert found == status
    assert status == 200 or answer["error"]["message"]


def test_callers_who_hang_up_are_forgotten(four: Served) -> None:
    address = urlsplit(four.url)
    asked = json.dumps({"messages": FOX, "max_tokens": 900, "stream": True}).encode()
    for number in range(12):
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
        body = asked if number % 2 else asked.replace(b"true", b"false")
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        if number % 2:
            connection.getresponse().read(300)
        connection.close()
    started_s = time.monotonic()
    answer = chat(four, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert time.monotonic() - started_s < 10, "nobody computes what nobody waits for"


async def ask(client: openai.AsyncOpenAI, served: Served, number: int, wait_s: float) -> Any:
    """A caller of a crowd: greedy or drawn, with what each token's probability was."""
    await asyncio.sleep(wait_s)
    animal = ["fox", "bear", "crow", "owl", "hare"][number % 5]
    words = f"Tell me a story about a {animal}." + " It was a dark night and the wind was cold." * (number % 4) * 4
    sampling = [{"temperature": 0}, {"temperature": 0.8, "seed": number}, {"top_p": 0.5, "seed": number}][number % 3]
    answer = await client.chat.completions.create(
        model=served.model,
        messages=[{"role": "user", "content": words}],
        max_tokens=20 + number,
        logprobs=True,
        top_logprobs=2,
        **sampling,  # type: ignore[arg-type]
    )
    return answer.choices[0]


async def crowd(served: Served, numbers: list[int], gap_s: float, impatient: set[int]) -> dict[int, Any]:
    """Twenty at once, of whom some lose patience."""
    async with served.async_client() as client:
        tasks = {n: asyncio.create_task(ask(client, served, n, gap_s * i)) for i, n in enumerate(numbers)}
        for number in impatient:
            await asyncio.sleep(gap_s)
            tasks[number].cancel()
        found = await asyncio.gather(*tasks.values(), return_exceptions=True)
    return dict(zip(tasks, found, strict=True))


def same(one: Any, other: Any, *, is_greedy: bool) -> bool:
    """Equal tokens with about equal probabilities; up to where two were nearly tied, or a draw fell between them.
    Whether all are equal."""
    for mine, yours in zip(one.logprobs.content, other.logprobs.content, strict=False):
        if mine.token != yours.token:
            best = [entry.logprob for entry in mine.top_logprobs]
            assert not is_greedy or best[0] - best[1] < 2 * CLOSE
            return False
        assert abs(mine.logprob - yours.logprob) < 2 * CLOSE
    assert one.message.content == other.message.content
    return True


@pytest.mark.parametrize("model", ["demo", "windowed", "deltas"])
def test_twenty_at_once_get_what_each_gets_alone(tmp_path: Path, cache: Path, model: str) -> None:
    path = model if model == "demo" else str(TRAINED / f"{model}.gguf")
    impatient = {3, 7, 11, 15, 19}
    with serve(path, tmp_path, cache, 4, "--parallel", "6", name=model) as served:
        together = asyncio.run(crowd(served, list(range(20)), 0.03, impatient))
        n_answered = n_equal = 0
        for number in range(20):
            if isinstance(together[number], BaseException):
                assert number in impatient, together[number]
                continue
            alone = asyncio.run(crowd(served, [number], 0, set()))[number]
            n_equal += same(alone, together[number], is_greedy=number % 3 == 0)
            n_answered += 1
        assert n_answered >= 15 and n_equal > n_answered / 2


def bits(choice: Any) -> list[Any]:
    """All that is told of an answer's tokens; numbers are told so that no bit is lost."""
    tokens = [
        (entry.token, entry.logprob, [(other.token, other.logprob) for other in entry.top_logprobs])
        for entry in choice.logprobs.content
    ]
    return [choice.message.content, choice.finish_reason, tokens]


@pytest.mark.parametrize(
    "model", ["demo", pytest.param("windowed", marks=LONG_FORM), pytest.param("deltas", marks=LONG_FORM)]
)
def test_twenty_at_once_get_the_bits_that_each_gets_alone(tmp_path: Path, cache: Path, model: str) -> None:
    """Sums travel in 32 bits, whatever else was asked for."""
    path, impatient = model if model == "demo" else str(TRAINED / f"{model}.gguf"), {3, 11, 19}
    options = ("--parallel", "6", "--reproducible", "--wire", "int8")
    with serve(path, tmp_path, cache, 3, *options, name=model) as served:
        together = asyncio.run(crowd(served, list(range(20)), 0.03, impatient))
        answered = {number: answer for number, answer in together.items() if not isinstance(answer, BaseException)}
        assert set(range(20)) - set(answered) <= impatient
        for number, answer in answered.items():
            alone = asyncio.run(crowd(served, [number], 0, set()))[number]
            assert bits(alone) == bits(answer), f"caller {number}"


def test_a_key_is_wanted_where_others_can_ask(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS, with a key by a name, and a line of every request."""
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.chain))
    keys, log = tmp_path / "keys", tmp_path / "access.log"
    keys.write_text("laptop secret\n")
    keys.chmod(0o600)
    options = ("--host", "0.0.0.0", "--api-key-file", str(keys), "--any-model", "--access-log", str(log))
    tls = ("--tls-cert", str(certificate.chain), "--tls-key", str(certificate.key))
    with serve("demo", tmp_path, cache, 1, *options, *tls) as found:
        assert found.url.startswith("https://0.0.0.0:")
        served = dataclasses.replace(found, url=found.url.replace("0.0.0.0", "127.0.0.1"))
        with pytest.raises(openai.AuthenticationError, match="wants an API key"):
            served.client("wrong").models.list()
        assert served.client("secret").models.list().data
        answer = chat_with(served, "secret")
        assert answer.choices[0].message.content
    refused, _, asked = log.read_text().splitlines()
    assert re.search(r"Z 127\.0\.0\.1 key=- GET /v1/models 401 \d+ms$", refused)
    assert re.search(r" key=laptop POST /v1/chat/completions 200 \d+ms prompt=\d+ answer=5$", asked)


def chat_with(served: Served, key: str) -> Any:
    return served.client(key).chat.completions.create(model="whatever", messages=FOX, max_tokens=5)  # type: ignore[arg-type]


def test_a_port_that_is_taken(home: Home, four: Served) -> None:
    ended = home.run("serve", "demo", "--port", "0", "--api-port", str(urlsplit(four.url).port))
    assert ended.code == 2 and "the API cannot listen at 127.0.0.1 port" in ended.last_line


GONE = r"w1 \(rank 1\) is gone"


def test_a_worker_that_is_lost_is_told_to_all(tmp_path: Path, cache: Path) -> None:
    """The answer under way, and the server's end."""
    home = tmp_path / "lost"
    home.mkdir()
    with pytest.raises(AssertionError, match=GONE), serve("demo", home, cache, 2) as served:
        stream = chat(served, max_tokens=1000, stream=True)
        next(iter(stream))
        served.workers[0].process.kill()
        with pytest.raises(openai.APIError, match=GONE):
            for _ in stream:
                pass
        served.master.process.wait(10)
