"""Makes conversations: requests for stories in many wordings, questions about the story told, and small talk.

A conversation is a list of (role, text) with roles "user" and "assistant" in turn. Seeded like ``stories``.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from demo import smalltalk, words
from demo.stories import Request, Story, article, made_up, random_name, tell, zipf

Turn = tuple[str, str]

TOKENIZER_SEED, TRAINING_SEED, HELD_OUT_SEED = 1, 2, 3
"""The seeds of the three disjoint streams of conversations."""

_ASKS = (
    "Tell me a story about {x}.", "Tell me a story about {x}.", "Please tell me a story about {x}.",
    "Tell me a short story about {x}.", "Write a story about {x}.", "Can you tell me a story about {x}?",
    "I want to hear a story about {x}.", "a story about {x}", "Could you write a short story about {x}?",
    "tell me a story about {x}", "A bedtime story about {x}, please.", "Do you know a story about {x}?",
    "Make up a story about {x}.", "Story about {x}", "I would like a story about {x}.",
    "Write a short story about {x}", "Tell me a tale of {x}.", "Tell a story about {x}!",
    "Once upon a time there was {x}. Tell me more!",
)  # fmt: skip
_OPEN_ASKS = (
    "Tell me a story.", "Tell me a story!", "Please tell me a story.", "Can you tell me a story?",
    "I want to hear a story.", "tell me a story", "Write a short story.", "Make up a story for me.",
    "A story, please.", "Tell me a bedtime story.", "story",
)  # fmt: skip
_AGAIN = (
    "Tell me another one.", "Another one, please!", "One more!", "Tell me another story.", "Another story, please.",
    "more", "Can I hear another one?", "I liked that. Tell me another one.", "Another!",
    "Please tell me one more story.",
)  # fmt: skip

PLAIN_WORDS = " ".join((*_ASKS, *_OPEN_ASKS, *_AGAIN)).replace("{x}", "a an and the called named who finds, story.")
"""All words that requests are made of besides what they are about."""


def _any_noun(rng: random.Random, nouns: list[str], rare: Sequence[str]) -> str:
    """A noun of the list, or, so that any word is taken over from the request, a rare or a made-up one."""
    kind = rng.choices(("popular", "any", "rare", "made up"), (36, 38, 15, 11))[0]
    if kind == "popular":
        return zipf(rng, nouns, 0.6)
    return {"any": rng.choice(nouns), "rare": rng.choice(rare), "made up": made_up(rng)}[kind]


def ask(rng: random.Random) -> tuple[str, Request]:
    """A wording of a request for a story, and what it means."""
    heroes, things = list(words.HEROES), list(words.OBJECTS)
    noun, thing = _any_noun(rng, heroes, words.RARE_HEROES), _any_noun(rng, things, words.RARE_OBJECTS)
    friend = _any_noun(rng, [other for other in heroes if other != noun], words.RARE_HEROES)
    hero_is = rng.choice(words.HERO_ADJECTIVES) if rng.random() < 0.1 else None
    thing_is = rng.choice(words.OBJECT_ADJECTIVES) if rng.random() < 0.1 else None
    if thing_is in thing.split():
        thing_is = None
    hero = article(f"{hero_is} {noun}" if hero_is else noun)
    item = article(f"{thing_is} {thing}" if thing_is else thing)
    plain = Request(hero=noun, hero_adjective=hero_is)
    with_thing = replace(plain, thing=thing, thing_adjective=thing_is)
    kind = rng.choices(range(9), (36, 14, 5, 6, 16, 12, 4, 4, 3))[0]
    if kind == 0:
        parts, request = f"{hero} and {item}", with_thing
    elif kind == 1:
        parts, request = f"{hero} and {article(friend)}", replace(plain, friend=friend)
    elif kind == 2:
        parts, request = hero, plain
    elif kind == 3:
        parts, request = item, Request(thing=thing, thing_adjective=thing_is)
    elif kind == 4:
        parts, request = f"{hero}, {article(friend)} and {item}", replace(with_thing, friend=friend)
    elif kind == 5:
        name, female = random_name(rng)
        fixed = words.HEROES.get(noun, ("", ""))[1]
        female = fixed == "f" if fixed else female
        parts, request = f"{hero} {rng.choice(('called', 'named'))} {name}", replace(plain, name=name, female=female)
        if rng.random() < 0.5:
            parts, request = f"{parts} and {item}", replace(with_thing, name=name, female=female)
    elif kind == 6:
        place = rng.choice(list(words.PLACES))
        parts, request = f"{hero} {words.PLACES[place].at}", replace(plain, place=place)
    elif kind == 7:
        parts, request = f"{hero} who finds {item}", with_thing
    else:
        return rng.choice(_OPEN_ASKS), Request()
    if rng.random() < 0.15:
        parts = re.sub(r"\ban? ", rng.choice(("the ", "")), parts)
    return rng.choice(_ASKS).format(x=parts), request


def _about(rng: random.Random, story: Story) -> list[Turn]:
    """A question about the story just told, with its answer."""
    hero, friend = story.hero, story.friend
    pairs = (
        ("What was the {h}'s name?", "The {h} was called {n}."),
        ("Who was {n}'s friend?", "{n}'s friend was {f}, {af}."),
        ("Where did {n} live?", "{n} lived {home}."),
        ("What did {n} learn?", "{n} learned that {moral}."),
        ("Who was {f}?", "{f} was {af} and a good friend of {n}."),
        ("What is the story about?", "It is about {n}, {ah}, and {ao}."),
        ("Who was {n}?", "{n} was {ah} who lived {home}."),
    )
    question, answer = rng.choice(pairs)
    fields = {
        "h": hero.noun, "n": hero.name, "f": friend.name, "ah": article(hero.noun), "af": article(friend.noun),
        "home": story.home, "moral": story.moral, "ao": article(story.thing),
    }  # fmt: skip
    return [("user", question.format(**fields)), ("assistant", answer.format(**fields))]


def _small(rng: random.Random) -> list[Turn]:
    if rng.random() < 0.12:
        topic = rng.choice(smalltalk.UNKNOWN_TOPICS)
        question = rng.choice(smalltalk.UNKNOWN_QUESTIONS).format(x=topic)
        return [("user", question), ("assistant", zipf(rng, smalltalk.DO_NOT_KNOW, 2.5))]
    if rng.random() < 0.12:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        question = rng.choice(("What is {a} plus {b}?", "How much is {a} + {b}?", "What is {a} + {b}?")).format(
            a=a, b=b
        )
        return [("user", question), ("assistant", f"{a} plus {b} is {a + b}.")]
    if rng.random() < 0.05:
        name, _ = random_name(rng)
        question = rng.choice(
            ("My name is {x}.", "I am {x}.", "Hello, I am {x}.", "Hi, my name is {x}!", "I'm {x}")
        ).format(x=name)
        return [("user", question), ("assistant", f"Hello, {name}! Who should the story be about?")]
    questions, answer = rng.choice(smalltalk.ANSWERS)
    question = rng.choice(questions)
    if rng.random() < 0.25:
        question = question.lower() if rng.random() < 0.5 else question.rstrip(".?!")
    return [("user", question), ("assistant", answer)]


def conversation(rng: random.Random) -> list[Turn]:
    """One conversation; two thirds are a single story, few go on until about 900 tokens."""
    kind = rng.choices(("story", "small", "talk", "long"), (64, 16, 17, 3))[0]
    if kind == "small":
        return [turn for _ in range(rng.choice((1, 1, 2))) for turn in _small(rng)]
    question, request = ask(rng)
    story = tell(rng, request)
    turns = [("user", question), ("assistant", story.text)]
    if kind == "story":
        return turns
    if rng.random() < 0.4:
        turns = _small(rng) + turns
    for _ in range(rng.choice((0, 1, 1)) if kind == "talk" else 3):
        turns += _between(rng, story)
        if rng.random() < 0.5:
            question, request = ask(rng)
        else:
            told = (story.hero.noun, story.friend.noun)
            question = rng.choice(_AGAIN)
            request = Request(hero=zipf(rng, [noun for noun in list(words.HEROES)[:40] if noun not in told]))
        story = tell(rng, request)
        turns += [("user", question), ("assistant", story.text)]
    return turns + _between(rng, story)


def _between(rng: random.Random, story: Story) -> list[Turn]:
    turns = _about(rng, story) if rng.random() < 0.5 else []
    return turns + (_small(rng) if rng.random() < 0.2 else [])
