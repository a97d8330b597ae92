"""Which model a caller names: a member of the family by its shape, any other by its files. No hub is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ..engines import hub
from ..engines.checkpoint import Checkpoint, Source, source_of
from ..engines.precision import PRECISIONS, missing_backend, stored_form
from ..engines.safety import check_checkpoint
from ..errors import ModelLoadError, OptionError
from ..templates import FAMILIES, Family, family_of_checkpoint, family_of_model
from .sizing import EXPERTS, MODELS, WINDOW, Model

__all__ = ["model_of"]

_INSTRUCT: Final = "karakuri-lm-8x7b-instruct-v0.1"
_ITS_SHAPE: Final = "karakuri-lm-8x7b-chat-v0.1"
_NEEDED: Final = ("hidden_size", "num_hidden_layers", "num_attention_heads")
_MAY_BE: Final = ("num_key_value_heads", "head_dim", "num_local_experts")


def model_of(text: str) -> Model:
    """The model that `--model` names.

    Raises:
        OptionError: nothing here says how large it is.
        ModelLoadError: and its kinds; files that the loader would refuse too.
    """
    source = source_of(text)
    if source.packaged:
        return MODELS[source.name]
    if source.folder is not None:
        return _of_files(source, text)
    if member := _member(source.name):
        return member
    folder = hub.cached_folder(source)
    if folder is None:
        raise _not_here(source.name)
    return _of_files(replace(source, folder=str(folder)), text)


def _member(name: str) -> Model | None:
    short = name.removeprefix("karakuri-ai/")
    if short == name or short not in FAMILIES:
        return None
    if short != _INSTRUCT:
        return MODELS[short]
    like = MODELS[_ITS_SHAPE]
    served = tuple(note.replace(like.short, "8x7b-instruct") for note in like.notes)
    return replace(
        like,
        name=short,
        argument=like.argument.replace(_ITS_SHAPE, short),
        short="8x7b-instruct",
        notes=(*served, f"counted by the shape of {_ITS_SHAPE}"),
    )


def _not_here(name: str) -> OptionError:
    family = family_of_model(name)
    like = f" (--model {family.name} sizes what it is a copy of)" if family else ""
    known = ", ".join([*MODELS, _INSTRUCT])
    return OptionError(
        f"model {name!r:.120} is neither a folder nor in the hub's cache here, and karakuri doctor asks no hub; run "
        f"`hf download {name:.120}` first, or name a folder or a model whose size is known: {known}{like}"
    )


def _of_files(source: Source, text: str) -> Model:
    checkpoint = Checkpoint(source)
    check_checkpoint(checkpoint)
    config = checkpoint.config
    _check_shape(source.name, config)
    family = family_of_model(source.name) or family_of_checkpoint(config, checkpoint.chat_template)
    stored = stored_form(config)
    return Model(
        source.name,
        _forms(config, stored),
        f"model={json.dumps(text, ensure_ascii=False)}, ",
        notes=tuple(_notes(config, stored, family)),
        source=source,
        family_window=family.context_window if family else WINDOW,
    )


def _check_shape(name: str, config: Mapping[str, Any]) -> None:
    """What keys and values are counted by is there."""
    for key in (*_NEEDED, *_MAY_BE):
        value = config.get(key)
        if (type(value) is not int or value < 1) and (value is not None or key in _NEEDED):
            raise ModelLoadError(
                f"{name}: config.json must have an integer of at least 1 as {key}, got {value!r:.40}; fetch the "
                "checkpoint again"
            )


def _mixture(config: Mapping[str, Any]) -> bool:
    return (config.get("num_local_experts") or 1) > 1


def _forms(config: Mapping[str, Any], stored: str | None) -> tuple[str, ...]:
    if stored is not None:
        return (stored,)
    return ("bf16",) if _mixture(config) else ("nf4", "int8", "bf16")


def _notes(config: Mapping[str, Any], stored: str | None, family: Family | None) -> list[str]:
    notes = []
    if stored is not None:
        notes.append(f"it is stored quantised ({stored}) and loaded so")
        if absent := missing_backend(PRECISIONS["none"], stored):
            notes.append(str(absent))
    elif _mixture(config):
        notes.append(f"{EXPERTS}; a 4-bit copy (AWQ, GPTQ) is smaller")
    if family is None:
        notes.append(
            f'neither its name nor its files tell its prompt template: pass template=, such as "{next(iter(FAMILIES))}"'
        )
    return notes
