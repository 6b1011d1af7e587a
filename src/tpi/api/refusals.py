"""What may stand in requests, would change the answer, and cannot be done: by name, with the values that ask for
nothing. OpenAI's own, vLLM's and llama.cpp's; for requests of all APIs."""

from collections.abc import Collection, Mapping
from typing import Any

OFF: tuple[Any, ...] = (False, 0, "", [], {})

OF_BOTH: Mapping[str, Collection[Any]] = {
    "allowed_token_ids": OFF,
    "bad_words": OFF,
    "dynatemp_range": OFF,
    "ignore_eos": OFF,
    "include_stop_str_in_output": OFF,
    "length_penalty": (1,),
    "logits_processors": OFF,
    "lora": OFF,
    "min_tokens": OFF,
    "mirostat": OFF,
    "moderation": OFF,
    "n_predict": (-1,),
    "prompt_logprobs": OFF,
    "samplers": OFF,
    "stop_token_ids": OFF,
    "t_max_predict_ms": (-1, *OFF),
    "truncate_prompt_tokens": (-1, *OFF),
    "use_beam_search": OFF,
}
OF_CHATS: Mapping[str, Collection[Any]] = {
    **OF_BOTH,
    "add_generation_prompt": (True,),
    "audio": OFF,
    "best_of": (1,),
    "chat_template": OFF,
    "documents": OFF,
    "echo": OFF,
    "modalities": (["text"], *OFF),
    "verbosity": ("medium",),
    "web_search_options": OFF,
}
