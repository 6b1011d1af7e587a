"""Chat templates: what they give, which part users wrote, and what happens when they fail."""

from collections.abc import Sequence
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.engine import templates
from tpi.engine.chat import ChatTemplate, Segment
from tpi.engine.templateinput import TemplateInput
from tpi.engine.turns import Message
from tpi.errors import ModelFileError, UsageError

CHAT = (Message("user", "Hi"), Message("assistant", "Hello."), Message("user", " Why? "))
WITH_SYSTEM = (Message("system", "Be kind."), *CHAT)


def template(source: str | None) -> ChatTemplate:
    return ChatTemplate(source, "<s>", "</s>", clock=lambda: datetime(2026, 7, 3))


def text_of(source: str | None, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    segments = template(source).render(
        TemplateInput(messages, add_generation_prompt=add_generation_prompt), lambda _: False
    )
    return "".join(segment.text for segment in segments)


def test_llama2() -> None:
    assert text_of(templates.LLAMA2, WITH_SYSTEM) == (
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Why? [/INST]"
    )


def test_llama3() -> None:
    assert text_of(templates.LLAMA3, WITH_SYSTEM) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 03 Jul 2026\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize("source", [templates.CHATML, templates.THINKING])
def test_chatml(source: str) -> None:
    start = (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\n Why? <|im_end|>\n"
    )
    assert text_of(source, CHAT, add_generation_prompt=False) == start
    assert text_of(source, CHAT) == start + "<|im_start|>assistant\n"


def test_mistral() -> None:
    assert text_of(templates.MISTRAL, CHAT) == "<s>[INST] Hi[/INST] Hello.</s>[INST]  Why? [/INST]"


def test_zephyr() -> None:
    messages = (*CHAT[:2], Message("tool", "left out"), CHAT[2])
    assert (
        text_of(templates.ZEPHYR, messages)
        == "<|user|>\nHi</s>\n<|assistant|>\nHello.</s>\n<|user|>\n Why? </s>\n<|assistant|>\n"
    )


@pytest.mark.parametrize("source", [None, " \n"])
def test_file_without_template(source: str | None) -> None:
    plain = template(source)
    assert plain.stop == ("\nUser:",)
    assert text_of(source, WITH_SYSTEM) == "Be kind.\n\nUser: Hi\nAssistant: Hello.\nUser: Why?\nAssistant:"
    assert template(templates.CHATML).stop == ()


contents = st.text("ab<|>/ \n", max_size=12)


@pytest.mark.parametrize("name", templates.ALL)
@settings(deadline=None)  # of a busy machine
@given(st.lists(contents, min_size=1, max_size=5))
def test_segments_mark_what_users_wrote(name: str, texts: list[str]) -> None:
    roles = ("user", "assistant")
    messages = [Message(roles[index % 2], text) for index, text in enumerate(texts)]
    segments = template(templates.ALL[name]).render(TemplateInput(messages), lambda _: True)
    written = [segment.text.strip() for segment in segments if segment.is_user_content]
    assert written == [text.strip() for text in texts if text.strip()]


def test_a_template_that_changes_contents() -> None:
    """Answers lose their thoughts; that is found out, and only a suspect content is refused."""
    chat = (Message("user", "Hi"), Message("assistant", "hm</think>\nHello."), Message("user", "<x>"))
    expected = (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\n<x><|im_end|>\n<|im_start|>assistant\n"
    )
    thinking = template(templates.THINKING)
    assert thinking.render(TemplateInput(chat), lambda _: False) == (Segment(expected, is_user_content=False),)
    segments = thinking.render(TemplateInput(chat), lambda content: content == "<x>")
    assert "".join(segment.text for segment in segments) == expected
    assert [segment.text for segment in segments if segment.is_user_content] == ["<x>"]
    with pytest.raises(UsageError, match="message 2 holds the text of a special token"):
        thinking.render(TemplateInput(chat), lambda content: "</think>" in content)


def test_contents_in_another_order_or_changed() -> None:
    swapped = template("{{ messages[1].content }}|{{ messages[0].content }}|{{ messages[0].content }}")
    segments = swapped.render(TemplateInput((Message("user", "a"), Message("user", "b"))), lambda _: True)
    assert [(segment.text, segment.is_user_content) for segment in segments if segment.text != "|"] == [
        ("b", True),
        ("a", True),
        ("a", True),
    ]
    with pytest.raises(UsageError, match="special token"):
        template("{{ messages[0].content | upper }}").render(TemplateInput((Message("user", "a"),)), lambda _: True)


def test_a_template_that_refuses() -> None:
    with pytest.raises(UsageError, match="refuses the messages: roles must take turns; a raw prompt needs"):
        text_of(templates.LLAMA2, (Message("user", "a"), Message("user", "b")))


@pytest.mark.parametrize("role", ["", "user|>", "a b", "x" * 65])
def test_roles_are_words(role: str) -> None:
    with pytest.raises(UsageError, match="role"):
        Message(role, "")


@pytest.mark.parametrize(
    "source",
    ["{% for %}", "{{ x | nobody }}", "{{" + "(" * 5000 + ")" * 5000 + "}}", "{{ '" + "x" * 300_000 + "' }}"],
    ids=["syntax", "filter", "nested", "long"],
)
def test_damaged_templates(source: str) -> None:
    with pytest.raises(ModelFileError, match="a raw prompt needs no template") as caught:
        template(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
