"""The demo model's tokenizer: nothing is lost, pieces are GPT-2's, and what was saved is what is loaded."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from demo.tokenizer import ASSISTANT, BOS, END, SAVED, SPECIALS, USER, Tokenizer, pieces, train

TOKENIZER = Tokenizer.load(SAVED)


@given(st.text())
def test_decode_undoes_encode(text: str) -> None:
    assert "".join(pieces(text)) == text
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_pieces_are_those_of_gpt_2() -> None:
    assert list(pieces("He's  12x ... \n\nend ")) == [
        "He",
        "'s",
        " ",
        " 12",
        "x",
        " ...",
        " \n",
        "\n",
        "end",
        " ",
    ]


def test_size_and_specials() -> None:
    assert len(TOKENIZER.tokens) == len(TOKENIZER.ids) == 2048
    assert tuple(TOKENIZER.tokens[:4]) == SPECIALS
    assert not set(TOKENIZER.encode("<|end|><|user|>")) & {BOS, END, USER, ASSISTANT}


def test_a_conversation_marks_what_the_assistant_says() -> None:
    numbers, own = TOKENIZER.conversation([("user", "Hi!"), ("assistant", "Hello!")])
    hi, hello = TOKENIZER.encode("Hi!"), TOKENIZER.encode("Hello!")
    assert numbers == [BOS, USER, *hi, END, ASSISTANT, *hello, END]
    assert own == [False] * (len(hi) + 4) + [True] * (len(hello) + 1)


def test_training_is_deterministic_and_saved_faithfully(tmp_path: Path) -> None:
    texts = ["the cat and the hat", "the bat"]
    learned = train(texts, 4 + 256 + 8)
    assert learned.merges == train(texts, 4 + 256 + 8).merges
    assert learned.merges[0] == ("a", "t")
    learned.save(tmp_path / "merges.json")
    assert Tokenizer.load(tmp_path / "merges.json").tokens == learned.tokens
