"""Chat templates as ``transformers`` renders them and as we do, by twenty conversations each.

``python -m tests.parity.templates FOLDER`` does that for a folder of ``.jinja`` files and prints a table, with ``--show
NAME`` each difference of that file, too; ``--note`` writes down what ``transformers`` makes of our own templates, which
``test_templates`` compares with. The first run makes an environment for it, of some 300 MB, in ``build/``.
"""

import argparse
import copy
import hashlib
import json
import subprocess
import sys
import venv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.parity.conversations import CONVERSATIONS
from tests.unit.api.scripted import DEMO
from tests.unit.engine import templates
from tests.unit.engine.dialects.families import FAMILIES
from tpi.api.openai.chats import read_chat
from tpi.api.openai.schema import ChatRequest
from tpi.engine.chat import ChatTemplate
from tpi.engine.chatprompt import ChatPrompts
from tpi.engine.vocabulary import Vocabulary
from tpi.errors import UsageError

FOLDER = Path(__file__).parent / "written"
NOTES = FOLDER / "rendered.json"
NOW = datetime(2026, 7, 3, 9, 5)
REQUIREMENTS = ("transformers==5.24.0", "jinja2==3.1.6")
ENVIRONMENT = Path(__file__).parents[2] / "build" / "transformers"

SAME, REFUSED, IN_WORDS, ENDED, DIFFERENT = "same", "both refuse", "tools in words", "thinking ended", "different"
KINDS = (SAME, REFUSED, IN_WORDS, ENDED, DIFFERENT)
"""Of a pair of texts. A template that knows no tools drops them, and we tell of them; thinking that is not wanted, and
that a template cannot turn off, we end."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What is kept of a text of theirs: enough to know another one by."""

    n_chars: int
    digest: str

    @classmethod
    def of(cls, text: str) -> "Rendered":
        return cls(len(text), hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16])


class Ours:
    """One template, as a client's request meets it. ``vocabulary`` tells what is suspect in users' words."""

    def __init__(self, source: str, vocabulary: Vocabulary) -> None:
        self.template = ChatTemplate(source, "<s>", "</s>", clock=lambda: NOW)
        self._prompts = ChatPrompts(vocabulary, self.template)

    def render(self, body: Mapping[str, Any]) -> str | None:
        """None: it is refused."""
        texts = list[str]()
        try:
            self._prompts.chat(read_chat(ChatRequest(**copy.deepcopy(dict(body)))), check_text=texts.append)
        except UsageError:
            return None
        return texts[0]

    def kind(self, name: str, ours: str | None, theirs: Rendered | None) -> str:
        body = CONVERSATIONS[name]
        if not self.template.traits.knows_tools and (
            "tools" in body or any(message.get("tool_calls") for message in body["messages"])
        ):
            return IN_WORDS
        if ours is None or theirs is None:
            return REFUSED if ours is None and theirs is None else DIFFERENT
        if Rendered.of(ours) == theirs:
            return SAME
        thinking, rest = self._prompts.dialect.thinking, ours[theirs.n_chars :]
        is_ended = thinking is not None and rest.strip().removeprefix(thinking.opener).strip() == thinking.closer
        is_off = body.get("chat_template_kwargs") == {"enable_thinking": False}
        begins_alike = Rendered.of(ours[: theirs.n_chars]) == theirs
        return ENDED if is_off and is_ended and begins_alike else DIFFERENT

    def asked(self, source: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The same for ``transformers``: there callers know whether a template wants arguments as values, and what
        calls are named."""
        messages = copy.deepcopy(body["messages"])
        if self._prompts.dialect.named_ids:
            _name_calls(messages)
        if not self.template.traits.wants_arguments_as_text:
            for call in (call for message in messages for call in message.get("tool_calls", ())):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        variables = dict(body.get("chat_template_kwargs", {}))
        if "enable_thinking" in variables:
            variables["thinking"] = variables["enable_thinking"]
            if "thinking_budget" in source and not variables["thinking"]:
                variables["thinking_budget"] = 0
        continues = bool(body.get("continue_final_message"))
        return {"template": source, "messages": messages, "tools": body.get("tools"), "variables": variables,
                "continues": continues}  # fmt: skip


def _name_calls(messages: list[dict[str, Any]]) -> None:
    names = dict[str, str]()
    for message in messages:
        for call in message.get("tool_calls", ()):
            given = call["id"]
            names[given] = call["id"] = f"functions.{call['function']['name']}:{len(names)}"
        if "tool_call_id" in message:
            message["tool_call_id"] = names[message["tool_call_id"]]


def written_templates() -> dict[str, str]:
    """Our own."""
    files = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.jinja"))}
    small = {f"small {name}": family.template for name, family in FAMILIES.items()}
    return {**files, **{f"plain {name}": source for name, source in templates.ALL.items()}, **small}


def reference(asked: list[dict[str, Any]]) -> list[Any]:
    """Texts, or objects with an ``error``, of ``transformers``."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    script, given = Path(__file__).with_name("reference_templates.py"), {"now": NOW.isoformat(), "asked": asked}
    result = subprocess.run(
        [python, "-P", script], input=json.dumps(given), stdout=subprocess.PIPE, text=True, check=True
    )
    told: list[Any] = json.loads(result.stdout)
    return told


def compare(sources: Mapping[str, str], vocabulary: Vocabulary) -> Iterator[tuple[str, str, str, str | None, Any]]:
    """Template, conversation, kind, our text, theirs."""
    made = {name: Ours(source, vocabulary) for name, source in sources.items()}
    pairs = [(name, chat) for name in sources for chat in CONVERSATIONS]
    told = reference([made[name].asked(sources[name], CONVERSATIONS[chat]) for name, chat in pairs])
    for (name, chat), theirs in zip(pairs, told, strict=True):
        ours = made[name].render(CONVERSATIONS[chat])
        kind = made[name].kind(chat, ours, Rendered.of(theirs) if isinstance(theirs, str) else None)
        yield name, chat, kind, ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.parity.templates")
    parser.add_argument("folder", type=Path, nargs="?", help="with .jinja files; our own ones without")
    parser.add_argument("--show", help="a file's name, or its beginning")
    parser.add_argument("--note", action="store_true", help="write down what transformers makes of our own")
    asked = parser.parse_args()
    files = {path.stem: path.read_text() for path in sorted(asked.folder.glob("*.jinja"))} if asked.folder else None
    counts, notes = dict[str, Counter[str]](), dict[str, dict[str, Any]]()
    with Vocabulary(DEMO) as vocabulary:
        for name, chat, kind, ours, theirs in compare(files or written_templates(), vocabulary):
            counts.setdefault(name, Counter())[kind] += 1
            is_text = isinstance(theirs, str)
            rendered = Rendered.of(theirs) if is_text else None
            notes.setdefault(name, {})[chat] = [rendered.n_chars, rendered.digest] if rendered else None
            if asked.show and kind == DIFFERENT and name.startswith(asked.show):
                print(f"{name}: {chat}\n  ours   {ours!r}\n  theirs {theirs!r}")
    print(f"{'template':55}" + "".join(f"{kind:>16}" for kind in KINDS))
    for name, count in counts.items():
        print(f"{name[:54]:55}" + "".join(f"{count[kind]:16}" for kind in KINDS))
    print(f"{'all':55}" + "".join(f"{sum(count[kind] for count in counts.values()):16}" for kind in KINDS))
    if asked.note and files is None:
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(note)}" for name, note in notes.items())
        NOTES.write_text(f"{{\n{lines}\n}}\n")
    sys.exit(any(count[DIFFERENT] for count in counts.values()))


if __name__ == "__main__":
    main()
