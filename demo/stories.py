"""Makes stories: a cast is chosen, then a plot, then one sentence for every slot of the plot.

Everything is drawn from the ``random.Random`` that is passed in, so a seed fixes the text. Choices follow a Zipf law
whose order depends on the hero or the object: every request has its own favourite answer, clearly ahead of the second,
and different requests have different favourites. That keeps greedy decoding away from near ties without making it dull.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from demo import plots, words

T = TypeVar("T")

ZIPF_EXPONENT = 1.7


def zipf(rng: random.Random, options: Sequence[T], exponent: float = ZIPF_EXPONENT) -> T:
    """One of the options; the k-th (from 1) has a weight of k to the power of minus ``exponent``."""
    weights = [rank**-exponent for rank in range(1, len(options) + 1)]
    return rng.choices(options, weights)[0]


def favourite(rng: random.Random, options: Sequence[T], key: str) -> T:
    """Zipf choice in an order of preference that depends on ``key`` alone."""
    order = list(options)
    random.Random(zlib.crc32(key.encode())).shuffle(order)
    return zipf(rng, order)


def article(noun: str) -> str:
    """The noun with its indefinite article: "an owl", "a unicorn"."""
    if noun.startswith(("uni", "use", "eu")):
        return f"a {noun}"
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


@dataclass(frozen=True)
class Being:
    """A character of a story."""

    noun: str
    name: str
    female: bool

    def pronouns(self, prefix: str) -> dict[str, str]:
        """Placeholders of this character's pronouns, e.g. ``he``, ``him``, ``his``, ``He``, ``His``."""
        he, him, his = ("she", "her", "her") if self.female else ("he", "him", "his")
        forms = {prefix + "he": he, prefix + "him": him, prefix + "his": his}
        return forms | {key[0].upper() + key[1:]: word.capitalize() for key, word in forms.items()}


@dataclass(frozen=True)
class Request:
    """What the user fixed; None is left to the teller."""

    hero: str | None = None
    friend: str | None = None
    thing: str | None = None
    place: str | None = None
    name: str | None = None
    female: bool | None = None
    hero_adjective: str | None = None
    thing_adjective: str | None = None


@dataclass(frozen=True)
class Story:
    """A told story and the facts that later questions can ask about."""

    text: str
    hero: Being
    friend: Being
    thing: str
    home: str
    moral: str


def random_name(rng: random.Random) -> tuple[str, bool]:
    """A name that a user might give, and whether it is a girl's; three in ten are made up."""
    female = rng.random() < 0.5
    names = rng.choices(("own", "other", "made up"), (35, 35, 30))[0]
    if names == "made up":
        return made_up(rng).capitalize(), female
    if names == "other":
        return rng.choice(words.OTHER_GIRLS if female else words.OTHER_BOYS), female
    return rng.choice(words.GIRLS if female else words.BOYS), female


def made_up(rng: random.Random) -> str:
    """A word of two or three syllables that means nothing."""
    count = rng.choice((2, 2, 3))
    parts = [rng.choice(words.ONSETS) + rng.choice(words.VOWELS) + rng.choice(words.CODAS) for _ in range(count)]
    return "".join(parts)


def _being(rng: random.Random, noun: str, key: str, taken: str = "") -> Being:
    fixed = words.HEROES.get(noun, ("", ""))[1]
    female = fixed == "f" if fixed else favourite(rng, (True, False), key + "sex")
    names = [name for name in (words.GIRLS if female else words.BOYS) if name != taken]
    return Being(noun, favourite(rng, names, key + "name"), female)


def tell(rng: random.Random, request: Request) -> Story:
    """A story that keeps to the request; its text has paragraphs parted by an empty line."""
    nouns = list(words.HEROES)
    hero_noun = request.hero or favourite(rng, nouns[:40], f"hero of {request.thing} {request.place}")
    hero = _being(rng, hero_noun, hero_noun)
    if request.name is not None and request.female is not None:
        hero = Being(hero_noun, request.name, request.female)
    others = [noun for noun in nouns[:40] if noun != hero_noun]
    friend_noun = request.friend or favourite(rng, others, hero_noun + "friend")
    friend = _being(rng, friend_noun, friend_noun + "as friend", hero.name)
    thing = request.thing or favourite(rng, list(words.OBJECTS)[:40], hero_noun + "thing")
    use = words.OBJECTS.get(thing, "joy")
    plot = favourite(rng, ("rescue", "rescue ", *plots.FITTING.get(use, tuple(plots.PLOTS))), thing + "plot").strip()
    home = request.place or words.HEROES.get(hero_noun, ("village", ""))[0]
    scenes = [place for place in words.PLACES if place not in (home, "moon", "library", "snow", "castle")]
    scene = words.PLACES[favourite(rng, scenes[:10], hero_noun + "scene")]
    weather = favourite(rng, words.WEATHERS, thing + "weather")
    times = words.TIMES[:3] if weather in ("sunny", "warm", "cloudy") else words.TIMES
    moral = favourite(rng, words.MORALS, thing + "moral")
    hero_adjective = request.hero_adjective or favourite(rng, words.HERO_ADJECTIVES, hero_noun + "is")
    thing_adjective = request.thing_adjective or favourite(
        rng, [word for word in words.OBJECT_ADJECTIVES if word not in thing.split()], thing + "is"
    )
    friend_adjective = favourite(rng, words.FRIEND_ADJECTIVES, friend_noun + "is")
    fields = {
        **hero.pronouns(""), **friend.pronouns("f"),
        "N": hero.name, "F": friend.name, "hero": hero_noun, "friend": friend_noun, "o": thing, "ao": article(thing),
        "A": article(f"{hero_adjective} {hero_noun}"), "fa": article(f"{friend_adjective} {friend_noun}"),
        "aao": article(f"{thing_adjective} {thing}"),
        "at": scene.at, "to": scene.to, "home": words.PLACES[home].at,
        "spot": favourite(rng, words.SPOTS, thing + "spot"), "treat": favourite(rng, words.TREATS, hero_noun + "treat"),
        "weather": weather, "time": favourite(rng, times, thing + "time"), "moral": moral,
    }  # fmt: skip
    text = _fill(rng, plot, use, fields)
    return Story(text, hero, friend, thing, words.PLACES[home].at, moral)


def _fill(rng: random.Random, plot: str, use: str, fields: dict[str, str]) -> str:
    slots = plots.RESCUES[use] if plot == "rescue" else plots.PLOTS[plot]
    paragraphs: list[list[str]] = [[]]
    for number, slot in enumerate(slots):
        if slot == ("",):
            paragraphs.append([])
            continue
        if slot is plots.WITH_OBJECT:
            slot = {"food": plots.WITH_FOOD, "ride": plots.WITH_VEHICLE}.get(use, slot)
        key = fields["hero"] if number % 2 == 0 else fields["o"]
        paragraphs[-1].append(favourite(rng, slot, f"{plot} {number} {key}").format(**fields))
    return "\n\n".join(" ".join(sentences) for sentences in paragraphs)
