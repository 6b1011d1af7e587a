"""How tokens are drawn, by all the names that there are for it."""

from dataclasses import replace

from tpi.api.drawing import DrawingFields, read_drawing, seed_or_none
from tpi.engine.settings import MAX_PENALTY_WINDOW, MAX_SEED, SamplingSettings

DEFAULTS = SamplingSettings(temperature=0.5, seed=9)


def test_what_is_not_given_stays() -> None:
    assert read_drawing(DrawingFields(), DEFAULTS, None) == replace(DEFAULTS, seed=None)


def test_names_of_all() -> None:
    asked = DrawingFields(
        temperature=1, top_k=-1, typical_p=0.5, repeat_penalty=1.5, repeat_last_n=-1, dry_multiplier=0.8,
        dry_penalty_last_n=7, dry_sequence_breakers=["\n"], xtc_probability=0.1, xtc_threshold=0.2,
    )  # fmt: skip
    assert read_drawing(asked, DEFAULTS, 3, [(5, 1.0)]) == SamplingSettings(
        temperature=1,
        top_k=0,
        typical_p=0.5,
        repetition_penalty=1.5,
        penalty_window_tokens=MAX_PENALTY_WINDOW,
        dry_multiplier=0.8,
        dry_window_tokens=7,
        dry_breakers=("\n",),
        xtc_probability=0.1,
        xtc_threshold=0.2,
        logit_bias=((5, 1.0),),
        seed=3,
    )


def test_seeds() -> None:
    assert [seed_or_none(seed) for seed in (None, -1, 0, 5, 1 << 63, -2)] == [None, None, 0, 5, 0, MAX_SEED - 1]
