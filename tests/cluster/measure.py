"""Prints, as a Markdown table, how far a cluster's logits are from one device's, over a story of the demo model.

``python -m tests.cluster.measure``. No part of the tests.
"""

import tempfile
from pathlib import Path

from tests.cluster.ranks import DEMO, Difference, compare, cut, everything, tell_story, thread_run
from tests.cluster.stories import N_TOKENS
from tests.cluster.test_same_answer import SHARES
from tests.cluster.unrounded import write_unrounded
from tpi.cluster.allreduce.payload import PayloadFormat


def main() -> None:
    """Runs everything; takes a minute."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        story = tell_story(DEMO, folder, N_TOKENS)
        models = {"demo (Q8_0)": DEMO, "its weights in F16": write_unrounded(DEMO, folder / "f16.gguf")}
        ones = {}
        print("| model | ranks | shares | payload | largest difference / range | other greedy tokens |")
        print("|---|---|---|---|---|---|")
        for title, path in models.items():
            ones[title] = thread_run(
                cut(path, (1,), folder / title), story.chunks, PayloadFormat.F32, everything
            ).logits
            for number, shares in enumerate(SHARES):
                model = cut(path, shares, folder / f"{title} {number}")
                for payload in PayloadFormat if len(shares) > 1 else [PayloadFormat.F32]:
                    logits = thread_run(model, story.chunks, payload, everything).logits
                    text = ",".join(f"{share:g}" for share in shares)
                    print(
                        f"| {title} | {len(shares)} | {text} | {payload.value} | {_cells(compare(logits, ones[title]))}"
                    )
        rounding = compare(*ones.values())
        print(f"| demo (Q8_0) against its weights in F16 | 1 | 1 | - | {_cells(rounding)}")


def _cells(difference: Difference) -> str:
    near = " (near ties)" if difference.positions and difference.gap_of_allowed <= 1 else ""
    return f"{difference.of_range:.1e} | {len(difference.positions)}{near} |"


if __name__ == "__main__":
    main()
