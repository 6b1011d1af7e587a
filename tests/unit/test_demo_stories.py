"""The demo model's text generator: the same for the same seed, true to the request, and clean English."""

import random
import re

import pytest

from demo import plots, smalltalk, talk, words
from demo.stories import Request, article, tell


def _corpus(seed: int, count: int) -> list[list[talk.Turn]]:
    rng = random.Random(seed)
    return [talk.conversation(rng) for _ in range(count)]


def test_the_seed_fixes_every_conversation() -> None:
    assert _corpus(7, 50) == _corpus(7, 50)
    assert _corpus(7, 50) != _corpus(8, 50)


@pytest.mark.parametrize("hero", ["fox", "queen", "polar bear"])
@pytest.mark.parametrize("thing", list(words.OBJECTS))
def test_a_story_is_about_what_was_asked_for(hero: str, thing: str) -> None:
    rng = random.Random(f"{hero} {thing}")
    story = tell(rng, Request(hero=hero, friend="owl", thing=thing))
    assert re.search(rf"\b{hero}\b", story.text)
    assert re.search(r"\bowl\b", story.text)
    assert len(re.findall(rf"\b{thing}\b", story.text)) >= 1
    assert story.text.count(story.hero.name) >= 2
    assert story.friend.name != story.hero.name


def test_a_given_name_and_place_are_kept() -> None:
    story = tell(random.Random(1), Request(hero="girl", name="Zora", female=True, place="island"))
    assert "Zora" in story.text
    assert words.PLACES["island"].at in story.text


def test_every_sentence_of_every_plot_can_be_filled() -> None:
    rng = random.Random(3)
    stories = [tell(rng, Request(thing=thing)).text for thing in words.OBJECTS for _ in range(60)]
    for slots in (*plots.PLOTS.values(), *plots.RESCUES.values()):
        for sentence in (sentence for slot in slots for sentence in slot):
            fixed = max(re.split(r"\{\w+\}", sentence), key=len)
            assert any(fixed in story for story in stories), sentence


def test_stories_have_a_story_s_length() -> None:
    rng = random.Random(4)
    lengths = [len(tell(rng, Request()).text.split()) for _ in range(500)]
    assert min(lengths) >= 70
    assert max(lengths) <= 220


def test_no_broken_english() -> None:
    for turns in _corpus(5, 1500):
        for role, text in turns:
            if role == "user":
                continue
            assert not re.search(r"\ba [aeio]\w", text, re.IGNORECASE), text
            assert not re.search(r"\ban (?!honest)[^aeiou\W]", text, re.IGNORECASE), text
            assert not re.search(r"[{}]|  |\b(\w+) \1\b", text.replace("La la la", "")), text
            assert text[0].isupper() or text[0] in '"0123456789', text
            assert text.rstrip()[-1] in '.!?"', text


def test_roles_alternate_and_start_with_the_user() -> None:
    for turns in _corpus(6, 300):
        assert [role for role, _ in turns] == ["user", "assistant"] * (len(turns) // 2)


def test_articles() -> None:
    assert [article(noun) for noun in ("owl", "fox", "unicorn", "umbrella")] == [
        "an owl",
        "a fox",
        "a unicorn",
        "an umbrella",
    ]


def test_the_requests_have_many_first_choices() -> None:
    """Greedy decoding must not tell one story to everybody: favourites differ between requests."""
    firsts = set()
    for hero in list(words.HEROES)[:30]:
        texts = [tell(random.Random(seed), Request(hero=hero, thing="lantern")).text for seed in range(40)]
        openings = [re.split(r"(?<=[.!?])\s", text)[0] for text in texts]
        firsts.add(max(set(openings), key=openings.count))
    assert len(firsts) >= 25


def test_fixed_answers_have_one_answer_each() -> None:
    questions = [question for group, _ in smalltalk.ANSWERS for question in group]
    assert len(questions) == len(set(questions))
