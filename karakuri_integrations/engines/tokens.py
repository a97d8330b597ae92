"""Prompt to token ids and token ids to text, with a tokenizer of our own that can never see structure in text.

The checkpoint's tokenizer is loaded by transformers and copied once: special-token parsing is switched off in the
copy and never flipped (the switch is shared state, so flipping it is not thread-safe). Control segments become their
numbers by look-up, so no text can become BOS or EOS. Text after a control token is encoded by a second copy where
the tokenizer adds its leading space to the first word of a string only.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any, Final

from ..conversation import Control, Prompt
from ..errors import MessageError, ModelLoadError
from .checkpoint import Checkpoint
from .hub import missing
from .safety import check_files, check_versions

__all__ = ["TextStream", "Tokens", "load_tokenizer"]

# `Tokenizer.encode` holds the interpreter's lock all the time (half a second for a megabyte), a batch does not; but the
# first batch switches tokenizers' own threads on, which warn in every process forked later.
_SHORT: Final = 10_000
_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer as transformers loads it.

    Raises:
        ModelLoadError: its files are unsafe, missing or damaged.
    """
    check_versions()
    check_files(checkpoint)
    folder, name = checkpoint.small_files, checkpoint.source.name
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        # transformers would make an empty tokenizer without a word.
        raise ModelLoadError(f"{name} has no tokenizer.json; fetch the checkpoint again")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise missing("transformers") from error
    try:
        found = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True, use_fast=True
        )
    except Exception as error:
        raise ModelLoadError(
            f"the tokenizer of {name} cannot be loaded ({type(error).__name__}); its folder needs "
            "tokenizer.json and tokenizer_config.json; fetch the checkpoint again"
        ) from error
    if not hasattr(found, "backend_tokenizer"):
        raise ModelLoadError(f"{name} has no tokenizer.json; save its tokenizer in the fast format")
    return found


class Tokens:
    """Encodes prompts and decodes replies. Immutable after construction, so threads can share it."""

    def __init__(self, backend: Any) -> None:
        description = backend.to_str()
        self._first = _plain(description)
        self._after = _plain(_without_first_space(description))
        self._special = frozenset(
            one["id"] for one in json.loads(description).get("added_tokens", ()) if one.get("special")
        )
        self._alphabet = _byte_alphabet() if '"ByteLevel"' in json.dumps(json.loads(description)["decoder"]) else None
        self._bytes: dict[int, bytes] = {}
        self._lead = self._first.encode("a", add_special_tokens=False).ids

    def control_id(self, token: str) -> int | None:
        """The number of a control token; None when the vocabulary lacks it."""
        found = self._first.token_to_id(token)
        return None if found is None else int(found)

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt: control tokens by number, everything else as plain text.

        A control token that the vocabulary lacks is written as text, as the tokenizer itself would read it.
        """
        ids: list[int] = []
        text = ""
        for segment in prompt.segments:
            control = self.control_id(segment.token) if isinstance(segment, Control) else None
            if control is None:
                text += segment.token if isinstance(segment, Control) else segment
                continue
            ids += self.encode_text(text, first=not ids)
            text = ""
            ids.append(control)
        return ids + self.encode_text(text, first=not ids)

    def encode_text(self, text: str, *, first: bool = True) -> list[int]:
        """The ids of plain text, at the very beginning or after a control token; never a control token.

        Raises:
            MessageError: the text holds half of a surrogate pair, which is no character.
        """
        place = _surrogate(text)
        if place is not None:
            raise MessageError(
                f"the text holds half a surrogate pair (U+{ord(text[place]):04X}) at character {place}, which is no "
                "character; decode the input with errors='replace'"
            )
        if not text:
            return []
        tokenizer = self._first if first else self._after
        if len(text) > _SHORT:
            return list(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def bytes_of(self, token: int) -> bytes:
        """What a token writes where it follows other text; nothing for a special token."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._look_up(token)
        return found

    def _look_up(self, token: int) -> bytes:
        if token in self._special:
            return b""
        text = self._first.id_to_token(token) or ""
        if single := _BYTE.fullmatch(text):
            return bytes([int(single[1], 16)])
        if self._alphabet and all(one in self._alphabet for one in text):
            return bytes(self._alphabet[one] for one in text)
        # Decoded behind another word, because decoders drop the space of the first word.
        together = self._first.decode([*self._lead, token], skip_special_tokens=False)
        return str(together)[len(self._first.decode(self._lead, skip_special_tokens=False)) :].encode()

    def text_stream(self) -> TextStream:
        return TextStream(self)


class TextStream:
    """Token by token to text: whole characters only, each as soon as its last byte is there.

    Equal to decoding everything at once wherever the bytes form characters. Bytes that can no longer become one give
    U+FFFD, as in any UTF-8 decoder. A character that the end of the reply cut off is dropped.

    (The tokenizers library's DecodeStream raises "Invalid prefix" once bytes that are no character follow ones that
    are, because its byte fallback turns the whole run into U+FFFD.)
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._tokens.bytes_of(token))

    def push_all(self, ids: Sequence[int]) -> str:
        return "".join(map(self.push, ids))


def _byte_alphabet() -> dict[str, int]:
    """The characters in which byte-level vocabularies write their bytes: printable ones stand for themselves."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [one for one in range(256) if one not in shown]
    return {**{chr(one): one for one in shown}, **{chr(256 + place): one for place, one in enumerate(hidden)}}


def _surrogate(text: str) -> int | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _plain(description: str) -> Any:
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(description)
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy


def _without_first_space(description: str) -> str:
    """The tokenizer for text that is not at the start: a Metaspace with prepend_scheme "first" adds nothing there."""
    found = json.loads(description)
    todo: list[Any] = [found.get("pre_tokenizer")]
    while todo:
        one = todo.pop()
        if isinstance(one, list):
            todo.extend(one)
        elif isinstance(one, dict):
            todo.append(one.get("pretokenizers"))
            if one.get("type") == "Metaspace" and one.get("prepend_scheme") == "first":
                one["prepend_scheme"] = "never"
    return json.dumps(found)
