"""Our own templates, in the styles of many families: by twenty conversations each the text that ``transformers``
renders, which ``python -m tests.parity.templates --note`` has written down."""

import json
from collections.abc import Iterator

import pytest

from tests.parity.conversations import CONVERSATIONS
from tests.parity.templates import DIFFERENT, NOTES, SAME, Ours, Rendered, written_templates
from tests.unit.api.scripted import DEMO
from tpi.engine.vocabulary import Vocabulary

TEMPLATES = written_templates()


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    with Vocabulary(DEMO) as opened:
        yield opened


@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_those_of_transformers(vocabulary: Vocabulary, name: str) -> None:
    notes = json.loads(NOTES.read_text())[name]
    assert list(notes) == list(CONVERSATIONS)
    ours = Ours(TEMPLATES[name], vocabulary)
    kinds = {
        chat: ours.kind(chat, ours.render(body), Rendered(*notes[chat]) if notes[chat] else None)
        for chat, body in CONVERSATIONS.items()
    }
    assert not [chat for chat, kind in kinds.items() if kind == DIFFERENT]
    assert list(kinds.values()).count(SAME) >= 8
