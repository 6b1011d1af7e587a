"""Writes GGUF files that hold a tokenizer and no weights: sentencepiece style and byte pairs."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

LLAMA3_SPECIALS = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|im_start|>")
WORDS = ("the", "quick", "brown", "fox", "user", "hello", "world", "INST", "system", "It", "is", "no", "trap")


def write_sentencepiece(
    path: Path, specials: Sequence[str] = (), *, byte_tokens: bool = True, space_prefix: bool = True, eos: bool = False
) -> Path:
    """Llama-2 style: <unk> <s> </s>, byte tokens, all prefixes of some words with and without a space before. With
    ``eos`` a text ends with its token; Gemma's have no ``space_prefix``."""
    tokens = ["<unk>", "<s>", "</s>", *specials]
    types = [UNKNOWN, *[CONTROL] * (len(tokens) - 1)]
    scores = [0.0] * len(tokens)
    if byte_tokens:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        types += [BYTE] * 256
        scores += [0.0] * 256
    texts = ["▁", "▁▁", *(chr(code) for code in range(33, 127))]
    for word in WORDS:
        texts += [word[:n] for n in range(2, len(word) + 1)] + ["▁" + word[:n] for n in range(1, len(word) + 1)]
    texts = list(dict.fromkeys(texts))
    # Longer merges are better, as a trained vocabulary has it; ties broken by position.
    tokens += texts
    types += [NORMAL] * len(texts)
    scores += [len(text) - 100.0 - index / 1000 for index, text in enumerate(texts)]
    writer = _writer(path)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(eos)
    writer.add_add_space_prefix(space_prefix)
    return _written(writer, path)


def write_gemma4(path: Path) -> Path:
    """Byte pairs over characters instead of bytes: spaces are ``▁``, what has no token is bytes."""
    tokens, merges = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"], list[str]()
    types = [CONTROL] * len(tokens) + [BYTE] * 256
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    texts = ["▁", "\n", "\n\n", "▁▁", *(chr(code) for code in range(33, 127))]
    for word in WORDS:
        for start in (word[0], "▁" + word[0]):
            texts.append(start)
            merges += [f"▁ {word[0]}"] if len(start) == 2 else []
            for index in range(1, len(word)):
                merges.append(f"{start + word[1:index]} {word[index]}")
                texts.append(start + word[1 : index + 1])
    texts = list(dict.fromkeys(texts))
    writer = _writer(path)
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(tokens + texts)
    writer.add_token_types(types + [NORMAL] * len(texts))
    writer.add_token_merges(list(dict.fromkeys(merges)))
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    return _written(writer, path)


def write_byte_pairs(path: Path, specials: Sequence[str] = LLAMA3_SPECIALS, pre: str = "llama-bpe") -> Path:
    """Llama-3 style: 256 byte characters, merges that build some words, specials (begin first, end of turn second)."""
    tokens = list(byte_characters())
    merges = []
    for word in WORDS:
        for start in (word[0], "Ġ" + word[0]):
            if len(start) == 2 and start not in tokens:
                tokens.append(start)
                merges.append(f"Ġ {word[0]}")
            left = start
            for letter in word[1:]:
                if left + letter not in tokens:
                    tokens.append(left + letter)
                    merges.append(f"{left} {letter}")
                left += letter
    first_special = len(tokens)
    types = [NORMAL] * len(tokens) + [CONTROL] * len(specials)
    writer = _writer(path)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, *specials])
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    if specials:
        writer.add_bos_token_id(first_special)
        writer.add_eos_token_id(first_special + 1)
        writer.add_add_bos_token(True)
    return _written(writer, path)


def write_tokens(path: Path, tokens: Iterable[str] | None, model: str = "gpt2", n_scores: int | None = None) -> Path:
    """A file with exactly these tokens, for everything that is wrong with it."""
    writer = _writer(path)
    if tokens is not None:
        tokens = list(tokens)
        writer.add_tokenizer_model(model)
        writer.add_token_list(tokens)
        if model == "gpt2":
            writer.add_token_merges(["a b"])
        writer.add_token_scores([0.0] * (len(tokens) if n_scores is None else n_scores))
    return _written(writer, path)


def byte_characters() -> list[str]:
    """The character that stands for each byte in byte-pair vocabularies, in byte order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + hidden.index(byte)) for byte in range(256)]


def _writer(path: Path) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(128)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    return writer


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
