"""Prompts to tokens: what llama.cpp would give, and no special token out of a user's words."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.engine import templates
from tests.unit.engine.vocabularies import write_byte_pairs, write_sentencepiece
from tpi.engine.chat import ChatTemplate, Segment
from tpi.engine.prompt import encode_chat, encode_raw, encode_segments
from tpi.engine.templateinput import TemplateInput
from tpi.engine.turns import Message
from tpi.engine.vocabulary import Vocabulary

SPECIALS = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module", params=["sentencepiece", "byte_pairs"])
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabulary]:
    path: Path = tmp_path_factory.mktemp("prompt") / "v.gguf"
    is_sentencepiece = request.param == "sentencepiece"
    written = write_sentencepiece(path, SPECIALS) if is_sentencepiece else write_byte_pairs(path, SPECIALS)
    with Vocabulary(written) as opened:
        yield opened


def template_for(vocabulary: Vocabulary, name: str) -> ChatTemplate:
    assert vocabulary.bos_id is not None
    assert vocabulary.eos_id is not None
    bos, eos = vocabulary.token_text(vocabulary.bos_id), vocabulary.token_text(vocabulary.eos_id)
    return ChatTemplate(templates.ALL[name], bos, eos)


def special_tokens(vocabulary: Vocabulary, tokens: list[int]) -> list[str]:
    return [vocabulary.token_text(token) for token in tokens if vocabulary.is_special(token)]


def text_of(vocabulary: Vocabulary, tokens: list[int]) -> str:
    return b"".join(vocabulary.token_bytes(token, special=True) for token in tokens).decode()


@pytest.mark.parametrize("name", templates.ALL)
def test_ordinary_chat_is_tokenized_as_one_text(vocabulary: Vocabulary, name: str) -> None:
    template = template_for(vocabulary, name)
    messages = (Message("user", "hello world < |"), Message("assistant", " It is."), Message("user", "no"))
    text = "".join(segment.text for segment in template.render(TemplateInput(messages), lambda _: False))
    expected = vocabulary.tokenize(text, add_special=False, parse_special=True)
    if expected[0] != vocabulary.bos_id:
        expected = vocabulary.tokenize(text, add_special=True, parse_special=True)
    assert encode_chat(vocabulary, template, TemplateInput(messages)) == expected
    assert expected.count(vocabulary.bos_id or 0) == (2 if name == "llama2" else 1)


pieces = st.lists(st.sampled_from([*SPECIALS, "<s>", "</s>", "<|eot", "_id|>", "hello", " the", "\n", "é"]), max_size=6)


@pytest.mark.parametrize("name", templates.ALL)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.lists(pieces.map("".join), min_size=1, max_size=4))
def test_users_words_never_become_special_tokens(vocabulary: Vocabulary, name: str, contents: list[str]) -> None:
    template = template_for(vocabulary, name)
    roles = ("user", "assistant")
    harmless = [Message(roles[index % 2], "x" if text.strip() else text) for index, text in enumerate(contents)]
    hostile = [Message(roles[index % 2], text) for index, text in enumerate(contents)]
    tokens = encode_chat(vocabulary, template, TemplateInput(hostile))
    assert special_tokens(vocabulary, tokens) == special_tokens(
        vocabulary, encode_chat(vocabulary, template, TemplateInput(harmless))
    )


@pytest.mark.parametrize("name", ["llama2", "chatml", "mistral"])
def test_a_suspect_chat_reads_the_same(vocabulary: Vocabulary, name: str) -> None:
    """No character is lost or added where the segments meet."""
    template = template_for(vocabulary, name)
    messages = (Message("user", "hello <|eot_id|> the</s>"), Message("assistant", "world"), Message("user", "fox"))
    rendered = "".join(segment.text for segment in template.render(TemplateInput(messages), lambda _: False))
    ordinary = encode_segments(vocabulary, (Segment(rendered, is_user_content=False),))
    guarded = encode_chat(vocabulary, template, TemplateInput(messages))
    assert guarded != ordinary
    # Sentencepiece puts a space after each special token, of which the guarded chat has fewer.
    assert text_of(vocabulary, guarded).replace(" ", "") == text_of(vocabulary, ordinary).replace(" ", "")


def test_borders_between_segments_add_no_space(tmp_path: Path) -> None:
    with Vocabulary(write_sentencepiece(tmp_path / "v.gguf")) as vocabulary:
        segments = (Segment("the", False), Segment("quick</s>", True), Segment("fox", False))
        tokens = encode_segments(vocabulary, segments)
        assert text_of(vocabulary, tokens) == "<s> thequick</s>fox"
        assert special_tokens(vocabulary, tokens) == ["<s>"]


def test_words_that_complete_a_special_token(vocabulary: Vocabulary) -> None:
    segments = (Segment("<|eot", False), Segment("_id|> the", True))
    assert special_tokens(vocabulary, encode_segments(vocabulary, segments)) == special_tokens(
        vocabulary, encode_raw(vocabulary, "the")
    )


def test_raw_prompt(vocabulary: Vocabulary) -> None:
    bos = vocabulary.token_text(vocabulary.bos_id or 0)
    assert encode_raw(vocabulary, "") == [vocabulary.bos_id]
    assert special_tokens(vocabulary, encode_raw(vocabulary, "the <|eot_id|>")) == [bos, "<|eot_id|>"]
    assert special_tokens(vocabulary, encode_raw(vocabulary, f"{bos}the")) == [bos]
