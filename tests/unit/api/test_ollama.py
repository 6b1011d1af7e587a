"""Ollama's API: what requests come down to, and what the official client gets."""

import json
import urllib.request
from typing import Any

import ollama
import pytest

from tests.unit.api.scripted import Line, Played
from tpi.api.asks import TextAsk
from tpi.api.errors import Problem
from tpi.api.ollama.asks import read_chat, read_generation, read_sampling, read_text
from tpi.api.ollama.schema import ChatRequest, GenerateRequest, Options
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.engine.turns import ChatAsk, Grammar, Message, Thinking, Tool, ToolCall
from tpi.errors import LinkError

HELLO = {"role": "user", "content": "Hello"}
TOOL = {"type": "function", "function": {"name": "weather", "description": "x", "parameters": {"type": "object"}}}
SAMPLING = SamplingSettings()


def test_a_chat() -> None:
    call = {"function": {"name": "weather", "arguments": {"a": "é"}}}
    given = [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call, call]},
        {"role": "tool", "content": "warm", "tool_name": "weather"},
        {"role": "tool", "content": "cold", "tool_name": "weather"},
    ]
    more = {"tools": [TOOL], "format": {"type": "object"}, "think": "high", "keep_alive": "5m"}
    assert read_chat(ChatRequest.model_validate({"messages": given, **more})) == ChatAsk(
        (
            Message("system", "Be brief."),
            Message(
                "assistant",
                "",
                "hm",
                (ToolCall("call_1_0", "weather", '{"a": "é"}'), ToolCall("call_1_1", "weather", '{"a": "é"}')),
            ),
            Message("tool", "warm", tool_call_id="call_1_0", name="weather"),
            Message("tool", "cold", tool_call_id="call_1_1", name="weather"),
        ),
        (Tool("weather", "x", {"type": "object"}),),
        grammar=Grammar("json_schema", '{"type": "object"}'),
        thinking=Thinking(effort="high"),
    )


def test_a_text() -> None:
    asked = GenerateRequest.model_validate({"prompt": "Hi", "system": "S", "think": False, "format": "json"})
    messages = (Message("system", "S"), Message("user", "Hi"))
    assert read_text(asked) == ChatAsk(messages, grammar=Grammar("json_object"), thinking=Thinking(False))
    assert read_text(GenerateRequest(prompt="Hi", raw=True, format="")) == TextAsk("Hi")


def test_options() -> None:
    given = {"temperature": 0, "top_k": 3, "repeat_penalty": 1.5, "repeat_last_n": 9, "num_ctx": 2048, "num_gpu": 1}
    options = Options.model_validate(given | {"seed": 4, "num_predict": 7, "stop": ["a", ""]})
    sampling = SamplingSettings(0, 3, repetition_penalty=1.5, penalty_window_tokens=9, seed=4)
    assert read_sampling(options, SAMPLING) == sampling
    settings = read_generation(ChatRequest(options=options, logprobs=True), 100, raw=False)
    assert settings == GenerationSettings(7, ("a",), n_logprobs=0)
    assert read_sampling(Options(seed=-1), SAMPLING).seed is None
    assert read_generation(ChatRequest(options=Options(num_predict=-1)), 100, raw=True).max_tokens == 100


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (GenerateRequest(prompt="x", suffix="y"), "a request with suffix"),
        (GenerateRequest(prompt="x", template="y"), "a request with template"),
        (GenerateRequest(prompt="x", images=["y"]), "a request with images"),
        (GenerateRequest(prompt="x", context=[1]), "a request with context"),
        (GenerateRequest(prompt="x", format="xml"), "the format 'xml'"),
    ],
)
def test_what_cannot_be_is_refused(asked: GenerateRequest, said: str) -> None:
    with pytest.raises(Problem, match=said):
        read_text(asked)


