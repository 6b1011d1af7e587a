"""What a model's file says about drawing, believed where it can be."""

from tpi.engine.settings import MAX_PENALTY_WINDOW
from tpi.engine.suggestions import suggested_sampling


def metadata(**entries: object) -> dict[str, object]:
    return {f"general.sampling.{key}": value for key, value in entries.items()}


def test_what_is_suggested() -> None:
    given = metadata(temp=1.0, top_k=64, top_p=0.949999988079071, min_p=0.0, penalty_repeat=1.0499999523162842)
    assert suggested_sampling(given | {"general.name": "m"}) == {
        "temperature": 1.0,
        "top_k": 64,
        "top_p": 0.95,
        "min_p": 0.0,
        "repetition_penalty": 1.05,
    }
    assert suggested_sampling(metadata(top_k=-1, penalty_last_n=-1)) == {
        "top_k": 0,
        "penalty_window_tokens": MAX_PENALTY_WINDOW,
    }


def test_what_cannot_be_is_left_out() -> None:
    given = metadata(temp=float("nan"), top_k=1.5, top_p=3.0, min_p="0.1", penalty_repeat=True, penalty_last_n=(1,))
    assert suggested_sampling(given) == {}
