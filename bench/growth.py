"""What a process grows by while it works, beside window, KV cache and buffers: the constants of the memory plan.

Each part is measured in a process of its own: answering the API, the first grammar of vocabularies of several sizes and
some after it, the graphs that a rank keeps, and what is made of a pass's mask while it is read. No root, a minute.
"""

import argparse
import contextlib
import gc
import http.client
import json
import multiprocessing
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from bench.report import Report
from bench.shapes import SHAPES, Shape
from bench.vocabulary import add_tokenizer
from tpi.api.app import make_app
from tpi.api.guards import Rules
from tpi.api.server import ApiServer
from tpi.api.service import Identity, Service
from tpi.cli.models import find_model
from tpi.cluster.master import Master
from tpi.config import Folders, MasterSettings, Resources
from tpi.engine.engine import Engine
from tpi.engine.grammar import GrammarTokens, LarkRules, body_of
from tpi.engine.language import Language
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.engine.slots import Slots
from tpi.engine.turns import ChatAsk, Grammar, Message
from tpi.engine.vocabulary import Vocabulary
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import model_of, read_spec
from tpi.model.partition import divide
from tpi.native.allocator import give_back_freed
from tpi.observe import peak_resident_bytes, resident_bytes
from tpi.runtime.ggml.inputs import BatchShape, Sight
from tpi.runtime.passes import Pass, Run
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.sights import Sights
from tpi.runtime.workspace import Workspace
from tpi.weights.layout import lay_out

_N_CELLS, _N_ROWS = 8192, 128
_N_GRAPHS = 64
_N_CALLERS = 16
_CHAT = [{"role": "user", "content": "Tell me a story about a fox."}]
_ASKED: tuple[tuple[str, dict[str, object] | None], ...] = (
    ("/v1/models", None),
    ("/v1/cluster", None),
    ("/metrics", None),
    ("/openapi.json", None),
    ("/v1/completions", {"prompt": "Once upon", "max_tokens": 8, "logprobs": 2}),
    ("/v1/chat/completions", {"messages": _CHAT, "max_tokens": 32}),
    ("/v1/chat/completions", {"messages": _CHAT, "max_tokens": 32, "stream": True}),
    ("/v1/responses", {"input": "Tell me a story.", "max_output_tokens": 8}),
    ("/v1/messages", {"messages": _CHAT, "max_tokens": 8}),
    ("/api/chat", {"messages": _CHAT, "options": {"num_predict": 8}}),
    ("/completion", {"prompt": "Once upon", "n_predict": 8}),
)


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """Measures; yields a report for every part."""
    parser = argparse.ArgumentParser(prog="python -m bench growth", description=__doc__)
    parser.parse_args(arguments)
    yield _alone(measure_api)
    for shape in ("", "llama-2-7b", "llama-3.1-8b"):
        yield _alone(measure_grammars, shape)
    yield _alone(measure_graphs)
    yield _alone(measure_mask)


def _alone(measure: Callable[..., dict[str, str | int | float]], *arguments: str) -> Report:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return Report("growth").add(**pool.submit(measure, *arguments).result())


def measure_api() -> dict[str, str | int | float]:
    """A master that has answered its terminal before."""
    model = find_model("demo")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folders = Folders(folder / "state", folder / "shards", folder / "cache")
        settings = MasterSettings(model, folders, Resources(n_threads=1), n_parallel=4, bind="127.0.0.1", port=0)
        language = stack.enter_context(Language(model))
        cluster = stack.enter_context(stack.enter_context(Master(settings)).form(lambda event: None))
        engine = stack.enter_context(Engine(cluster, language))
        for _ in range(3):
            prompt = engine.chat_prompt(ChatAsk((Message("user", "Tell me a story about a fox."),)))
            list(engine.follow(engine.ask(prompt, SamplingSettings(), GenerationSettings(200))))
        before = _resident_bytes()
        server = stack.enter_context(contextlib.closing(ApiServer("127.0.0.1", 0)))
        slots = Slots(engine.scheduler, cluster, None, cluster.spec.digest, engine.n_sequences)
        service = Service(engine, Identity("demo", 0), SamplingSettings(), cluster.status, slots)
        stack.callback(service.close)
        engine.drive(lambda error: None)
        server.start(make_app(service, Rules("127.0.0.1", (), ()), None), None)
        after = [_ask_all(server.port) for _ in range(3)]
    return {"part": "API", "after_mb": (after[0] - before) / 1e6, "later_mb": (after[-1] - before) / 1e6}


def _ask_all(port: int) -> int:
    """By many callers at once; bytes that are resident then."""
    with ThreadPoolExecutor(_N_CALLERS) as pool:
        for path, body in _ASKED:
            list(pool.map(lambda _, path=path, body=body: _ask(port, path, body), range(_N_CALLERS)))
    return peak_resident_bytes()