def test_other_refusals() -> None:
    with pytest.raises(Problem, match="mirostat"):
        read_sampling(Options.model_validate({"mirostat": 2}), SAMPLING)
    message = HELLO | {"images": ["x"]}
    with pytest.raises(Problem, match="images"):
        read_chat(ChatRequest.model_validate({"messages": [message]}))


CALLING = Line(("See", "ing."), ("Hm", "m."), [("c1", "weather", ['{"a":', "1}"])])


def client(server: Played) -> ollama.Client:
    return ollama.Client(server.url, timeout=20)


def test_a_reply(server: Played) -> None:
    server.engine.line = CALLING
    for name in ("demo", "demo:latest"):
        told = client(server).chat(name, [HELLO], tools=[TOOL])
        assert (told.model, told.message.content, told.message.thinking) == (name, "Seeing.", "Hmm.")
    assert told.done and told.done_reason == "stop" and told.message.tool_calls is not None
    assert [(call.function.name, call.function.arguments) for call in told.message.tool_calls] == [
        ("weather", {"a": 1})
    ]
    assert (told.prompt_eval_count, told.prompt_eval_duration) == (7, 250_000_000)
    assert (told.eval_duration, told.total_duration) == (500_000_000, 750_000_000)


def test_a_stream(server: Played) -> None:
    server.engine.line = CALLING
    lines = list(client(server).chat("demo", [HELLO], stream=True, logprobs=True))
    assert [line.message.content for line in lines] == ["", "", "See", "ing.", "", "", "", "", ""]
    assert "".join(line.message.thinking or "" for line in lines) == "Hmm."
    assert [len(line.message.tool_calls or ()) for line in lines] == [0] * 7 + [1, 0]
    assert [line.done for line in lines] == [False] * 8 + [True] and lines[-1].eval_count == 7
    assert lines[0].logprobs is not None and lines[0].logprobs[0].token == "A"


def test_texts(server: Played) -> None:
    server.engine.line = Line(("Once", " upon"), finish="length")
    told = client(server).generate("demo", "Hi", options={"seed": 3, "num_predict": 2})
    assert (told.response, told.done_reason) == ("Once upon", "length")
    assert server.engine.settings[-1][0].seed == 3
    client(server).generate("demo", "Hi", raw=True)
    assert server.engine.asked[-1] == "Hi"
    told = client(server).generate("demo", "", keep_alive=0)
    assert told.done_reason == "unload"
    assert client(server).chat("demo", []).done_reason == "load"


def test_models(server: Played) -> None:
    asker = client(server)
    [model] = asker.list().models
    assert model.model == "demo:latest" and model.size and model.details and model.details.format == "gguf"
    shown = asker.show("demo")
    assert shown.modelinfo and shown.modelinfo["general.architecture"] == "llama"
    assert shown.capabilities == ["completion", "tools", "thinking"]
    [running] = asker.ps().models
    assert running.expires_at is not None and running.context_length == 64
    with urllib.request.urlopen(server.url + "/api/version") as response:
        assert json.load(response)["version"]
    with urllib.request.urlopen(urllib.request.Request(server.url + "/", method="HEAD")) as response:
        assert response.status == 200


def test_errors(server: Played) -> None:
    asker = client(server)
    with pytest.raises(ollama.ResponseError, match="there is no model 'x'") as caught:
        asker.chat("x", [HELLO])
    assert caught.value.status_code == 404
    server.engine.line = Line(("Once",), error=LinkError("w1 is gone"))
    with pytest.raises(ollama.ResponseError, match="w1 is gone") as caught:
        asker.chat("demo", [HELLO])
    assert caught.value.status_code == 503
    with pytest.raises(ollama.ResponseError, match="w1 is gone"):
        list(asker.chat("demo", [HELLO], stream=True))
    status, body = server.post("/api/chat", {"messages": 3})
    assert status == 400 and "messages" in body["error"]
    more: Any = server.post("/api/pull", {"model": "x"})
    assert more == (404, {"error": "there is no POST /api/pull here"})
