"""Every way of tokenizing that models of the supported families ask for: the tokens and bytes of llama.cpp, for texts
of all kinds, with special tokens and without, and no text that is too much for a stack."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import llama_cpp
import pytest

from tests.unit.engine.vocabularies import write_byte_pairs, write_gemma4, write_sentencepiece
from tpi.engine.vocabulary import Vocabulary

PRE_TOKENIZERS = {
    "default": "some Mamba 2, older files",
    "llama-bpe": "Llama 3, SmolLM 3, Falcon H1",
    "llama4": "Llama 4",
    "gpt-4o": "Phi 4 mini, gpt-oss",
    "dbrx": "OLMo 2, Phi 4, Granite 4",
    "olmo": "OLMoE",
    "qwen2": "Qwen 2 and 3, dots1",
    "qwen35": "Qwen 3.5 and 3 Next",
    "deepseek-llm": "DeepSeek LLM and V2 Lite",
    "deepseek-coder": "DeepSeek Coder",
    "deepseek-v3": "DeepSeek V3 and R1",
    "deepseek-r1-qwen": "DeepSeek R1 distilled",
    "kimi-k2": "Kimi K2",
    "tekken": "Mistral 3 and 4, Nemotron, Apertus",
    "glm4": "GLM 4 and 4.5",
    "chatglm-bpe": "GLM 4, older files",
    "starcoder": "Starcoder 2",
    "refact": "Granite 3",
    "stablelm2": "StableLM 2",
    "smollm": "SmolLM",
    "command-r": "Command R, Cohere 2",
    "exaone": "EXAONE 3",
    "exaone4": "EXAONE 4",
    "exaone-moe": "EXAONE with experts",
    "hunyuan": "Hunyuan with experts",
    "hunyuan-dense": "Hunyuan",
    "seed-coder": "Seed OSS",
    "lfm2": "LFM 2",
    "minimax-m2": "MiniMax M2",
    "bailingmoe": "Ling",
    "bailingmoe2": "Ling 2",
    "gpt-2": "Mamba, GPT 2",
    "mpt": "MPT, some Mamba",
    "falcon": "Falcon",
    "falcon-h1": "Falcon H1",
    "joyai-llm": "JoyAI, of DeepSeek's architecture",
    "youtu": "Youtu, of DeepSeek's architecture",
}
OTHERS: dict[str, Callable[[Path], Path]] = {
    "llama": write_sentencepiece,
    "llama, no space before a text": partial(write_sentencepiece, space_prefix=False),
    "llama, an end after a text": partial(write_sentencepiece, eos=True),
    "gemma4": write_gemma4,
}
# fmt: off
PARTS = (
    "a", "B", "the", " hello", "'s", "'LL", " ", "  ", "\n", "\n\n", "\t", "\r\n", "1", "12", "1234567", "½", "١٢",
    "é", "e\u0301", "ß", "中文", "日本語の", "한국어", "ไทย", "👩\u200d🔬", "🏽", "\ufeff", "\u00a0", "\u2028", "!?",
    "...", "_x", "(", "»", "\\", "\0", "\x7f", "\U0010ffff", "İ", "①", "<|im_start|>", "</s>", "<s>", "<eos>",
    "<0x41>", "▁", "Ġ", "camelCase",
)
# fmt: on


def texts(generator: random.Random) -> Iterator[str]:
    for _ in range(25):
        yield "".join(
            generator.choice(PARTS) if generator.random() < 0.8 else chr(generator.randrange(32, 0xD800))
            for _ in range(generator.randrange(30))
        )


@pytest.mark.parametrize("name", [*PRE_TOKENIZERS, *OTHERS])
def test_tokens_are_those_of_llama_cpp(tmp_path: Path, name: str) -> None:
    write = OTHERS.get(name, partial(write_byte_pairs, pre=name))
    path, generator = write(tmp_path / "model.gguf"), random.Random(name)
    reference = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    n_different = 0
    with Vocabulary(path) as vocabulary:
        for text in texts(generator):
            data = text.encode()
            expected = {}
            for add in (False, True):
                for parse in (False, True):
                    expected[add, parse] = reference.tokenize(data, add_bos=add, special=parse)
                    assert vocabulary.tokenize(text, add_special=add, parse_special=parse) == expected[add, parse]
            n_different += expected[True, True] != expected[False, False]
            tokens = expected[False, True]
            pieces = b"".join(vocabulary.token_bytes(token) for token in tokens)
            assert pieces.removeprefix(b" ") == reference.detokenize(tokens).removeprefix(b" ")
        assert n_different > 5
        for run in ("a" * 8000, "1 é" * 3000):
            whole = b"".join(
                map(vocabulary.token_bytes, vocabulary.tokenize(run, add_special=False, parse_special=False))
            )
            assert whole.decode().strip() == run.strip()
