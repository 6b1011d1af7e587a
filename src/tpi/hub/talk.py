"""What a folder says of talking to its model, beside the vocabulary: chat templates, and how tokens are best drawn.

Pure but for reading small files. Any thread.
"""

from pathlib import Path
from typing import Any

from tpi.errors import ModelFileError
from tpi.gguf.reader import MetadataValue
from tpi.hub.config import Config, read_json, read_text
from tpi.hub.folder import HubFolder

TOKENIZER, TOKENIZER_CONFIG, SENTENCEPIECE = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
_GENERATION, _TEMPLATE, _OLDER_TEMPLATE = "generation_config.json", "chat_template.jinja", "chat_template.json"
TALK_FILES = (TOKENIZER, SENTENCEPIECE, TOKENIZER_CONFIG, _GENERATION, _TEMPLATE, _OLDER_TEMPLATE)
"""What belongs to the model beside its config and its tensors."""
_KEY = "tokenizer.chat_template"
_SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"} | {
    "repetition_penalty": "penalty_repeat"
}
_MOST_TEMPLATES = 64


def talk_entries(folder: HubFolder) -> tuple[dict[str, MetadataValue], dict[str, int]]:
    """Entries by their GGUF names, and lengths of arrays that are not among them.

    Raises:
        ModelFileError: a file is damaged.
    """
    entries: dict[str, MetadataValue] = dict(_templates(folder.path))
    drawing = Config(folder.path / _GENERATION, _read_if_there(folder.path / _GENERATION))
    for theirs, ours in _SAMPLING.items():
        if theirs in drawing:
            whole = theirs == "top_k"
            entries[f"general.sampling.{ours}"] = drawing.integer(theirs) if whole else drawing.number(theirs)
    return entries, {"tokenizer.ggml.tokens": folder.config.integer("vocab_size")}


def _templates(path: Path) -> dict[str, str]:
    found = _read_if_there(path / TOKENIZER_CONFIG).get("chat_template")
    if found is None and (path / _TEMPLATE).is_file():
        found = read_text(path / _TEMPLATE)
    if found is None:
        found = _read_if_there(path / _OLDER_TEMPLATE).get("chat_template")
    if isinstance(found, str):
        return {_KEY: found}
    named = found if isinstance(found, list) else []
    if len(named) > _MOST_TEMPLATES or not all(_is_named(entry) for entry in named):
        raise ModelFileError(f"{path / TOKENIZER_CONFIG}: chat_template is no template; fetch it again")
    return {_KEY if entry["name"] == "default" else f"{_KEY}.{entry['name']}": entry["template"] for entry in named}


def _is_named(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and entry["name"].replace("_", "").isalnum()
        and isinstance(entry.get("template"), str)
    )


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
