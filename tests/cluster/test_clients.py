"""Other APIs than OpenAI's chats, by their official clients, against four ranks that compute."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import llama_cpp
import numpy as np
import ollama
import pytest

from tests.cluster.serving import Served, serve
from tests.variants.made import write_made
from tests.variants.qwen3 import qwen3
from tpi.api.about import describe_model
from tpi.cli.models import find_model
from tpi.gguf.reader import read_gguf
from tpi.runtime.protocols import Float32Array

FOX = "Tell me a story about a fox and a lantern."
ASKED: Any = [{"role": "user", "content": FOX}]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Served]:
    with serve("demo", tmp_path_factory.mktemp("four"), cache, 4, "--ollama-port", "0") as served:
        yield served


@pytest.fixture(scope="module")
def text(four: Served) -> str:
    """What the model says to that, greedily, in 24 tokens."""
    with four.client() as client:
        told = client.chat.completions.create(model="demo", messages=ASKED, max_tokens=24, temperature=0)
        return str(told.choices[0].message.content)


def test_openai_s_responses(four: Served, text: str) -> None:
    with four.client() as client:
        told = client.responses.create(model="demo", input=FOX, max_output_tokens=24, temperature=0)
        assert told.output_text == text and told.status == "incomplete"
        stream = client.responses.create(model="demo", input=FOX, max_output_tokens=24, temperature=0, stream=True)
        assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == text
        more = client.responses.create(model="demo", input="Go on.", previous_response_id=told.id, max_output_tokens=5)
        assert more.usage is not None and told.usage is not None
        assert more.usage.input_tokens > told.usage.input_tokens + 24
        assert more.usage.input_tokens_details.cached_tokens >= told.usage.input_tokens


def test_ollama_at_its_port(four: Served, text: str) -> None:
    found = re.search(r"Ollama's is at (\S+),", four.master.wait_for(", too"))
    assert found is not None
    client = ollama.Client(found[1], timeout=60)
    options = {"temperature": 0, "num_predict": 24, "num_ctx": 512}
    told = client.chat("demo:latest", ASKED, options=options)
    assert told.message.content == text and told.done_reason == "length"
    assert told.eval_count == 24 and told.eval_duration and told.eval_duration > 1_000_000
    lines = list(client.generate("demo", FOX, options=options, stream=True))
    assert "".join(line.response or "" for line in lines) == text and lines[-1].done
    raw = client.generate("demo", "Once upon", raw=True, options=options | {"num_predict": 1})
    assert raw.response and raw.response.strip() == "a"


def test_anthropic_s_messages(four: Served, text: str) -> None:
    with anthropic.Anthropic(base_url=four.root, api_key="none", max_retries=0, timeout=60) as client:
        more: Any = {"model": "demo", "max_tokens": 24, "messages": ASKED, "extra_body": {"temperature": 0}}
        told = client.messages.create(**more)
        assert told.content[0].type == "text" and told.content[0].text == text and told.stop_reason == "max_tokens"
        n_read = told.usage.input_tokens + (told.usage.cache_read_input_tokens or 0)
        assert client.messages.count_tokens(model="demo", messages=more["messages"]).input_tokens == n_read
        with client.messages.stream(**more) as stream:
            assert "".join(stream.text_stream) == text


TEXTS = [FOX, "The crow sat on the fence.", "A bear.", FOX + " It was a dark night." * 12]


@pytest.fixture(scope="module")
def vectors() -> list[Float32Array]:
    """llama.cpp's, of the last token's row."""
    path, last = find_model("demo"), llama_cpp.LLAMA_POOLING_TYPE_LAST
    model = llama_cpp.Llama(str(path), embedding=True, pooling_type=last, n_ctx=512, n_threads=1, verbose=False)
    try:
        found: Any = model.embed(TEXTS, normalize=True)
        return [np.array(vector, np.float32) for vector in found]
    finally:
        model.close()


def test_embeddings_are_llama_cpp_s(four: Served, vectors: list[Float32Array]) -> None:
    with four.client() as client:
        told = client.embeddings.create(model="demo", input=TEXTS)  # in base64
        for own, reference in zip(told.data, vectors, strict=True):
            assert float(np.dot(own.embedding, reference)) > 0.9995
        assert told.usage.prompt_tokens > 100
        short = client.embeddings.create(model="demo", input=FOX, dimensions=16, encoding_format="float").data[0]
        assert len(short.embedding) == 16 and abs(np.linalg.norm(short.embedding) - 1) < 1e-5
        cosine = np.dot(short.embedding, vectors[0][:16]) / np.linalg.norm(vectors[0][:16])
        assert cosine > 0.999
    asker = ollama.Client(four.root, timeout=60)
    assert float(np.dot(asker.embed("demo", TEXTS).embeddings[1], vectors[1])) > 0.9995
    assert float(np.dot(asker.embeddings("demo", FOX).embedding, vectors[0])) > 0.9995


def test_embeddings_where_the_head_is_elsewhere(tmp_path: Path, cache: Path, vectors: list[Float32Array]) -> None:
    """Beside an answer that goes on meanwhile."""
    layers = describe_model(read_gguf(find_model("demo"))).n_layers
    layout = f"0:master 1-{layers - 1}:w1 head:w1"
    with serve("demo", tmp_path, cache, 2, "--name", "master", "--layout", layout) as served, served.client() as client:
        asked: Any = {"model": "demo", "messages": ASKED, "max_tokens": 200}
        stream = client.chat.completions.create(stream=True, **asked)
        next(iter(stream))
        told = client.embeddings.create(model="demo", input=TEXTS)
        for own, reference in zip(told.data, vectors, strict=True):
            assert float(np.dot(own.embedding, reference)) > 0.9995
        assert sum(1 for _ in stream) > 20


def post(served: Served, path: str, body: Any) -> Any:
    request = urllib.request.Request(
        served.root + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_llama_cpp_s_own(four: Served, vectors: list[Float32Array]) -> None:
    with four.client() as client:
        told = client.completions.create(model="demo", prompt="Once upon", max_tokens=12, temperature=0)
    asked = {"prompt": "Once upon", "n_predict": 12, "temperature": 0, "n_probs": 2, "return_tokens": True}
    answer = post(four, "/completion", asked)
    assert answer["content"] == told.choices[0].text and answer["stop_type"] == "limit"
    assert post(four, "/detokenize", {"tokens": answer["tokens"]})["content"] == answer["content"]
    assert len(answer["completion_probabilities"]) == 12 and answer["timings"]["predicted_ms"] > 0
    tokens = post(four, "/tokenize", {"content": "Once upon", "add_special": True})["tokens"]
    assert post(four, "/completion", asked | {"prompt": tokens})["content"] == answer["content"]
    prompt = post(four, "/apply-template", {"messages": ASKED})["prompt"]
    assert FOX in prompt and prompt != FOX
    [found] = post(four, "/embedding", {"content": FOX})
    assert float(np.dot(found["embedding"][0], vectors[0])) > 0.9995


def test_ranks_are_llama_cpp_s(tmp_path: Path, cache: Path) -> None:
    made = qwen3(n_layers=2)
    made.entries |= {"pooling_type": 4, "classifier.output_labels": ["yes", "no"]}
    made.add("cls.output", 2, 256)
    path = write_made(tmp_path / "ranker.gguf", made)
    documents = ["w3 w4", "w5 w6 w7", "w8"]
    kind = llama_cpp.LLAMA_POOLING_TYPE_RANK
    model = llama_cpp.Llama(str(path), embedding=True, pooling_type=kind, n_ctx=64, n_threads=1, verbose=False)
    try:
        scores: list[float] = [model.embed(f"w1 w2 {text}", normalize=False)[0] for text in documents]
    finally:
        model.close()
    home = tmp_path / "served"
    home.mkdir()
    with serve(str(path), home, cache, 2, name="ranker") as served:
        told = post(served, "/v1/rerank", {"query": "w1 w2", "documents": documents, "return_documents": True})
    found = [result["relevance_score"] for result in told["results"]]
    assert found == sorted(found, reverse=True) and told["results"][0]["document"]
    for result in told["results"]:
        assert abs(result["relevance_score"] - scores[result["index"]]) < 5e-3
    assert max(scores) - min(scores) > 0.05, "they differ"
