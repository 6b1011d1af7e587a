"""The options of answers, which ``run`` and ``serve`` have, and the settings that they become."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tpi.cli.display import Display
from tpi.cli.talk import Manner
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.engine.suggestions import suggested_sampling
from tpi.engine.turns import Grammar
from tpi.errors import UsageError
from tpi.hub.reader import read_model

_USUAL = SamplingSettings()
GENERATION = GenerationSettings()

MaxTokens = Annotated[int, typer.Option(help="The longest answer, in tokens.")]


def _drawing(text: str, usual: float) -> Any:
    return typer.Option(help=f"{text} [default: the model's, or {usual:g}]")


Temperature = Annotated[
    float | None, _drawing("0 always takes the most probable token; more is more varied.", _USUAL.temperature)
]
TopP = Annotated[
    float | None, _drawing("Draw from the fewest tokens that have this probability together.", _USUAL.top_p)
]
TopK = Annotated[int | None, _drawing("Draw from so many of the most probable tokens; 0: from all.", _USUAL.top_k)]
MinP = Annotated[float | None, _drawing("Draw from tokens at least this share as probable as the best.", _USUAL.min_p)]
RepetitionPenalty = Annotated[
    float | None, _drawing("Above 1: make recent tokens less probable.", _USUAL.repetition_penalty)
]
Seed = Annotated[int | None, typer.Option(help="Makes a drawn answer repeatable. [default: a new one]")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End the answer before TEXT; repeatable.")]
Raw = Annotated[bool, typer.Option("--raw", help="Give the prompt to the model as it is, without chat template.")]
JsonSchema = Annotated[Path | None, typer.Option(metavar="FILE", help="Answer with JSON that follows this schema.")]
GrammarFile = Annotated[
    Path | None, typer.Option("--grammar", metavar="FILE", help="Answer as this grammar says: GBNF, or Lark.")
]
Think = Annotated[
    bool | None,
    typer.Option("--think/--no-think", help="Think first, if the model can.", show_default=False),
]
ThinkingBudget = Annotated[int | None, typer.Option(min=0, help="Think for at most so many tokens.")]
Stats = Annotated[bool, typer.Option("--stats/--no-stats", help="Show what the answer took.")]


def read_grammar(schema: Path | None, grammar: Path | None) -> Grammar | None:
    """Raises:
    UsageError: both are given, or a file cannot be read.
    """
    if schema is not None and grammar is not None:
        raise UsageError("--json-schema and --grammar cannot be had together: leave one out")
    path = schema or grammar
    if path is None:
        return None
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return Grammar("json_schema" if schema is not None else "gbnf" if "::=" in text else "lark", text)


def read_sampling(model: Path, display: Display, **given: float | int | None) -> SamplingSettings:
    """What is ``given`` of the fields of ``SamplingSettings``; else what the model suggests, which is told; else what
    is usual.

    Raises:
        UsageError: a given value lies outside its limits.
        ModelFileError, UnsupportedModelError: see ``read_model``.
    """
    wanted: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    SamplingSettings(**wanted)
    suggested = {name: v for name, v in suggested_sampling(read_model(model).metadata).items() if name not in wanted}
    if suggested:
        told = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in suggested.items())
        display.note(f"tokens are drawn as the model suggests: {told}")
    return SamplingSettings(**{**suggested, **wanted})


def read_manner(sampling: SamplingSettings, max_tokens: int, stop: list[str] | None, raw: bool, stats: bool) -> Manner:
    """How to answer, from the options."""
    return Manner(sampling, GenerationSettings(max_tokens, tuple(stop or ()), raw), stats)
