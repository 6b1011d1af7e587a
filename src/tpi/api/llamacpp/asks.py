"""Requests in the words of llama.cpp's server, as what is asked of the engine. Pure but for the vocabulary."""

import math
from collections.abc import Sequence

from tpi.api.asks import TextAsk
from tpi.api.drawing import read_drawing, seed_or_none, slot_or_none
from tpi.api.errors import Problem
from tpi.api.llamacpp.schema import MAX_BIASED_CHARS, MAX_TEXTS, REFUSED, CompletionFields, Piece
from tpi.api.service import Service
from tpi.api.values import only_one, refuse, schema_grammar
from tpi.api.workers import Going
from tpi.engine.settings import MAX_BIAS, MAX_TOKENS, GenerationSettings, SamplingSettings
from tpi.engine.turns import Grammar
from tpi.errors import ContextError


def read_prompts(
    given: str | Sequence[Piece] | Sequence[str | Sequence[Piece]], service: Service, going: Going
) -> list[TextAsk]:
    """Texts or their tokens, or both in turns: one, or several. Not to be called on the loop.

    Raises:
        Problem: there is none, or it has too many parts.
        ContextError: one does not fit.
        Cancelled: the caller has gone.
    """
    if isinstance(given, str):
        return [TextAsk(given)]
    has_tokens = any(isinstance(item, int) for item in given)
    items: Sequence[str | Sequence[Piece]] = (
        [[item for item in given if isinstance(item, int | str)]]
        if has_tokens
        else [item for item in given if not isinstance(item, int)]
    )
    if not items:
        raise Problem(400, "there is no prompt: give a text", param="prompt")
    if len(items) > MAX_TEXTS:
        why = f"there are {len(items):,} prompts, at most {MAX_TEXTS:,} may be: ask several times"
        raise Problem(400, why, param="prompt")
    return [TextAsk(item) if isinstance(item, str) else TextAsk(tokens=_tokens(item, service, going)) for item in items]


def _tokens(pieces: Sequence[Piece], service: Service, going: Going) -> tuple[int, ...]:
    """The first text begins as texts do, those that follow go on."""
    n_texts = sum(isinstance(piece, str) for piece in pieces)
    if n_texts > MAX_TEXTS:
        why = f"a prompt has {n_texts:,} texts among its tokens, at most {MAX_TEXTS:,} may be: join them"
        raise Problem(400, why, param="prompt")
    found = list[int]()
    for number, piece in enumerate(pieces):
        if isinstance(piece, int):
            service.check_token(piece)
            found.append(piece)
        else:
            going.check()
            service.check_text(piece)
            found += service.tokenize(piece, add_special=number == 0, parse_special=True)
        if (n_over := len(found) - service.n_context) > 0:
            raise ContextError(
                f"the prompt has {len(found)} tokens and more, {service.n_context} are the whole context: shorten it",
                n_over,
            )
    if not found:
        raise Problem(400, "there is no prompt: give a text", param="prompt")
    return tuple(found)


def read_grammar(asked: CompletionFields) -> Grammar | None:
    """Raises:
    Problem: there are several, or one that is none.
    """
    schema = None if asked.json_schema is None else schema_grammar(asked.json_schema, "json_schema")
    return only_one({"json_schema": schema, "grammar": Grammar("gbnf", asked.grammar) if asked.grammar else None})


def read_sampling(asked: CompletionFields, service: Service) -> SamplingSettings:
    """Raises:
    UsageError: a value lies outside its limits.
    Problem: there is one that would change the answer and cannot be done, or a bias of what is no token.
    """
    refuse(asked.model_extra, REFUSED)
    biases = _read_biases(asked, service)
    return read_drawing(asked, service.sampling, seed_or_none(asked.seed), biases)


def read_generation(asked: CompletionFields, n_context: int) -> GenerationSettings:
    """Raises:
    UsageError: a value lies outside its limits.
    """
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    n = asked.n_predict
    n_most = n_context if n is None or n < 0 else max(n, 1)
    n_logprobs = asked.n_probs or (0 if asked.return_tokens else None)
    stops, slot = tuple(text for text in stop if text), slot_or_none(asked.id_slot)
    return GenerationSettings(min(n_most, MAX_TOKENS), stops, True, n_logprobs, slot)


def _read_biases(asked: CompletionFields, service: Service) -> tuple[tuple[int, float], ...]:
    """Of tokens by number, or of all tokens of a text; False forbids them."""
    given = asked.logit_bias or []
    pairs = list(given.items()) if isinstance(given, dict) else [(pair[0], pair[1]) for pair in given]
    biases = dict[int, float]()
    for name, value in pairs:
        if isinstance(value, str) or value is True or not -math.inf < value < math.inf:
            raise Problem(400, f"the bias of {str(name)[:80]!r} is no number", param="logit_bias")
        bias = -MAX_BIAS if value is False else float(value)
        if isinstance(name, bool | float) or len(str(name)) > MAX_BIASED_CHARS:
            raise Problem(400, f"{str(name)[:80]} is no token, nor a short text", param="logit_bias")
        if isinstance(name, str) and not (name.isascii() and name.isdecimal()):
            tokens = service.tokenize(name, add_special=False, parse_special=False)
        else:
            tokens = [int(name)]
        for token in tokens:
            service.check_token(token)
            biases[token] = bias
    return tuple(biases.items())
