"""The API of llama.cpp's server: what requests come down to, and what callers get."""

import dataclasses
import json
import urllib.request
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tests.unit.api.scripted import Line, Played, played
from tpi.api.llamacpp.asks import read_prompts
from tpi.api.workers import Going
from tpi.engine.embedder import Pooling
from tpi.engine.generation import Answer, OnStreams
from tpi.errors import Cancelled, ContextError, LinkError, UnsupportedModelError, UsageError


def ask(server: Played, line: Line, **asked: Any) -> Any:
    server.engine.line = line
    status, body = server.post("/completion", {"prompt": "Hi"} | asked)
    assert status == 200, body
    return body


def test_a_completion(server: Played) -> None:
    told = ask(server, Line(("Once", " upon")), n_predict=5, seed=3, repeat_penalty=1.5, stop=["x", ""], model="demo")
    assert (told["content"], told["stop"], told["stop_type"], told["index"]) == ("Once upon", True, "eos", 0)
    assert (told["tokens_predicted"], told["tokens_evaluated"], told["timings"]["cache_n"]) == (2, 7, 3)
    assert told["timings"]["predicted_ms"] == 500 and told["generation_settings"]["repetition_penalty"] == 1.5
    sampling, settings = server.engine.settings[-1]
    assert (sampling.seed, settings.max_tokens, settings.stop, settings.raw) == (3, 5, ("x",), True)
    assert ask(server, Line(("a",), finish="length"))["stop_type"] == "limit"
    word = ask(server, Line(("a",), stopped_by="zz"))
    assert (word["stop_type"], word["stopping_word"]) == ("word", "zz")
    nothing = ask(server, Line(("a",)), n_predict=0)
    assert (nothing["content"], nothing["tokens_predicted"]) == ("", 0)


def test_tokens_and_probabilities(server: Played) -> None:
    told = ask(server, Line(("a", "b")), n_probs=2, return_tokens=True)
    assert told["tokens"] == [65, 65]
    first = told["completion_probabilities"][0]
    assert (first["id"], first["token"], [other["id"] for other in first["top_logprobs"]]) == (65, "A", [65, 66])


def test_several_prompts(server: Played) -> None:
    server.engine.line = Line(("a",))
    status, body = server.post("/completions", {"prompt": ["x", [66, "y"]], "n_cmpl": 2})
    assert status == 200 and [entry["index"] for entry in body] == [0, 1, 2, 3]
    assert server.post("/completion", {"prompt": ["x"]})[1][0]["content"] == "a"
    assert server.post("/completion", {"prompt": [66, "y"]})[1]["content"] == "a"


