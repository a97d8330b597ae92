"""What both classes make of the constructor's fields, alike."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

from karakuri_integrations.conversation import Sampling
from karakuri_integrations.engines import LocalEngine, ScriptedEngine
from karakuri_integrations.errors import AttributeConfigError, ModelFolderError, OptionError
from karakuri_integrations.langchain import ChatKarakuri
from karakuri_integrations.llama_index import KarakuriLLM
from karakuri_integrations.provider import EngineFields, Provider

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


# --- fields that are wrong, named with the next step ---


@BOTH
def test_a_folder_that_is_not_there_is_told_at_construction(make: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for model in ("./absent", tmp_path / "absent", str(tmp_path / "absent")):
        with pytest.raises(
            ModelFolderError, match=f"'absent' does not exist .*{tmp_path / 'absent'}.*hub id"
        ) as caught:
            make(model=model)
        assert isinstance(caught.value, ValueError)
    with pytest.raises(ModelFolderError, match="'absent' does not exist"):
        make(engine=LocalEngine("./absent"))
    with pytest.raises(OptionError, match="GGUF"):
        make(model="./absent.gguf")
    assert make(model="someone/absent", template="karakuri-lm-70b-chat-v0.1").model == "someone/absent"
    assert make(model="./absent", base_url="http://127.0.0.1:9/v1", template="karakuri-lm-70b-chat-v0.1").model


@BOTH
def test_a_copy_is_unpickled_where_the_folder_is_not(make: Any, moved: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="without the extra `local` the missing library is told first")
    saved = pickle.dumps(make(model="weights", template="karakuri-lm-70b-chat-v0.1"))
    (tmp_path / "here").rename(tmp_path / "elsewhere")
    again = pickle.loads(saved)
    with pytest.raises(ModelFolderError, match="'weights' does not exist"):
        again.invoke("hi") if isinstance(again, ChatKarakuri) else again.complete("hi")


@BOTH
def test_clamping_needs_bounds(make: Any) -> None:
    with pytest.raises(OptionError, match="message_attributes='clamp' needs attribute_bounds"):
        make(engine=ScriptedEngine(["a"]), message_attributes="clamp")


@BOTH
@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ("verbosity", 'attributes={"verbosity": 1}'),
        ("humour", 'attributes={"humor": 1}'),
        ("preset", 'attributes=SteeringAttributes.preset("concise")'),
        ("playful", 'attributes=SteeringAttributes.preset("playful")'),
    ],
)
def test_a_dial_or_a_preset_that_is_no_field_says_where_it_goes(make: Any, field: str, shown: str) -> None:
    llm = make(engine=ScriptedEngine(["a"]))
    ask = llm.invoke if isinstance(llm, ChatKarakuri) else llm.complete
    for wrong in (lambda: make(**{field: "concise"}), lambda: ask("hi", **{field: "concise"})):
        with pytest.raises(OptionError, match=f"unknown option '{field}'") as caught:
            wrong()
        assert str(caught.value).endswith(shown)


@BOTH
def test_what_only_a_local_engine_takes_says_where_it_goes(make: Any) -> None:
    names = inspect.signature(LocalEngine).parameters.keys() - EngineFields.__dataclass_fields__.keys()
    assert {"kv_cache_dtype", "draft_model"} <= names
    for name in names:
        with pytest.raises(OptionError, match=f"engine=LocalEngine\\({name}=...\\)$"):
            make(**{name: None})


@BOTH
def test_a_presets_name_is_no_attributes(make: Any) -> None:
    with pytest.raises(AttributeConfigError, match="got a str; of the preset: attributes=SteeringAttributes.preset"):
        make(attributes="concise")
    with pytest.raises(AttributeConfigError, match="got a str$"):
        make(attributes="secret words")


@BOTH
def test_the_list_of_fields_begins_with_ours_and_is_left_out_where_one_is_near(make: Any) -> None:
    with pytest.raises(OptionError, match="did you mean 'max_tokens'.$") as caught:
        make(max_tokns=1)
    assert "temperature" not in str(caught.value)
    with pytest.raises(OptionError, match="the options are model, ") as caught:
        make(zzzzzz=1)
    listed = str(caught.value).partition("options are ")[2].split(", ")
    theirs = [name for name in listed if name in ("callbacks", "verbose", "callback_manager", "cache", "rate_limiter")]
    assert theirs
    assert listed.index("overflow") < listed.index(theirs[0])


@BOTH
@pytest.mark.parametrize(
    "other", [{"api_key": "k"}, {"max_retries": 3}, {"server": "vllm"}], ids=lambda one: next(iter(one))
)
def test_an_address_that_is_none_does_not_answer_with_the_embedded_model(make: Any, other: dict[str, Any]) -> None:
    """`base_url=os.environ.get(...)`, and the variable is not set."""
    with pytest.raises(OptionError, match=f"base_url is None and {next(iter(other))}= is for a server"):
        make(base_url=None, **other)
    with pytest.raises(OptionError, match="must be an http or https address"):
        make(base_url="", **other)


def test_the_other_name_of_the_address_too() -> None:
    with pytest.raises(OptionError, match="base_url is None and api_key="):
        KarakuriLLM(api_base=None, api_key="k")


@BOTH
def test_what_frameworks_pass_to_every_model_stays_accepted(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_of(make(api_key="k", max_retries=5, timeout=3)).embedded
    assert engine_of(make(base_url=None, max_retries=None, api_key=None)).embedded
    assert make(base_url=None, engine=ScriptedEngine(["a"]), api_key="k").engine
    monkeypatch.setenv("KARAKURI_API_KEY", "k")
    assert engine_of(make(base_url=None)).embedded


def test_copies_of_a_local_model_with_a_key_are_local_models() -> None:
    """configurable_fields and from_dict pass every field on, base_url=None among them."""
    from langchain_core.runnables import ConfigurableField

    llm = ChatKarakuri(api_key="k").configurable_fields(temperature=ConfigurableField(id="t"))
    made, _ = llm._prepare({"configurable": {"t": 0.5}})
    assert engine_of(made).embedded
    assert made.temperature == 0.5
    own = KarakuriLLM(api_key="k", max_retries=4)
    assert engine_of(KarakuriLLM.from_dict(own.to_dict(), api_key="k")).embedded
