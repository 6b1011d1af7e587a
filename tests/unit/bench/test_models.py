"""Models of true shape: valid files, and slices that equal what is cut from the whole."""

from pathlib import Path

import numpy as np
import pytest

from bench.models import RandomModel, read_rank, write_gguf, write_rank
from bench.shapes import SHAPES, Shape, find_shape, rope_divisors, tensors_of
from tpi.engine.vocabulary import Vocabulary
from tpi.errors import UsageError
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import blocks_of, read_spec
from tpi.weights.identity import model_digest
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.shard import verify
from tpi.weights.shards.shard_format import ShardHeader
from tpi.weights.slices import GgufSource

SMALL = Shape("small", 2, 512, 8, 4, 768, 2000, 512)
BYTE_PAIRS = Shape("pairs", 1, 256, 4, 2, 512, 3000, 512, vocabulary="gpt2")


@pytest.mark.parametrize("quantisation", ["q4_0", "q4_k", "f16"])
def test_shard_written_alone_equals_one_cut_from_the_whole(tmp_path: Path, quantisation: str) -> None:
    model = RandomModel(SMALL, quantisation)
    whole = read_gguf(write_gguf(model, tmp_path / "whole.gguf"))
    alone = write_rank(model, 1, (2, 1, 1), tmp_path / "alone", model_digest(whole))
    assert alone.header.spec == read_spec(whole, model_digest(whole))
    header = ShardHeader(alone.header.spec, alone.header.partition, 1)
    with GgufSource(whole) as source:
        cut = write_shard(tmp_path / "cut", header, source).shard
    assert cut.path.read_bytes() == alone.path.read_bytes()
    verify(alone)


def test_hollow_file_has_the_size_and_the_embeddings_of_the_whole(tmp_path: Path) -> None:
    model = RandomModel(SMALL, "q8_0")
    whole = read_gguf(write_gguf(model, tmp_path / "whole.gguf"))
    hollow = read_gguf(write_gguf(model, tmp_path / "hollow.gguf", hollow=True))
    assert hollow.paths[0].stat().st_size == whole.paths[0].stat().st_size
    assert hollow.paths[0].stat().st_blocks < whole.paths[0].stat().st_blocks
    place = whole.tensors["token_embd.weight"]
    bounds = slice(place.offset, place.offset + place.n_bytes)
    assert hollow.paths[0].read_bytes()[bounds] == whole.paths[0].read_bytes()[bounds]


def test_shard_written_alone_goes_with_a_hollow_file(tmp_path: Path) -> None:
    model = RandomModel(SMALL, "q4_0")
    hollow = read_gguf(write_gguf(model, tmp_path / "hollow.gguf", hollow=True))
    assert write_rank(model, 0, (1, 1), tmp_path / "alone").header.spec.digest == model_digest(hollow)


@pytest.mark.parametrize("shape", [SMALL, BYTE_PAIRS], ids=lambda shape: shape.name)
def test_tokenizer_has_the_right_size_and_takes_any_text(tmp_path: Path, shape: Shape) -> None:
    path = write_gguf(RandomModel(shape, "q4_0"), tmp_path / "model.gguf", hollow=True)
    with Vocabulary(path) as vocabulary:
        assert vocabulary.n_tokens == shape.n_vocab
        text = "words, numbers 12 and ünïcode 語"
        tokens = vocabulary.tokenize(text, add_special=False, parse_special=False)
        assert b"".join(map(vocabulary.token_bytes, tokens)).decode().strip() == text


def test_shapes_have_their_published_sizes() -> None:
    counts = {
        name: sum(max(1, tensor.n_rows) * tensor.n_columns for tensor in tensors_of(shape, "f16"))
        for name, shape in SHAPES.items()
    }
    published = {
        "tinyllama-1.1b": 1_100_048_384,
        "llama-2-3b-like": 3_426_473_600,
        "llama-2-7b": 6_738_415_616,
        "llama-2-13b": 13_015_864_320,
        "llama-3.1-8b": 8_030_261_248 + 64,
        "llama-2-70b": 68_976_648_192,
        "llama-3.1-70b": 70_553_706_496 + 64,
        "yi-34b": 34_388_917_248,
        "llama-3.1-405b": 405_853_388_800 + 64,
    }
    assert counts == published


def test_rope_divisors_go_from_one_to_the_factor() -> None:
    divisors = rope_divisors(SHAPES["llama-3.1-8b"])
    assert divisors[0] == 1 and divisors[-1] == 8
    assert np.all(np.diff(divisors) >= 0) and 20 < sum(divisor == 1 for divisor in divisors) < 40


@pytest.mark.parametrize("text", ["3", "8/8", "-1/4", "a/b", "3/"])
def test_bad_ranks_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--rank"):
        read_rank(text)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="llama-2-70b"):
        find_shape("llama-9")
    with pytest.raises(UsageError, match="q4_0"):
        tensors_of(SMALL, "q9")


def test_spec_of_every_shape_is_accepted(tmp_path: Path) -> None:
    for name in ("tinyllama-1.1b", "llama-3.1-8b"):
        path = write_gguf(RandomModel(SHAPES[name], "q2_k"), tmp_path / "model.gguf", hollow=True)
        spec = read_spec(read_gguf(path), "test")
        assert len(blocks_of(spec)) == 2 * SHAPES[name].n_layers + 1
