"""A canary: does a checkpoint's own chat template and tokenizer agree with our rendering, in text and in ids?

A different template in the files means a different training format, a tampered file or a fault of ours; all three
are worth a warning before the first answer. The checkpoint's template runs in transformers' sandbox.
"""

from __future__ import annotations

from typing import Any, Final

from ..conversation import Message, Request
from ..templates import Family, render
from .tokens import Tokens

__all__ = ["differences"]

_CONVERSATION: Final = (
    Message("system", "You are a canary."),
    Message("user", "こんにちは。Is it 10:30?"),
    Message("assistant", "はい、10:30です。"),
    Message("user", "Thanks!\nありがとう🍣"),
)


def differences(hf_tokenizer: Any, tokens: Tokens, family: Family) -> tuple[str, ...]:
    """What differs between the checkpoint's own files and our rendering, a sentence each; empty when nothing does."""
    request = Request(_CONVERSATION)
    prompt = render(request, family)
    ids = tokens.encode(prompt)
    found = []
    text = prompt.text
    if hf_tokenizer.chat_template:
        own = _own_text(hf_tokenizer, dict(request.attributes))
        if own is None:
            found.append("its chat template cannot render a conversation of system, user, assistant and user")
        elif own != text:
            found.append(f"its chat template writes another prompt, from character {_first(own, text)} on")
    own_ids = list(hf_tokenizer(text, add_special_tokens=False)["input_ids"])
    if own_ids != ids:
        found.append(f"its tokenizer gives other ids for the prompt, from position {_first(own_ids, ids)} on")
    begin = hf_tokenizer.bos_token_id
    if begin is not None and ids[:1].count(begin) + (ids[1:2] == [begin]) != 1:
        found.append("the prompt does not begin with exactly one beginning-of-text token")
    if tokens.control_id(family.end_token) is None:
        found.append(f"its vocabulary lacks the token that ends a reply ({family.end_token})")
    return tuple(found)


def _own_text(hf_tokenizer: Any, values: dict[str, int]) -> str | None:
    """What the checkpoint's template writes; attributes are given in both ways that published templates read them."""
    messages = [
        {"role": one.role, "content": one.text, **(values if one.role == "user" else {})} for one in _CONVERSATION
    ]
    try:
        return str(
            hf_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, attributes=values)
        )
    except Exception:  # noqa: BLE001  # whatever a template raises, it did not render
        return None


def _first(one: Any, other: Any) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
