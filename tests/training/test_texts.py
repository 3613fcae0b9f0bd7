"""Words that no model has seen: what is replaced, and what must stay."""

from __future__ import annotations

import re

import numpy as np

from tigerfg.catalog import Item
from tigerfg.text import item_text
from tigerfg.training.texts import anchor_words, pseudo_word, text_variants, with_unknown_words

BAG = Item(
    item_id="1",
    image="",
    title="Marlo burgundy canvas backpack 20 L",
    category="Bags > Backpacks",
    attributes={"Color": "burgundy", "material": "canvas", "pockets": 3},
    description="A backpack for the city.",
)


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)


def test_anchors_are_category_and_colours() -> None:
    assert anchor_words(BAG) == ["backpack", "burgundy"]
    assert anchor_words(Item(item_id="1", image="", title="Thing")) == []
    styled = Item(item_id="1", image="", title="Navy dress", attributes={"Colour": ["red", 7]})
    assert anchor_words(styled) == ["navy", "red"]


def test_cluttered_pictures_keep_the_words_that_name_the_target() -> None:
    text, anchors = item_text(BAG), anchor_words(BAG)
    kept = [word for word in words(text) if word.lower().rstrip("s") in anchors]
    assert len(kept) == 5
    changed = 0
    for seed in range(50):
        noisy = with_unknown_words(text, anchors, True, np.random.default_rng(seed))
        assert [w for w in words(noisy) if w.lower().rstrip("s") in anchors] == kept
        changed += "canvas" not in noisy
    assert changed > 20


def test_a_text_that_names_neither_is_left_alone_in_clutter() -> None:
    rng = np.random.default_rng(0)
    assert with_unknown_words("Marlo 20 L", ["backpack"], True, rng) == "Marlo 20 L"
    assert with_unknown_words("Marlo 20 L", [], True, rng) == "Marlo 20 L"
    assert with_unknown_words("", [], False, rng) == ""


def test_pictures_of_one_product_may_lose_every_word() -> None:
    text = item_text(BAG)
    known = set(text.lower().split())
    whole = 0
    for seed in range(60):
        noisy = with_unknown_words(text, anchor_words(BAG), False, np.random.default_rng(seed))
        assert re.sub(r"[A-Za-z]+", "w", noisy) == re.sub(r"[A-Za-z]+", "w", text)  # structure
        whole += not any(word in known for word in words(noisy))
    assert 10 <= whole <= 45  # a third of them, and some that lost all by chance


def test_the_same_word_becomes_the_same_word() -> None:
    rng = np.random.default_rng(3)
    noisy = with_unknown_words("mug Mug mug . mug", [], False, rng)
    assert noisy != "mug Mug mug . mug"
    assert len(set(words(noisy))) == 1


def test_invented_words_are_pronounceable_many_and_seeded() -> None:
    rng = np.random.default_rng(0)
    made = [pseudo_word(rng) for _ in range(500)]
    assert made[:5] == [pseudo_word(r) for r in [np.random.default_rng(0)] for _ in range(5)]
    assert len(set(made)) > 450
    assert all(re.fullmatch(r"[a-z]{4,18}", word) for word in made)
    assert all(re.search(r"[aeiou]", word) for word in made)


def test_variants_are_the_full_text_and_shorter_ones() -> None:
    variants = text_variants(BAG, np.random.default_rng(0))
    assert variants[0] == item_text(BAG)
    assert len(variants) == 5
    assert all(BAG.title in text and len(text) <= len(variants[0]) for text in variants)
    assert len(set(variants)) > 2
