"""Where repetitions end, as tokens: found for all of a vocabulary at once, as one by one."""

from pathlib import Path

from tests.unit.engine.vocabularies import write_sentencepiece
from tpi.engine.dry import BreakerFinder
from tpi.engine.vocabulary import Vocabulary


def one_by_one(vocabulary: Vocabulary, texts: tuple[str, ...]) -> dict[int, tuple[tuple[int, ...], ...]]:
    found: dict[int, set[tuple[int, ...]]] = {}
    for token in range(vocabulary.n_tokens):
        word = vocabulary.token_bytes(token, special=True)
        for text in map(str.encode, texts):
            if text in word:
                found.setdefault(token, set()).add(())
                continue
            for n in range(1, len(text)):
                if word.endswith(text[:n]):
                    rest = text[n:].decode("utf-8", "replace")
                    tokens = vocabulary.tokenize(rest, add_special=False, parse_special=False)
                    found.setdefault(token, set()).add(tuple(tokens))
    return {token: tuple(sorted(tails)) for token, tails in found.items()}


def test_breakers_of_all_tokens(tmp_path: Path) -> None:
    with Vocabulary(write_sentencepiece(tmp_path / "model.gguf", ["<|im_start|>"])) as vocabulary:
        finder = BreakerFinder(vocabulary)
        for texts in (("o", "ow fo"), ("the", "xé", "|>", "  "), ("<|im_start|>",), ("aa", "\n"), ()):
            found = finder.find(texts)
            assert found == one_by_one(vocabulary, texts) and finder.find(texts) == found
        assert sum(map(len, finder.find(("o", "ow fo")).values())) > 20
