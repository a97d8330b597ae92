"""What both classes make of the constructor's fields, alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

from karakuri_integrations.conversation import Sampling
from karakuri_integrations.engines import ScriptedEngine
from karakuri_integrations.errors import OptionError
from karakuri_integrations.langchain import ChatKarakuri
from karakuri_integrations.llama_index import KarakuriLLM
from karakuri_integrations.provider import Provider

REAL = "karakuri-ai/karakuri-lm-70b-chat-v0.1"
BOTH = pytest.mark.parametrize("make", [ChatKarakuri, KarakuriLLM])


def provider_of(llm: Any) -> Provider:
    return llm._provider() if isinstance(llm, ChatKarakuri) else llm._provider


def engine_of(llm: Any) -> Any:
    return provider_of(llm).engine()


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder `here` with a model `weights` in it, and a step into another folder that has one of the same name."""
    for place in ("here", "there"):
        (tmp_path / place / "weights").mkdir(parents=True)
        (tmp_path / place / "weights" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "here")
    return lambda: monkeypatch.chdir(tmp_path / "there")


@BOTH
@pytest.mark.parametrize("model", ["weights", "./weights", Path("weights")], ids=repr)
def test_a_relative_folder_stays_the_same_one(make: Any, model: Any, moved: Any, tmp_path: Path) -> None:
    llm = make(model=model, template="karakuri-lm-70b-chat-v0.1")
    moved()
    assert engine_of(llm)._key.source.folder == str(tmp_path / "here" / "weights")
    assert engine_of(llm).model == "weights"


@BOTH
def test_other_paths_too(make: Any, moved: Any, tmp_path: Path) -> None:
    cached = make(model=REAL, cache_dir="cache")
    served = make(model=REAL, base_url="http://127.0.0.1:9/v1", tokenizer="weights")
    moved()
    assert engine_of(cached)._key.source.cache_dir == str(tmp_path / "here" / "cache")
    assert engine_of(served)._tokenizer == str(tmp_path / "here" / "weights")


@BOTH
def test_what_is_no_path_here_stays_as_it_is(make: Any, moved: Any) -> None:
    """A served model's id belongs to the server; the name of a folder here may be the same."""
    served = make(model="weights", base_url="http://127.0.0.1:9/v1", template="karakuri-lm-70b-chat-v0.1")
    hub = make(model=REAL, base_url="http://127.0.0.1:9/v1", tokenizer=REAL)
    assert engine_of(served).model == served.model == "weights"
    assert (hub.tokenizer, make(model=REAL).model) == (REAL, REAL)


@BOTH
def test_none_means_the_default(make: Any) -> None:
    llm = make(**dict.fromkeys({"temperature", "top_p", "top_k", "min_p", "max_retries", "overflow", "device"}))
    assert llm.temperature == 0
    assert llm.max_retries == 2
    assert engine_of(llm).embedded


@BOTH
def test_numpys_numbers_are_numbers(make: Any) -> None:
    numpy = pytest.importorskip("numpy")
    given = {
        "temperature": numpy.float32(0.5),
        "top_k": numpy.int64(3),
        "seed": numpy.uint8(7),
        "top_p": numpy.float16(1),
    }
    llm = make(engine=ScriptedEngine(["a"]), **given)
    assert (llm.temperature, llm.top_k, llm.seed, llm.top_p) == (0.5, 3, 7, 1.0)
    sampling = provider_of(llm).merged({"max_tokens": numpy.int32(9), "min_p": numpy.float32(0.25)})
    assert sampling == Sampling(temperature=0.5, top_k=3, seed=7, max_tokens=9, min_p=0.25)
    assert {type(getattr(sampling, name)) for name in ("temperature", "min_p")} == {float}
    assert {type(getattr(sampling, name)) for name in ("top_k", "seed", "max_tokens")} == {int}
    for wrong in ({"temperature": numpy.bool_(1)}, {"top_k": numpy.float32(3)}, {"temperature": numpy.float32("nan")}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            make(engine=ScriptedEngine(["a"]), **wrong)
