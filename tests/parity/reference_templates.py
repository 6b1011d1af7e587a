"""Chats as ``transformers`` renders them. Runs in an environment that has it (``templates`` starts it), not in ours.

Standard input has one JSON object: ``now`` in ISO 8601 and ``asked``, a list of ``template``, ``messages``, ``tools``,
``variables`` and ``continues``, whether the last message is gone on with. Standard output gets a list of texts; of what
is refused, an object with the ``error``.
"""

import json
import sys
from datetime import datetime
from typing import Any
from unittest import mock

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

given = json.load(sys.stdin)
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, "<unk>")),
    bos_token="<s>", eos_token="</s>",
)  # fmt: skip


def rendered(asked: dict[str, Any]) -> Any:
    try:
        return tokenizer.apply_chat_template(
            asked["messages"], tools=asked["tools"], chat_template=asked["template"], tokenize=False,
            add_generation_prompt=not asked["continues"], continue_final_message=asked["continues"],
            **asked["variables"],
        )  # fmt: skip
    except Exception as error:  # whatever a template comes to
        return {"error": f"{type(error).__name__}: {error}"}


clock = mock.Mock(now=lambda: datetime.fromisoformat(given["now"]))
with mock.patch.object(chat_template_utils, "datetime", clock):
    json.dump([rendered(asked) for asked in given["asked"]], sys.stdout)
