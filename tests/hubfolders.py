"""Writes small folders as model hubs have them: safetensors with values that follow from names, config, tokenizer.

Needs numpy alone, so that programs which have no more of this project can call it, too. Called by tests only.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Sources = Mapping[str, tuple[str, Sequence[int]]]
"""Types and shapes of tensors, by name."""

LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_TWO_BYTES = {"BF16": "<u2", "F16": "<f2"}


def random_values(name: str, dtype: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    """Always the same for the same name, type and shape, as they lie in a file; BF16 in uint16, F8 in uint8."""
    random, size = np.random.default_rng(zlib.crc32(name.encode())), math.prod(shape)
    if dtype.startswith(("F8_E4M3", "F8_E5M2")):
        return (random.integers(0, 2, size) << 7 | random.integers(0, 120, size)).astype(np.uint8).reshape(shape)
    if dtype == "U8":
        bounds = (118, 124) if name.endswith("_scales") else (0, 256)
        return random.integers(*bounds, size).astype(np.uint8).reshape(shape)
    values = random.standard_normal(size, np.float32)
    if "scale" in name:
        values = np.float32(0.001) + np.abs(values) * np.float32(0.001)
    elif "norm" in name:
        values = 1 + values * np.float32(0.1)
    elif len(shape) > 1 and "embed" not in name:
        values *= np.float32(shape[-1] ** -0.5)
    else:
        values *= np.float32(0.5)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).reshape(shape)
    return values.astype(_TWO_BYTES.get(dtype, "<f4")).reshape(shape)


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, npt.NDArray[Any]]]) -> None:
    """Writes the tensors in their order, each with the name of its type."""
    header, place = dict[str, Any](), 0
    for name, (dtype, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [place, place + values.nbytes]}
        place += values.nbytes
    write_raw(path, json.dumps(header).encode(), b"".join(values.tobytes() for _, values in tensors.values()))


def write_raw(path: Path, header: bytes, data: bytes) -> None:
    """A file with this header, whatever it is."""
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def write_folder(path: Path, config: Mapping[str, Any], sources: Sources, n_files: int = 1) -> Path:
    """Writes config, tokenizer, and tensors with random values to the folder ``path``, made if it is missing."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    made = {name: (dtype, random_values(name, dtype, shape)) for name, (dtype, shape) in sources.items()}
    names, places = list(made), dict[str, str]()
    for number in range(n_files):
        own = names[number * len(names) // n_files : (number + 1) * len(names) // n_files]
        file = "model.safetensors" if n_files == 1 else f"model-{number + 1:05}-of-{n_files:05}.safetensors"
        write_safetensors(path / file, {name: made[name] for name in own})
        places |= dict.fromkeys(own, file)
    if n_files > 1:
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    text = config.get("text_config", config)
    write_tokenizer(path, text["vocab_size"])
    return path


def write_tokenizer(path: Path, n_tokens: int) -> None:
    """Bytes, some pairs of them, and two tokens that begin and end texts, as Llama 3 has them."""
    vocabulary = {text: number for number, text in enumerate(byte_texts())}
    merges = [["t", "h"], ["th", "e"], ["Ġ", "the"], ["i", "n"], ["Ġ", "a"], ["o", "u"], ["e", "r"]]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    added = [{"id": n_tokens - 2, "content": "<|begin|>"}, {"id": n_tokens - 1, "content": "<|eot_id|>"}]
    flags = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    split = {"type": "Split", "pattern": {"Regex": LLAMA_3_SPLIT}, "behavior": "Isolated", "invert": False}
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{**token, **flags} for token in added],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytewise]},
        "decoder": bytewise,
        "model": {"type": "BPE", "ignore_merges": True, "vocab": vocabulary, "merges": merges},
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"bos_token": "<|begin|>", "eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    drawing = {"temperature": 0.6, "top_k": 20, "eos_token_id": n_tokens - 1}
    (path / "generation_config.json").write_text(json.dumps(drawing))


def byte_texts() -> list[str]:
    """How byte-level tokenizers write the 256 bytes: printable ones as they are, others from U+0100 on."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) if byte in kept else chr(256 + moved.index(byte)) for byte in range(256)]