def test_a_stream(server: Played) -> None:
    server.engine.line = Line(("Once", " upon"), finish="length")
    body = json.dumps({"prompt": "Hi", "stream": True}).encode()
    request = urllib.request.Request(server.url + "/completion", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        events = [json.loads(line[6:]) for line in response.read().splitlines() if line]
    assert [event["content"] for event in events] == ["Once", " upon", ""]
    assert [event["stop"] for event in events] == [False, False, True] and events[-1]["stop_type"] == "limit"


def test_biases(server: Played) -> None:
    ask(server, Line(("a",)), logit_bias=[[65, 1.5], [66, False], ["CD", -2]])
    assert dict(server.engine.settings[-1][0].logit_bias) == {65: 1.5, 66: -100.0, 67: -2.0, 68: -2.0}
    ask(server, Line(("a",)), logit_bias={"65": 1})
    assert dict(server.engine.settings[-1][0].logit_bias) == {65: 1.0}


def test_texts_and_tokens(server: Played) -> None:
    assert server.post("/tokenize", {"content": "Aé"}) == (200, {"tokens": [65, 195, 169]})
    _, pieces = server.post("/tokenize", {"content": "Aé", "with_pieces": True})
    assert pieces["tokens"][:2] == [{"id": 65, "piece": "A"}, {"id": 195, "piece": [195]}]
    assert server.post("/detokenize", {"tokens": [65, 195, 169]}) == (200, {"content": "Aé"})
    status, told = server.post("/apply-template", {"messages": [{"role": "user", "content": "x"}]})
    assert status == 200 and told == {"prompt": "\1\2\3\4\5\6\7"}


def test_what_the_server_is(server: Played) -> None:
    _, props = server.post("/props", None, "GET")
    assert props["total_slots"] == 2 and props["default_generation_settings"]["n_ctx"] == 64
    assert props["default_generation_settings"]["params"]["repeat_last_n"] == 64
    assert props["chat_template"] and props["eos_token"] == "<0>" and props["bos_token"] == ""


def test_gaps(server: Played) -> None:
    asked = {"input_prefix": "a", "input_suffix": "b", "prompt": "c", "input_extra": [{"filename": "f", "text": "t"}]}
    status, body = server.post("/infill", asked)
    assert status == 400 and "filling gaps with a model that has no tokens" in body["error"]["message"]
    with played() as other:
        marks = {"pre": 1, "suf": 2, "mid": 3, "sep": 4}
        other.about.metadata.update({f"tokenizer.ggml.fim_{name}_token_id": mark for name, mark in marks.items()})
        assert other.post("/infill", asked)[0] == 200
        assert bytes(other.engine.prompts[-1].tokens) == b"\4f\nt\n\1a\2b\3c"


@pytest.mark.parametrize(
    ("path", "asked", "said"),
    [
        ("/completion", {"prompt": "x", "mirostat": 2}, "mirostat"),
        ("/completion", {"prompt": "x", "dynatemp_range": 0.5}, "dynatemp_range"),
        ("/completion", {"prompt": []}, "there is no prompt"),
        ("/completion", {"prompt": [999]}, "999 is no token"),
        ("/completion", {"prompt": [5, "a"] * 2049}, "2,049 texts among its tokens, at most 2,048 may be"),
        ("/embedding", {"content": ["a"] * 2049}, "2,049 prompts, at most 2,048 may be"),
        ("/completion", {"prompt": "x", "logit_bias": [["x", True]]}, "no number"),
        ("/completion", {"prompt": "x", "grammar": "a", "json_schema": {}}, "both say"),
        ("/detokenize", {"tokens": [-1]}, "-1 is no token"),
        ("/embedding", {}, "there is no content"),
        ("/rerank", {"query": "x", "documents": ["y"]}, "ranking by a model that is not made for it"),
        ("/slots/0?action=save", {}, "there is no filename: name what is saved"),
        ("/slots/0?action=fill", {"filename": "x"}, "the action 'fill' is none: save, restore or erase a slot"),
    ],
)
def test_what_cannot_be_is_refused(server: Played, path: str, asked: Any, said: str) -> None:
    status, body = server.post(path, asked)
    assert status == 400 and said in body["error"]["message"]
    assert body["error"]["code"] == 400 and body["error"]["type"] == "invalid_request_error"


def test_what_fails_is_told(server: Played) -> None:
    server.engine.line = dataclasses.replace(Line(("a",)), error=LinkError("w1 is gone"))
    status, body = server.post("/completion", {"prompt": "x"})
    assert (status, body["error"]["type"], body["error"]["message"]) == (503, "unavailable_error", "w1 is gone")


def test_slots_are_saved_restored_and_erased(server: Played) -> None:
    told = {"n_saved": 7, "n_written": 100, "timings": {"save_ms": 500.0}}
    assert server.post("/slots/1?action=save", {"filename": "x"}) == (200, {"id_slot": 1, "filename": "x", **told})
    told = {"n_restored": 7, "n_read": 100, "timings": {"restore_ms": 500.0}}
    assert server.post("/slots/0?action=restore", {"filename": "x"}) == (200, {"id_slot": 0, "filename": "x", **told})
    assert server.post("/slots/0?action=erase", {}) == (200, {"id_slot": 0, "n_erased": 7})
    slots = server.engine.slots
    assert slots.said[-3:] == [("save", 1, "x"), ("restore", 0, "x"), ("erase", 0, "")]
    slots.are_saved = False
    status, body = server.post("/slots/0?action=save", {"filename": "x"})
    slots.are_saved = True
    assert status == 501 and body["error"]["type"] == "not_supported_error"
    assert body["error"]["message"].endswith("serve with a folder for them")


@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
def test_a_slot_that_is_asked_for(server: Played, path: str) -> None:
    server.engine.line = Line(("a",))
    for asked, wanted in ((2, 2), (-1, None), (None, None)):
        assert server.post(path, {"prompt": "x", "id_slot": asked})[0] == 200
        assert server.engine.settings[-1][1].slot == wanted


def test_vectors_of_tokens(server: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model's file says that it makes none of texts."""

    def embed(tokens: Sequence[int], notify: Callable[[], None], on_streams: OnStreams) -> Any:
        on_streams(0, np.array([[token, 0.5] for token in tokens], np.float32))
        return SimpleNamespace(is_over=True, error=None, answer=Answer(finish="stop"))

    def check() -> None:
        raise UnsupportedModelError("none of a text")

    def check_each(n_tokens: int) -> None:
        if n_tokens > 3:
            raise UsageError("too many at once")

    embedder = SimpleNamespace(
        pooling=Pooling.NONE, normed=lambda streams: streams, check_pooled=check, check_each=check_each
    )
    monkeypatch.setattr(server.engine, "embedder", embedder)
    monkeypatch.setattr(server.engine, "embed", embed, raising=False)
    status, told = server.post("/embedding", {"content": [[1, 2], [3]]})
    assert status == 200
    assert told == [{"index": 0, "embedding": [[1, 0.5], [2, 0.5]]}, {"index": 1, "embedding": [[3, 0.5]]}]
    assert server.post("/v1/embeddings", {"input": "x"})[0] == 400
    status, told = server.post("/embedding", {"content": [[1, 2], [3, 4]]})
    assert status == 400 and told["error"]["message"] == "too many at once"


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/completion", {"prompt": [1, "x"]}),
        ("/embedding", {"content": "x"}),
        ("/v1/embeddings", {"input": ["x"]}),
        ("/v1/rerank", {"query": "x", "documents": ["y"]}),
    ],
)
def test_what_is_far_too_long_is_not_tokenized(
    server: Played, monkeypatch: pytest.MonkeyPatch, path: str, asked: Any
) -> None:
    def check(text: str) -> None:
        raise ContextError("far too long", 7)

    monkeypatch.setattr(server.engine, "check_bytes", check)
    monkeypatch.setattr(server.engine, "embedder", SimpleNamespace(can_rank=True))
    monkeypatch.setattr(server.engine.vocabulary, "tokenize", None)
    status, told = server.post(path, asked)
    assert status == 400 and told["error"]["message"] == "far too long"


def test_a_slot_is_erased_without_a_body(server: Played) -> None:
    """As llama.cpp describes it: ``curl -X POST``, which then tells no type."""
    request = urllib.request.Request(f"{server.url}/slots/0?action=erase", method="POST")
    with urllib.request.urlopen(request, timeout=20) as response:
        assert json.load(response) == {"id_slot": 0, "n_erased": 7}


def test_of_what_does_not_fit_no_more_is_tokenized(server: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    told, plain = list[str](), server.engine.vocabulary.tokenize

    def tokenize(text: str, **how: bool) -> list[int]:
        told.append(text)
        return plain(text, **how)

    monkeypatch.setattr(server.engine.vocabulary, "tokenize", tokenize)
    status, body = server.post("/completion", {"prompt": [1, *["x" * 40] * 1000]})
    assert status == 400 and "81 tokens and more, 64 are the whole context" in body["error"]["message"]
    assert len(told) == 2


def test_nothing_is_tokenized_for_who_has_hung_up() -> None:
    going, prompt = Going(), list[int | str]([1, "x"])
    going.is_wanted = False
    with pytest.raises(Cancelled):
        read_prompts(prompt, cast(Any, SimpleNamespace(n_context=64, check_token=lambda _: None)), going)
