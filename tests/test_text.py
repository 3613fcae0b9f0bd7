"""Item text and tokenization."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tigerfg.catalog import Item
from tigerfg.errors import InputError
from tigerfg.text import TextTokenizer, item_text

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "shoe", "blue", "a"]


def make_tokenizer(path, vocabulary=VOCABULARY, special=False, padding=None):
    """A word-level tokenizer.json whose ids are the places in the vocabulary."""
    ids = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]" if "[UNK]" in ids else "red"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    if padding is not None:
        tokenizer.enable_padding(length=32, pad_id=padding, pad_token=vocabulary[padding])
    tokenizer.save(str(path))
    return path


@pytest.fixture
def tokenizer(tmp_path) -> TextTokenizer:
    return TextTokenizer.from_file(make_tokenizer(tmp_path / "tokenizer.json"), 5)


def test_item_text_has_every_part_in_order():
    item = Item(
        "a",
        "a.jpg",
        title=" Red  Shoe ",
        category="Shoes > Running",
        attributes={"size": 42, "colour": "Red", "none": None, "empty": "", "fit": ["slim", "low"]},
        description="Light.\nVery light.",
    )
    assert item_text(item) == (
        "Red Shoe . Shoes > Running . size: 42 ; colour: Red ; fit: slim, low . Light. Very light."
    )


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, ""),
        ({"title": "T"}, "T"),
        ({"description": "D"}, "D"),
        ({"title": "T", "description": "D"}, "T . D"),
        ({"attributes": {"k": 1.5, "on": False}}, "k: 1.5 ; on: False"),
        ({"category": "C", "attributes": {"k": []}}, "C"),
        ({"title": " \n\t", "category": "C"}, "C"),
    ],
    ids=str,
)
def test_missing_parts_are_skipped(parts, expected):
    assert item_text(Item("a", "a.jpg", **parts)) == expected


def test_ids_and_mask(tokenizer):
    token_ids, mask = tokenizer(["red shoe", "BLUE", "a red unknown shoe"])
    assert (token_ids.dtype, mask.dtype) == (np.int64, np.bool_)
    np.testing.assert_array_equal(token_ids, [[4, 5, 0, 0], [6, 0, 0, 0], [7, 4, 1, 5]])
    np.testing.assert_array_equal(mask.sum(axis=1), [2, 1, 4])
    assert mask[:, 0].all()


def test_long_text_is_cut(tokenizer):
    token_ids, mask = tokenizer(["red " * 100, "blue"])
    assert token_ids.shape == (2, 5)
    np.testing.assert_array_equal(token_ids[0], [4] * 5)
    np.testing.assert_array_equal(mask, [[True] * 5, [True] + [False] * 4])


def test_empty_text_gives_one_unknown_token(tokenizer):
    for texts in ([""], ["", "  \n"]):
        token_ids, mask = tokenizer(texts)
        np.testing.assert_array_equal(token_ids, [[1]] * len(texts))
        assert mask.all()
    token_ids, mask = tokenizer(["red shoe", ""])
    np.testing.assert_array_equal(token_ids[1], [1, 0])
    np.testing.assert_array_equal(mask[1], [True, False])


def test_no_texts(tokenizer):
    token_ids, mask = tokenizer([])
    assert token_ids.shape == mask.shape == (0, 1)


def test_special_tokens_count_and_survive_the_cut(tmp_path):
    file = make_tokenizer(tmp_path / "t.json", special=True)
    tokenizer = TextTokenizer.from_file(file, 4)
    token_ids, mask = tokenizer(["red shoe blue a", ""])
    np.testing.assert_array_equal(token_ids, [[2, 4, 5, 3], [2, 3, 0, 0]])
    np.testing.assert_array_equal(mask[1], [True, True, False, False])


def test_padding_stored_in_the_file_is_replaced_by_ours(tmp_path):
    vocabulary = ["red", "shoe", "<filler>"]
    file = make_tokenizer(tmp_path / "t.json", vocabulary, padding=2)
    tokenizer = TextTokenizer.from_file(file, 8)
    token_ids, mask = tokenizer(["red", "red shoe", ""])
    np.testing.assert_array_equal(token_ids, [[0, 2], [0, 1], [2, 2]])  # no unknown token: padding
    np.testing.assert_array_equal(mask, [[True, False], [True, True], [True, False]])


def test_lone_surrogates_do_not_stop_a_batch(tokenizer):
    token_ids, _ = tokenizer(["red \ud800 shoe", "blue"])
    assert token_ids[0, 0] == 4
    assert token_ids[1, 0] == 6


def test_tokens_label_the_ids(tokenizer):
    assert tokenizer.tokens("a RED zebra") == ["a", "red", "[UNK]"]
    assert tokenizer.tokens("") == ["[UNK]"]
    assert tokenizer.vocab_size == len(VOCABULARY)


def test_wrong_arguments(tmp_path, tokenizer):
    token_ids, _ = tokenizer(text for text in ("red", "blue mug"))
    assert len(token_ids) == 2
    with pytest.raises(InputError, match="not one string"):
        tokenizer("red shoe")
    with pytest.raises(InputError, match=r"texts\[1\] is NoneType, not a string"):
        tokenizer(["red", None])
    with pytest.raises(InputError, match="max_length 0 must be at least 1"):
        TextTokenizer.from_file(tmp_path / "tokenizer.json", 0)


def test_bad_tokenizer_file(tmp_path):
    with pytest.raises(InputError, match=r"gone\.json: not a readable tokenizer: No such file"):
        TextTokenizer.from_file(tmp_path / "gone.json", 8)
    for content in (b"", b"{}", b"[1, 2", b"\xff\xfe\0"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.json: not a readable tokenizer") as caught:
            TextTokenizer.from_file(tmp_path / "bad.json", 8)
        assert "\n" not in str(caught.value)


def test_one_tokenizer_in_many_threads(tokenizer):
    expected = tokenizer(["red shoe", "blue"])[0]
    wrong = []

    def work() -> None:
        for _ in range(50):
            if not np.array_equal(tokenizer(["red shoe", "blue"])[0], expected):
                wrong.append(True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
