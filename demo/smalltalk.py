"""Fixed questions with fixed answers (from ``smalltalk.txt``), and what to say to everything else.

In the file, lines "? question" are followed by one "= answer" for all of them; " / " in an answer is a line break.
"""

from pathlib import Path


def _read(path: Path) -> tuple[tuple[tuple[str, ...], str], ...]:
    answers: list[tuple[tuple[str, ...], str]] = []
    questions: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("? "):
            questions.append(line[2:])
        elif line.startswith("= "):
            answers.append((tuple(questions), line[2:].replace(" / ", "\n")))
            questions = []
    return tuple(answers)


ANSWERS = _read(Path(__file__).with_suffix(".txt"))

UNKNOWN_QUESTIONS = (
    "What is {x}?",
    "Who invented {x}?",
    "Explain {x}.",
    "Write a program for {x}.",
    "What do you think about {x}?",
    "Who is the king of {x}?",
    "How do I fix {x}?",
    "What is the price of {x}?",
    "When was {x} founded?",
    "Tell me the history of {x}.",
    "What is the capital of {x}?",
    "How far away is {x}?",
    "Translate {x} into French.",
    "What is the meaning of {x}?",
    "Give me a recipe for {x}.",
    "How big is {x}?",
)
UNKNOWN_TOPICS = (
    "quantum physics", "Brazil", "the stock market", "politics", "Python", "a telephone", "the internet", "Canada",
    "mathematics", "football", "my car", "the president", "pizza", "a black hole", "Mars", "chemistry", "Australia",
    "life", "the economy", "my computer", "philosophy", "electricity", "gravity", "sorting a list",
    "the weather tomorrow", "a matrix", "the Roman Empire", "chess", "atoms", "New York", "India", "Linux",
    "a neural network", "money", "music theory", "coffee", "the law", "the brain", "biology", "love", "time", "DNA",
    "Egypt", "Kenya",
)  # fmt: skip
DO_NOT_KNOW = (
    "I am only a small storyteller, and I do not know that. But I can tell you a story about it if you like!",
    "That is too hard for such a small model as me. Shall I tell you a story instead?",
)
