"""Item text in, token ids out: one line per item and the model's own tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerfg.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tigerfg.records import Item

_PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>")
_UNKNOWN_TOKENS = ("[UNK]", "<unk>")


def item_text(item: Item) -> str:
    """The text that the item tower reads, on one line.

    ``title . category . key: value ; key: value . description``; missing parts are skipped,
    attributes keep their order, the description comes last because the tokenizer cuts at its
    maximum length. An item without text gives "".
    """
    attributes = (
        f"{_line(key)}: {line}" for key, value in item.attributes.items() if (line := _value(value))
    )
    parts = (
        _line(item.title),
        _line(item.category),
        " ; ".join(attributes),
        _line(item.description),
    )
    return " . ".join(part for part in parts if part)


class TextTokenizer:
    """A tokenizer.json with padding to the batch's longest text, as numpy arrays.

    Safe to call from several threads.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        if max_length < 1:
            raise InputError(f"max_length {max_length} must be at least 1")
        self.max_length = max_length
        pad = (tokenizer.padding or {}).get("pad_id")
        self.pad_id: int = pad if pad is not None else _first_id(tokenizer, _PAD_TOKENS, 0)
        self._empty_id = _first_id(tokenizer, _UNKNOWN_TOKENS, self.pad_id)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        self._tokenizer = tokenizer

    @classmethod
    def from_file(cls, tokenizer_json: str | os.PathLike, max_length: int) -> TextTokenizer:
        """Read a tokenizer.json of the ``tokenizers`` library.

        Args:
            max_length: most tokens of a text, special tokens included; the rest is cut.

        Raises:
            InputError: the file is missing or no tokenizer.
        """
        from tokenizers import Tokenizer

        try:
            with open(tokenizer_json, encoding="utf-8") as stream:
                tokenizer = Tokenizer.from_str(stream.read())
        except Exception as error:  # tokenizers raises plain Exception
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{tokenizer_json}: not a readable tokenizer: {reason}") from error
        return cls(tokenizer, max_length)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int64 (B, L) and mask bool (B, L); L is the batch's longest text, at least 1.

        A text without tokens gives one unknown (or padding) token with mask True.
        """
        if isinstance(texts, str):
            raise InputError("texts must be a sequence of strings, not one string")
        texts = list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"texts[{index}] is {type(text).__name__}, not a string")
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        rows = [
            encoding.ids or [self._empty_id] for encoding in self._tokenizer.encode_batch(clean)
        ]
        length = max((len(row) for row in rows), default=1)
        token_ids = np.full((len(rows), length), self.pad_id, np.int64)
        for index, row in enumerate(rows):
            token_ids[index, : len(row)] = row
        lengths = np.array([len(row) for row in rows], np.int64)
        return token_ids, np.arange(length) < lengths[:, None]

    def tokens(self, text: str) -> list[str]:
        """The tokens of one text as strings, in the order of the ids (to label token weights)."""
        token_ids, _ = self([text])
        return [self._tokenizer.id_to_token(int(token)) or "" for token in token_ids[0]]


def _first_id(tokenizer: Tokenizer, names: Sequence[str], default: int) -> int:
    ids = (tokenizer.token_to_id(name) for name in names)
    return next((token for token in ids if token is not None), default)


def _line(text: str) -> str:
    return " ".join(text.split())


def _value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(filter(None, map(_value, value)))
    return _line(str(value))
