"""The settings of one answer: how tokens are drawn, when it ends. Validated here and nowhere else.

Plain frozen data; parsing of arguments and requests belongs to ``cli`` and ``api``. Any thread may read them.
"""

import math
from dataclasses import dataclass

from tpi.errors import UsageError

MAX_TEMPERATURE = 100.0
MAX_PENALTY = 100.0
MAX_SEED = 2**63 - 1
MAX_PENALTY_WINDOW = 1_000_000
MAX_TOKENS = 1_000_000
MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_BREAKER_CHARS = 40
MAX_FREQUENCY_PENALTY = 2.0
MAX_BIAS = 100.0
MAX_BIASES = 300
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How the next token is drawn from the logits.

    The defaults are llama.cpp's, but for a temperature a little lower (0.7), which keeps small models on the
    subject. ``temperature=0`` is greedy: the highest logit after the repetition penalty, the other filters idle.

    Raises:
        UsageError: a value lies outside its limits.
    """

    temperature: float = 0.7
    """0 (greedy) to 100."""
    top_k: int = 40
    """Keep the k highest logits; 0 keeps all."""
    top_p: float = 0.95
    """Keep the fewest tokens whose probabilities reach p; 1 keeps all."""
    min_p: float = 0.05
    """Keep tokens at least this share as probable as the most probable one; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies other logits of recent tokens; 1 leaves them alone."""
    penalty_window_tokens: int = 64
    """How many of the last tokens (prompt included) count as recent; 0 means none."""
    presence_penalty: float = 0.0
    """Taken from the logits of recent tokens, -2 to 2."""
    frequency_penalty: float = 0.0
    """The same, for every time that they have occurred."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of tokens, -100 to 100; at most 300, each token once."""
    typical_p: float = 1.0
    """Keep the tokens whose probability is nearest to what is typical of the row, until they reach p; 1 keeps all."""
    dry_multiplier: float = 0.0
    """Tokens that go on with what was said before, word for word, lose this much, 0 to 100; 0: nothing, ..."""
    dry_base: float = 1.75
    """... times this, for every token by which the repetition is longer, 1 to 100, ..."""
    dry_allowed_length: int = 2
    """... than so many tokens, ..."""
    dry_window_tokens: int = MAX_PENALTY_WINDOW
    """... within so many of the last tokens, prompt included."""
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    """No repetition goes on past one of these; at most 16, each of 1 to 40 characters."""
    xtc_probability: float = 0.0
    """So often all but the least probable of the tokens that reach the threshold are left out."""
    xtc_threshold: float = 0.1
    """A probability; above 0.5 nothing is left out."""
    seed: int | None = None
    """None draws a seed, which ``Sampler.seed`` reports."""

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _check_integer("top-k", self.top_k, 0, 2**31 - 1)
        _check_number("top-p", self.top_p, 0.0, 1.0)
        _check_number("min-p", self.min_p, 0.0, 1.0)
        _check_number("repetition penalty", self.repetition_penalty, 0.01, MAX_PENALTY)
        _check_integer("repetition penalty window", self.penalty_window_tokens, 0, MAX_PENALTY_WINDOW)
        _check_number("presence penalty", self.presence_penalty, -MAX_FREQUENCY_PENALTY, MAX_FREQUENCY_PENALTY)
        _check_number("frequency penalty", self.frequency_penalty, -MAX_FREQUENCY_PENALTY, MAX_FREQUENCY_PENALTY)
        _check_number("typical-p", self.typical_p, 0.0, 1.0)
        _check_number("DRY multiplier", self.dry_multiplier, 0.0, MAX_PENALTY)
        _check_number("DRY base", self.dry_base, 1.0, MAX_PENALTY)
        _check_integer("DRY allowed length", self.dry_allowed_length, 0, MAX_PENALTY_WINDOW)
        _check_integer("DRY window", self.dry_window_tokens, 0, MAX_PENALTY_WINDOW)
        _check_number("XTC probability", self.xtc_probability, 0.0, 1.0)
        _check_number("XTC threshold", self.xtc_threshold, 0.0, 1.0)
        if len(self.dry_breakers) > MAX_STOPS:
            raise UsageError(f"{len(self.dry_breakers)} DRY breakers, at most {MAX_STOPS} are allowed")
        for text in self.dry_breakers:
            if not 1 <= len(text) <= MAX_BREAKER_CHARS:
                raise UsageError(f"a DRY breaker has {len(text)} characters, allowed are 1 to {MAX_BREAKER_CHARS}")
        if len(self.logit_bias) > MAX_BIASES:
            raise UsageError(f"{len(self.logit_bias)} tokens have a logit bias, at most {MAX_BIASES} may")
        for token, bias in self.logit_bias:
            _check_integer("token of a logit bias", token, 0, 2**31 - 1)
            _check_number(f"logit bias of token {token}", bias, -MAX_BIAS, MAX_BIAS)
        if len(dict(self.logit_bias)) < len(self.logit_bias):
            raise UsageError("a token has two logit biases, it can have one")
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, MAX_SEED)


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """What ends an answer, and whether the prompt is a chat message or plain text.

    Raises:
        UsageError: a value lies outside its limits, or a stop string is empty.
    """

    max_tokens: int = 512
    """The answer ends after so many tokens, 1 to 1 000 000."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these (at most 16, each of 1 to 1024 characters)."""
    raw: bool = False
    """The prompt goes to the model as it is, without chat template."""
    n_logprobs: int | None = None
    """Of every token its logarithm of probability is told, and those of so many of the most probable, 0 to 20; None: of
    none."""
    slot: int | None = None
    """The answer is computed at this seat, if it is free."""

    def __post_init__(self) -> None:
        _check_integer("max tokens", self.max_tokens, 1, MAX_TOKENS)
        if self.n_logprobs is not None:
            _check_integer("number of logprobs", self.n_logprobs, 0, MAX_LOGPROBS)
        if len(self.stop) > MAX_STOPS:
            raise UsageError(f"{len(self.stop)} stop strings, at most {MAX_STOPS} are allowed")
        for text in self.stop:
            if not 1 <= len(text) <= MAX_STOP_CHARS:
                raise UsageError(f"a stop string has {len(text)} characters, allowed are 1 to {MAX_STOP_CHARS}")


def _check_number(name: str, value: float, lowest: float, highest: float) -> None:
    # bool is an int to Python, and never what somebody meant by a number.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not lowest <= value <= highest:
        raise UsageError(f"{name} is {value!r}, it must be a number from {lowest:g} to {highest:g}")


def _check_integer(name: str, value: int, lowest: int, highest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise UsageError(f"{name} is {value!r}, it must be a whole number from {lowest} to {highest}")