def _ask(port: int, path: str, body: dict[str, object] | None) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        content = None if body is None else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, content, {"content-type": "application/json"})
        connection.getresponse().read()


def measure_grammars(shape: str) -> dict[str, str | int | float]:
    """Of the demo model's vocabulary, or one of the size and kind of a shape's: the first one, then schemas."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = _write_vocabulary(folder / "vocabulary.gguf", SHAPES[shape]) if shape else find_model("demo")
        vocabulary = stack.enter_context(Vocabulary(path))
        vocabulary.tokenize("Once upon a time", add_special=True, parse_special=True)
        tokens, before = GrammarTokens(vocabulary), _resident_bytes()
        tokens.start('start: "a"')
        first = peak_resident_bytes() - before
        for number in range(12):
            rules = LarkRules(vocabulary)
            body = body_of(rules, Grammar("json_schema", json.dumps(_schema(number))))
            assert body is not None
            matcher = tokens.start(rules.grammar(body))
            for _ in range(40):
                allowed = matcher.mask()
                if allowed is None or not allowed.any() or not matcher.try_accept([int(allowed.argmax())]):
                    break
        some = peak_resident_bytes() - before
        n_tokens = vocabulary.n_tokens
    return {"part": "grammars", "n_tokens": n_tokens, "after_mb": first / 1e6, "later_mb": some / 1e6}


def _write_vocabulary(path: Path, shape: Shape) -> Path:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(shape.n_context)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    add_tokenizer(writer, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def _schema(number: int) -> dict[str, object]:
    kinds = ({"type": "string"}, {"type": "integer"}, {"type": "array", "items": {"type": "string"}})
    names = [f"name_{number}_{place}" for place in range(10)]
    properties = {name: kinds[place % 3] for place, name in enumerate(names)}
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def measure_graphs() -> dict[str, str | int | float]:
    """Bytes of a graph, and of each of its nodes: from small graphs and from those of whole passes."""
    model, settings = _demo()
    with Workspace(model, settings) as workspace:
        head, attention = model.blocks[-1], model.blocks[0]
        small, n_small = _grown([lambda: workspace.graphs.make(head, BatchShape(1))] * _N_GRAPHS, 3)
        seen = tuple((window, Sight(256)) for window in model.windows)
        make = [lambda: workspace.graphs.make(attention, BatchShape(1, seen))] * _N_GRAPHS
        large, n_large = _grown(make, 18)
        whole, n_whole = _grown([lambda: workspace.graphs._build_pass(1, seen)] * 8, 107)
    per_node = (large - small) / (n_large - n_small)
    return {
        "part": "graphs",
        "head_kb": small / 1e3,
        "attention_kb": large / 1e3,
        "pass_kb": whole / 1e3,
        "kb_per_node": per_node / 1e3,
        "pass_kb_per_node": whole / n_whole / 1e3,
    }


def _grown(makes: Sequence[Callable[[], object]], n_nodes: int) -> tuple[float, int]:
    before = _resident_bytes()
    graphs = [make() for make in makes]
    grown = (_resident_bytes() - before) / len(graphs)
    for graph in graphs:
        graph.close()  # type: ignore[attr-defined]
    return grown, n_nodes


def measure_mask() -> dict[str, str | int | float]:
    """Bytes of a row and cell while a pass's mask is read, the pass's own among them."""
    model, settings = _demo()
    found: dict[str, str | int | float] = {"part": "mask"}
    for is_reproducible in (False, True):
        sights = Sights(model, replace(settings, is_reproducible=is_reproducible))
        positions = np.arange(_N_CELLS - _N_ROWS, _N_CELLS, dtype=np.int32)
        sights._positions[:] = np.arange(_N_CELLS)
        visible = np.arange(_N_CELLS)[None, :] <= positions[:, None]
        none = np.empty(0, np.int32)
        work = Pass(1, None, positions, positions.astype(np.int64), visible, none, runs=(Run(0, _N_ROWS),))
        tracemalloc.start()
        sights.load(work)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        found["reproducible" if is_reproducible else "usual"] = (visible.nbytes + peak) / visible.size
    return found


def _demo() -> tuple[RankModel, RankSettings]:
    spec = read_spec(read_gguf(find_model("demo")), digest="")
    model = model_of(spec)
    partition = divide(model.blocks, (1.0,))
    pieces = lay_out(model.blocks, partition, 0)
    settings = RankSettings(_N_ROWS, _N_CELLS, 1, max_sampled=8)
    return RankModel(spec, model.blocks, partition, 0, pieces, model.inputs), settings


def _resident_bytes() -> int:
    gc.collect()
    give_back_freed()
    return resident_bytes()
