"""What an engine needs of a model beside passes: its tokenizer and its chat template.

Opened before a cluster is formed, so that the memory that it takes is known when the rest is planned. Master only; owns
the vocabulary. One thread.
"""

from pathlib import Path
from typing import Self

from tpi.engine.chat import ChatTemplate
from tpi.engine.vocabulary import Vocabulary
from tpi.gguf.reader import Gguf
from tpi.hub.reader import read_model
from tpi.hub.vocabularyfile import vocabulary_file

TEMPLATE_KEY = "tokenizer.chat_template"
TOOL_TEMPLATE_KEY = f"{TEMPLATE_KEY}.tool_use"
"""Some files have another one for chats with tools."""


class Language:
    """Tokens, bytes and turns of chats. A context manager; ``close`` is idempotent."""

    def __init__(self, model: Path) -> None:
        """Raises:
        ModelFileError, UnsupportedModelError: ``model`` cannot be read, or has no tokenizer that can be used.
        """
        self.gguf: Gguf = read_model(model)
        with vocabulary_file(self.gguf) as file:
            self.vocabulary = Vocabulary(file)
        self.template = self._template(TEMPLATE_KEY)
        has_another = isinstance(self.gguf.metadata.get(TOOL_TEMPLATE_KEY), str)
        self.tool_template = self._template(TOOL_TEMPLATE_KEY) if has_another else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.vocabulary.close()

    def _template(self, key: str) -> ChatTemplate:
        source = self.gguf.metadata.get(key)
        bos, eos = (
            "" if token is None else self.vocabulary.token_text(token)
            for token in (self.vocabulary.bos_id, self.vocabulary.eos_id)
        )
        return ChatTemplate(source if isinstance(source, str) else None, bos, eos)
