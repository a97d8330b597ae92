"""What a quantised copy takes along unchanged, and its model card: origin, changes, and whose terms hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..templates import family_of_model
from .manifest import MANIFEST, Recipe

__all__ = ["companions", "model_card"]

#: Beside the weights and config.json: tokenizer, chat template, generation settings, licence.
_COMPANIONS: Final = re.compile(
    r"(tokenizer.*\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt|[\w.-]+\.jinja"
    r"|generation_config\.json|(LICENSE|LICENCE|NOTICE|USE_POLICY)[\w.-]*)",
    re.IGNORECASE,
)

#: By family, as in this package's README. The Mixtral models are under Apache-2.0, whose text their card names.
_TERMS: Final[Mapping[str, str]] = {
    "karakuri-lm-70b-chat-v0.1": (
        "This is a derivative of KARAKURI LM, developed by KARAKURI Inc. It is under the Llama 2 Community License "
        "(Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights "
        "Reserved.) and under KARAKURI's terms: except for commercial purposes you may share and adapt it if you, "
        "in a recognisable manner, (i) state that you are using KARAKURI LM developed by KARAKURI Inc. when "
        "publishing the model, a derivative or any output, and (ii) indicate your contributions if you modified it. "
        "Commercial use needs KARAKURI's prior word."
    ),
}
_KEPT_FIELDS: Final = ("license", "license_name", "license_link", "language")


def companions(folder: Path) -> list[str]:
    """The names of a checkpoint's files that a copy takes along byte for byte."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and _COMPANIONS.fullmatch(path.name))


def model_card(recipe: Recipe, source_card: str | None) -> str:
    """The copy's README.md: this note, then the source's own card."""
    head, body = _parted(source_card or "")
    where = f"`{recipe.model}`" + (f" at commit `{recipe.commit}`" if recipe.commit else "")
    family = family_of_model(recipe.model)
    terms = _TERMS.get(family.name) if family is not None else None
    return "\n".join(
        [
            *_front_matter(recipe, head),
            f"# {recipe.model.rpartition('/')[2]}, quantised to {recipe.quantization}",
            "",
            f"A quantised copy of {where}. What was changed: the weights of the linear layers are held as "
            f"{_form(recipe.quantization)} by bitsandbytes {recipe.bitsandbytes}; embeddings, output head and norms "
            f"are {recipe.dtype}. Tokenizer, chat template and generation settings are the source's, byte for byte.",
            "",
            f"Made with `karakuri quantize` of karakuri-integrations; `{MANIFEST}` has the SHA-256 of every file, and "
            "`karakuri quantize --verify FOLDER` checks them and the logits.",
            "",
            "## Terms",
            "",
            terms or "The terms of the source hold for this copy; its card and licence files state them.",
            "",
            *(["## The source's own card", "", body] if body else []),
        ]
    )


def _form(quantization: str) -> str:
    return "8-bit integers" if quantization == "int8" else f"{quantization.upper()} with double quantisation"


def _parted(card: str) -> tuple[list[str], str]:
    """The lines of a card's front matter, and the rest."""
    found = re.match(r"---\r?\n(.*?)\r?\n---\r?\n(.*)", card, re.DOTALL)
    return (found[1].splitlines(), found[2].strip() + "\n") if found else ([], card.strip() and card.strip() + "\n")


def _front_matter(recipe: Recipe, source: list[str]) -> list[str]:
    kept, keep = [], False
    for line in source:
        key = re.match(r"([\w-]+):", line)
        keep = key[1] in _KEPT_FIELDS if key else keep  # lines that go on with a field follow it
        kept += [line] if keep else []
    base = [f"base_model: {recipe.model}", "base_model_relation: quantized"] if "/" in recipe.model else []
    return ["---", *kept, "library_name: transformers", *base, "---", ""]
