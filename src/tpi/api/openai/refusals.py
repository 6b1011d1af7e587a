"""What may stand in requests, would change the answer, and cannot be done: by name, with the values that ask for
nothing. OpenAI's own, vLLM's and llama.cpp's."""

from collections.abc import Collection, Mapping
from typing import Any

_OFF: tuple[Any, ...] = (False, 0, "", [], {})

OF_BOTH: Mapping[str, Collection[Any]] = {
    "allowed_token_ids": _OFF,
    "bad_words": _OFF,
    "ignore_eos": _OFF,
    "include_stop_str_in_output": _OFF,
    "length_penalty": (1,),
    "logits_processors": _OFF,
    "min_tokens": _OFF,
    "mirostat": _OFF,
    "moderation": _OFF,
    "prompt_logprobs": _OFF,
    "samplers": _OFF,
    "stop_token_ids": _OFF,
    "truncate_prompt_tokens": (-1, *_OFF),
    "use_beam_search": _OFF,
}
OF_CHATS: Mapping[str, Collection[Any]] = {
    **OF_BOTH,
    "add_generation_prompt": (True,),
    "audio": _OFF,
    "best_of": (1,),
    "chat_template": _OFF,
    "documents": _OFF,
    "echo": _OFF,
    "modalities": (["text"], *_OFF),
    "verbosity": ("medium",),
    "web_search_options": _OFF,
}
