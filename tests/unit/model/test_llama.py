"""Reading a llama model's description: what is missing, impossible or not supported is one line that says so."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.models import write_random_model
from tests.unit.model.specs import make_spec
from tpi.errors import ModelFileError, UnsupportedModelError
from tpi.gguf.reader import Gguf, GgufTensor, MetadataValue, read_gguf
from tpi.gguf.types import F16, F32
from tpi.model.architectures import blocks_of, check_spec, read_spec
from tpi.model.attention import Attention
from tpi.model.metadata import printable
from tpi.model.spec import ModelSpec
from tpi.model.states import KvState
from tpi.model.steps import Rope

PATH = Path("made")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Gguf:
    return read_gguf(write_random_model(tmp_path_factory.mktemp("model") / "model.gguf", rope_factors=True))


def _with(gguf: Gguf, **changes: MetadataValue) -> Gguf:
    """Keys of the architecture, dots written as double underscores."""
    return replace(gguf, metadata=gguf.metadata | {f"llama.{k.replace('__', '.')}": v for k, v in changes.items()})


def _without(gguf: Gguf, key: str) -> Gguf:
    return replace(gguf, metadata={name: value for name, value in gguf.metadata.items() if name != f"llama.{key}"})


def test_a_model_is_described(gguf: Gguf) -> None:
    spec = read_spec(gguf, "digest")
    assert (spec.n_layers, spec.n_embd, spec.n_vocab, spec.n_context_train) == (2, 256, 320, 512)
    assert (spec.architecture, spec.digest) == ("llama", "digest")
    blocks = blocks_of(spec)
    attention, ffn, _, _, head = blocks
    assert [block.title for block in blocks] == ["attention 0", "ffn 0", "attention 1", "ffn 1", "head"]
    assert [block.index for block in blocks] == list(range(5))
    assert [block.measures[0].total for block in blocks] == [4, 512, 4, 512, 320]
    assert attention.state == KvState(64, 2, 64) and ffn.state is None
    assert [block.is_head for block in blocks] == [False] * 4 + [True]
    rope = rope_of(gguf)
    assert rope.frequency_scale == 1.0 and rope.original_context == 512
    assert attention.graph == blocks[2].graph and attention.graph != head.graph


def rope_of(gguf: Gguf) -> Rope:
    graph = blocks_of(read_spec(gguf, ""))[0].graph
    assert isinstance(graph, Attention) and graph.rope is not None
    return graph.rope


def test_a_tied_head_is_the_embedding_table(tmp_path: Path) -> None:
    spec = read_spec(read_gguf(write_random_model(tmp_path / "tied.gguf", tied=True)), "")
    assert blocks_of(spec)[-1].slots[-1].tensor == spec.embedding


def test_a_head_count_per_layer_is_fine_when_layers_agree(gguf: Gguf) -> None:
    state = blocks_of(read_spec(_with(gguf, attention__head_count_kv=(2, 2)), ""))[0].state
    assert state == KvState(64, 2, 64)
    with pytest.raises(ModelFileError, match=r"attention\.head_count_kv = different values per layer"):
        read_spec(_with(gguf, attention__head_count_kv=(2, 4)), "")
    with pytest.raises(ModelFileError, match=r"attention\.head_count_kv"):
        read_spec(_with(gguf, attention__head_count_kv=()), "")


@pytest.mark.parametrize(
    "key",
    [
        "block_count",
        "embedding_length",
        "attention.head_count",
        "feed_forward_length",
        "context_length",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_missing_entries_are_named(gguf: Gguf, key: str) -> None:
    with pytest.raises(ModelFileError, match=rf"has no metadata entry llama\.{key}"):
        read_spec(_without(gguf, key), "")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", True),
        ("block_count", -1),
        ("block_count", 1 << 31),
        ("block_count", 2.0),
        ("block_count", "2"),
        ("embedding_length", 0),
        ("embedding_length", 128),
        ("attention__head_count", 0),
        ("attention__head_count", 3),
        ("attention__head_count_kv", 0),
        ("attention__head_count_kv", 3),
        ("attention__head_count_kv", 4),
        ("attention__key_length", 0),
        ("attention__key_length", 63),
        ("attention__value_length", 32),
        ("feed_forward_length", 0),
        ("feed_forward_length", 1024),
        ("context_length", 0),
        ("attention__layer_norm_rms_epsilon", -1e-5),
        ("attention__layer_norm_rms_epsilon", float("nan")),
        ("attention__layer_norm_rms_epsilon", True),
        ("rope__dimension_count", 32),
        ("rope__freq_base", 0.0),
        ("rope__freq_base", -1.0),
        ("rope__freq_base", float("inf")),
        ("rope__scaling__factor", -2.0),
        ("rope__scaling__factor", 1e-300),
        ("rope__scaling__original_context_length", -1),
        ("rope__scaling__attn_factor", float("nan")),
    ],
)
def test_impossible_values_are_named(gguf: Gguf, key: str, value: MetadataValue) -> None:
    with pytest.raises(ModelFileError) as caught:
        read_spec(_with(gguf, **{key: value}), "")
    message = str(caught.value)
    assert "does not fit a llama model" in message and "\n" not in message
    assert message.startswith(str(gguf.paths[0]))


@pytest.mark.parametrize("factor", [-1.0, 4.5399929762484854e-05, 1e-310])
def test_yarn_factors_that_have_no_logarithm(gguf: Gguf, factor: float) -> None:
    changes: dict[str, MetadataValue] = {"rope__scaling__type": "yarn", "rope__scaling__factor": factor}
    with pytest.raises(ModelFileError, match=r"rope\.scaling\.factor"):
        read_spec(_with(gguf, **changes), "")


def test_the_value_that_is_wrong_is_the_one_that_is_shown(gguf: Gguf) -> None:
    with pytest.raises(ModelFileError, match=r"attention\.value_length = 32 "):
        read_spec(_with(gguf, attention__value_length=32), "")


def test_rope_scaling(gguf: Gguf) -> None:
    linear = rope_of(_with(gguf, rope__scaling__type="linear", rope__scaling__factor=4.0))
    assert linear.frequency_scale == 0.25 and linear.extrapolation == 0
    none = rope_of(_with(gguf, rope__scaling__type="none", rope__scaling__factor=4.0))
    assert none.frequency_scale == 1.0
    yarn = rope_of(_with(gguf, rope__scaling__type="yarn", rope__scaling__factor=4.0))
    assert yarn.extrapolation == 1.0 and yarn.attention_factor == pytest.approx(1.0)
    with pytest.raises(UnsupportedModelError, match="rope scaling 'dynamic' is not supported"):
        read_spec(_with(gguf, rope__scaling__type="dynamic"), "")


def test_tokens_that_see_all_others(gguf: Gguf) -> None:
    with pytest.raises(UnsupportedModelError, match=r"attention\.causal"):
        read_spec(_with(gguf, attention__causal=False), "")


def test_experts_that_are_not_there(gguf: Gguf) -> None:
    with pytest.raises(ModelFileError, match=r"has no tensor blk\.0\.ffn_gate_exps\.weight"):
        read_spec(_with(gguf, expert_count=8, expert_used_count=2), "")


@pytest.mark.parametrize("name", ["camel", "", 7])
def test_other_architectures(gguf: Gguf, name: MetadataValue) -> None:
    with pytest.raises(UnsupportedModelError, match=r"is not supported; supported: .*llama"):
        read_spec(replace(gguf, metadata=gguf.metadata | {"general.architecture": name}), "")


@pytest.mark.parametrize("name", ["token_embd", "output_norm", "blk.1.attn_q", "blk.0.ffn_down", "blk.1.ffn_norm"])
def test_missing_tensors_are_named(gguf: Gguf, name: str) -> None:
    tensors = {key: tensor for key, tensor in gguf.tensors.items() if key != f"{name}.weight"}
    with pytest.raises(ModelFileError, match=rf"has no tensor {name}\.weight"):
        read_spec(replace(gguf, tensors=tensors), "")


@pytest.mark.parametrize("name", ["output", "output_norm", "rope_freqs", "blk.1.attn_output", "blk.0.ffn_gate"])
@pytest.mark.parametrize("change", [{"n_rows": 7}, {"n_columns": 0}, {"n_columns": 1 << 40}])
def test_shapes_are_checked(gguf: Gguf, name: str, change: dict[str, Any]) -> None:
    wrong = replace(gguf.tensors[f"{name}.weight"], **change)
    with pytest.raises(ModelFileError, match="does not fit"):
        read_spec(replace(gguf, tensors=gguf.tensors | {wrong.name: wrong}), "")


def test_tensors_that_nothing_uses(gguf: Gguf) -> None:
    norm = GgufTensor("blk.0.attn_q_norm.weight", F32, 256, 1, 0, 0)
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.attn_q_norm\.weight; not supported"):
        read_spec(replace(gguf, tensors=gguf.tensors | {norm.name: norm}), "")


def test_norms_are_f32(gguf: Gguf) -> None:
    norm = replace(gguf.tensors["blk.0.attn_norm.weight"], type=F16)
    with pytest.raises(ModelFileError, match=r"type of blk\.0\.attn_norm\.weight = F16"):
        read_spec(replace(gguf, tensors=gguf.tensors | {norm.name: norm}), "")


def test_a_name_cannot_move_the_cursor(gguf: Gguf) -> None:
    changed = replace(gguf, metadata=gguf.metadata | {"general.name": "a\x1b[2Jb\n" + "c" * 1000})
    name = read_spec(changed, "").name
    assert name.isprintable() and name.startswith("a [2Jb c") and len(name) == 200


def test_printable_keeps_what_people_read() -> None:
    assert printable("Llama 3.2, café 模型") == "Llama 3.2, café 模型"


@pytest.mark.parametrize(
    "change",
    [
        {"block_count": 0},
        {"block_count": 3},
        {"attention.key_length": 0},
        {"attention.key_length": 65},
        {"attention.layer_norm_rms_epsilon": -1.0},
        {"attention.layer_norm_rms_epsilon": 0.0},
        {"attention.head_count_kv": 0},
        {"feed_forward_length": 0},
        {"context_length": 0},
        {"rope.freq_base": -1.0},
        {"rope.scaling.factor": 1e9},
        {"rope.scaling.original_context_length": 1 << 40},
    ],
)
def test_specs_from_elsewhere_are_checked_too(change: dict[str, float]) -> None:
    with pytest.raises(ModelFileError, match=r"made: .* does not fit a llama model"):
        check_spec(make_spec(entries=change), PATH)


@pytest.mark.parametrize("change", [{"n_layers": 1}, {"n_embd": 128}, {"n_vocab": 3}, {"n_context_train": 1}])
def test_dimensions_from_elsewhere_are_those_of_the_entries(change: dict[str, int]) -> None:
    with pytest.raises(ModelFileError, match="does not fit a llama model"):
        check_spec(msgspec.structs.replace(make_spec(), **change), PATH)


@pytest.mark.parametrize("n_vocab", [0, 1 << 31, 1 << 40])
def test_vocabularies_that_cannot_be(n_vocab: int) -> None:
    spec = make_spec(n_vocab=n_vocab, n_embd=64)
    with pytest.raises(ModelFileError):
        check_spec(spec, PATH)


def test_more_bytes_than_any_model_has() -> None:
    with pytest.raises(ModelFileError, match=r"a model of .* bytes called made cannot be"):
        check_spec(make_spec(n_ff=(1 << 31) - 32, n_embd=4096), PATH)


def test_names_from_elsewhere_cannot_move_the_cursor() -> None:
    with pytest.raises(ModelFileError, match="cannot be") as caught:
        check_spec(msgspec.structs.replace(make_spec(), name="a\x1b[2Jb"), PATH)
    assert str(caught.value).isprintable()


def test_an_architecture_from_elsewhere_is_checked_too() -> None:
    with pytest.raises(UnsupportedModelError, match="architecture 'camel' is not supported"):
        check_spec(msgspec.structs.replace(make_spec(), architecture="camel"), PATH)


def test_what_others_quantise_to_is_checked() -> None:
    check_spec(msgspec.structs.replace(make_spec(), quant="Q4_K"), PATH)
    with pytest.raises(ModelFileError, match="cannot be quantised to Q9"):
        check_spec(msgspec.structs.replace(make_spec(), quant="Q9\x1b"), PATH)


def test_a_spec_travels() -> None:
    spec = make_spec(entries={"some.list": (1, 2.5, True)})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=ModelSpec) == spec
