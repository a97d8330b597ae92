"""Fields, copies and serialisation, metadata, and LlamaIndex's global Settings."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama_index.core
import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.indices.prompt_helper import ChatPromptHelper, PromptHelper
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate

from karakuri_integrations.attributes import SteeringAttributes
from karakuri_integrations.engines import LocalEngine, hub
from karakuri_integrations.engines.scripted import ScriptedEngine
from karakuri_integrations.errors import (
    AttributeConfigError,
    ContextOverflowError,
    KarakuriError,
    OptionError,
    UnknownModelError,
    UnsupportedError,
)
from karakuri_integrations.llama_index import KarakuriLLM
from karakuri_integrations.templates import FAMILIES

REAL = "karakuri-ai/karakuri-lm-70b-chat-v0.1"


def scripted(**fields: Any) -> KarakuriLLM:
    return KarakuriLLM(engine=ScriptedEngine(lambda _: "a"), **fields)


# Fields.


def test_defaults() -> None:
    llm = scripted()
    assert (llm.temperature, llm.top_p, llm.max_tokens, llm.attributes) == (0.0, 1.0, None, None)
    assert (llm.context_window, llm.max_retries, llm.overflow, llm.template_tokens) == (4096, 2, "error", "escape")


@pytest.mark.parametrize(
    ("field", "near"),
    [
        ("temprature", "temperature"),
        ("max_new_tokens", "max_tokens"),
        ("attribute", "attributes"),
        ("api_bas", "api_base"),
    ],
)
def test_misspelt_fields_are_named_and_their_value_is_not_shown(field: str, near: str) -> None:
    with pytest.raises(OptionError, match=f"{field}.*did you mean '{near}") as caught:
        scripted(**{field: "my secret"})
    assert "my secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"attributes": {"verbosity": 5}}, AttributeConfigError),
        ({"attributes": {"verbosty": 1}}, AttributeConfigError),
        ({"attributes": 3}, AttributeConfigError),
        ({"attribute_bounds": {"humor": (3, 1)}}, AttributeConfigError),
        ({"message_attributes": "maybe"}, AttributeConfigError),
        ({"temperature": -1}, OptionError),
        ({"temperature": "hot"}, OptionError),
        ({"top_p": 0}, OptionError),
        ({"top_k": True}, OptionError),
        ({"max_tokens": 0}, OptionError),
        ({"stop": [""]}, OptionError),
        ({"seed": -1}, OptionError),
        ({"timeout": 0}, OptionError),
        ({"overflow": "truncate"}, OptionError),
        ({"template_tokens": "strip"}, OptionError),
        ({"context_window": 100}, OptionError),
        ({"model": REAL}, OptionError),
        ({"base_url": "http://x", "api_base": "http://y"}, OptionError),
    ],
    ids=str,
)
def test_bad_fields_are_our_errors_at_construction(fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        scripted(**fields)


def test_an_engine_must_be_one() -> None:
    with pytest.raises(OptionError, match="got a int"):
        KarakuriLLM(engine=3)


@pytest.mark.parametrize("name", ["base_url", "api_base"])
def test_credentials_in_an_address_are_kept_out_of_sight(name: str) -> None:
    llm = KarakuriLLM(model=REAL, **{name: "http://user:secret@localhost:8000/v1"})
    assert llm.base_url == "http://localhost:8000"
    assert llm.default_headers is not None
    assert llm.default_headers["Authorization"].get_secret_value().startswith("Basic ")
    assert "secret@" not in repr(llm)
    with pytest.raises(OptionError, match="give one of them"):
        KarakuriLLM(model=REAL, api_key="k", **{name: "http://user:secret@localhost"})


def test_other_errors_do_not_show_values() -> None:
    for bad in ({"max_retries": "my secret"}, {"max_retries": -1}, {"api_key": 5}, {"local_files_only": "my secret"}):
        with pytest.raises(OptionError, match=next(iter(bad))) as caught:
            scripted(**bad)
        assert "my secret" not in str(caught.value)


def test_a_folder_may_be_a_path(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    llm = KarakuriLLM(model=tmp_path, template="karakuri-lm-70b-chat-v0.1")
    assert (llm.model, llm.metadata.model_name) == (str(tmp_path), tmp_path.name)
    with pytest.raises(OptionError, match="model must be text"):
        KarakuriLLM(model=5)
    with pytest.raises(UnknownModelError, match="unknown template"):
        KarakuriLLM(template=5)


def test_a_later_change_of_the_users_dict_changes_nothing() -> None:
    given = {"verbosity": 1}
    bounds = {"humor": (0, 1)}
    llm = scripted(attributes=given, attribute_bounds=bounds)
    given["verbosity"] = 4
    bounds["humor"] = (4, 4)
    assert llm.attributes == {"verbosity": 1}
    assert llm.attribute_bounds == {"humor": (0, 1)}
    assert type(llm.attributes) is dict


def test_fields_may_be_assigned() -> None:
    llm = scripted()
    llm.attributes = {"humor": 3}
    llm.stop = ["x"]
    llm.max_tokens = 5
    assert "humor: 3" in llm.render_prompt("q")
    llm.complete("q")
    assert (llm.engine.samplings[0].stop, llm.metadata.num_output) == (("x",), 5)
    llm.attributes = {"humor": 9}
    with pytest.raises(AttributeConfigError):
        llm.complete("q")


def test_the_key_comes_from_the_environment_and_never_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARAKURI_API_KEY", "sk-environment")
    llm = scripted()
    assert llm.api_key is not None
    assert llm.api_key.get_secret_value() == "sk-environment"
    for shown in (repr(llm), str(llm), llm.to_json(), llm.to_payload(), llm.model_dump_json(), vars(llm)):
        assert "sk-environment" not in str(shown)


# Copies and serialisation.


def test_copies_share_the_engine() -> None:
    llm = scripted(attributes={"humor": 1})
    copies = [
        copy.copy(llm),
        copy.deepcopy(llm),
        llm.model_copy(),
        llm.model_copy(deep=True),
        llm.model_copy(update={"attributes": {"humor": 2}}),
        copy.deepcopy({"models": [llm, llm]})["models"][1],
    ]
    for copied in copies:
        assert copied.engine is llm.engine
        copied.attributes = {"humor": 4}
        assert copied.messages_to_prompt("q") == copied.render_prompt("q") != llm.render_prompt("q")
    assert llm.attributes == {"humor": 1}


def test_deepcopy_does_not_copy_an_engine_that_could_be() -> None:
    class Heavy(ScriptedEngine):
        __deepcopy__ = None

    engine = Heavy(["a"])
    assert copy.deepcopy(KarakuriLLM(engine=engine)).engine is engine


def test_pickle_keeps_everything_or_says_why_not() -> None:
    llm = KarakuriLLM(model=REAL, attributes={"humor": 1}, stop=["x"], api_key="k", system_prompt="S", timeout=3)
    again = pickle.loads(pickle.dumps(llm))
    assert again.to_dict() == llm.to_dict()
    assert again.api_key is None  # no secret leaves the process in a pickle
    assert llm.api_key is not None
    assert again.messages_to_prompt("q") == llm.render_prompt("q")
    assert again.context_window == 4096

    class Unpicklable(ScriptedEngine):
        def __reduce__(self) -> Any:
            raise TypeError("no")

    llm = KarakuriLLM(engine=Unpicklable(["a"]))
    with pytest.raises(UnsupportedError, match="Unpicklable, which cannot be pickled"):
        pickle.dumps(llm)
    assert llm.complete("q").text == "a"


def test_pickling_takes_nothing_out_of_the_object(caplog: pytest.LogCaptureFixture) -> None:
    llm = KarakuriLLM(engine=ScriptedEngine(["a"]), messages_to_prompt=lambda messages: "x")
    pickle.dumps(llm)
    assert "messages_to_prompt cannot be pickled" in caplog.text
    assert llm.messages_to_prompt([]) == "x"


def test_a_scripted_model_can_be_pickled() -> None:
    engine = ScriptedEngine(["a", "b"])
    llm = KarakuriLLM(engine=engine)
    llm.complete("q")
    again = pickle.loads(pickle.dumps(llm))
    assert again.complete("r").text == "b"
    assert again.engine.prompts[0] == engine.prompts[0]
    assert len(engine.prompts) == 1


def test_to_dict_and_back() -> None:
    llm = KarakuriLLM(
        model=REAL,
        attributes=SteeringAttributes(humor=1),
        attribute_bounds={"toxicity": (0, 1)},
        message_attributes="clamp",
        stop=["x"],
        max_tokens=9,
        system_prompt="S",
        api_key="k",
    )
    data = llm.to_dict()
    assert data["class_name"] == "karakuri_llm"
    assert "api_key" not in data
    assert data["attributes"] == dict(SteeringAttributes(humor=1))
    for again in (KarakuriLLM.from_dict(data), KarakuriLLM.from_json(llm.to_json())):
        assert again.to_dict() == data
        assert again.render_prompt("q") == llm.render_prompt("q")
    assert json.loads(json.dumps(data)) == json.loads(llm.to_json())


def test_an_engine_is_not_saved_and_is_asked_for_again() -> None:
    llm = scripted(attributes={"humor": 1})
    data = llm.to_dict()
    assert data["engine"] == REAL
    with pytest.raises(OptionError, match="engine"):
        KarakuriLLM.from_dict(data)
    assert KarakuriLLM.from_dict(data, engine=llm.engine).to_dict() == data


def test_its_schema_can_be_made() -> None:
    assert "attributes" in KarakuriLLM.model_json_schema()["properties"]


def test_construction_and_metadata_load_and_contact_nothing() -> None:
    code = (
        "import sys, socket\n"
        "from karakuri_integrations.llama_index import KarakuriLLM\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "before = set(sys.modules)\n"
        f"llm = KarakuriLLM(model={REAL!r}); llm.metadata; llm.to_payload(); llm.render_prompt('q'); repr(llm)\n"
        "unknown = KarakuriLLM(model='someone/unknown-model'); unknown.to_payload()\n"
        "assert 3800 < unknown.metadata.context_window < 4096\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'bitsandbytes'} & (set(sys.modules) - before)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=120)


# Metadata.


@pytest.mark.parametrize("family", FAMILIES)
def test_metadata_leaves_room_for_the_template(family: str) -> None:
    engine = ScriptedEngine(lambda _: "a", model=f"karakuri-ai/{family}")
    llm = KarakuriLLM(engine=engine)
    metadata = llm.metadata
    overhead = engine.context_window - metadata.context_window
    turn = [ChatMessage(role="system", content="S" * 50), ChatMessage(role="user", content="q" * 70)]
    assert llm.count_tokens(turn) - 120 <= overhead < 250
    assert (metadata.is_chat_model, metadata.is_function_calling_model) == (True, True)
    assert metadata.model_name == f"karakuri-ai/{family}"
    assert metadata.system_role is MessageRole.SYSTEM
    assert metadata.num_output == engine.context_window // 16
    assert llm.context_window == engine.context_window


def test_num_output_is_max_tokens() -> None:
    assert scripted(max_tokens=300).metadata.num_output == 300


def filling(llm: KarakuriLLM, template: Any) -> str:
    helper = PromptHelper.from_llm_metadata(llm.metadata, tokenizer=llm.engine.token_ids)
    return helper.repack(template, ["日本語の文章です。" * 2000], llm=llm)[0]


@pytest.mark.parametrize(
    "template",
    [
        PromptTemplate("Context: {context_str}\nQuestion: 名所は?"),
        ChatPromptTemplate(
            [ChatMessage(role="system", content="Answer."), ChatMessage(role="user", content="{context_str}\n名所は?")]
        ),
    ],
    ids=["text", "chat"],
)
def test_prompts_that_llama_index_fills_up_fit_the_window(template: Any) -> None:
    llm = scripted(max_tokens=500, system_prompt="Be brief.")
    packed = filling(llm, template)
    assert len(packed) > 3000
    assert llm.predict(template, context_str=packed) == "a"
    used = llm.engine.count_tokens(llm._chat(llm._get_messages(template, context_str=packed), {}).call().prompt)
    assert used + 500 <= 4096


def test_beyond_the_window_is_an_error_with_the_numbers() -> None:
    llm = scripted(max_tokens=4000)
    with pytest.raises(ContextOverflowError) as caught:
        llm.complete("q" * 300)
    assert (caught.value.n_max_new, caught.value.n_ctx) == (4000, 4096)


def test_the_oldest_turns_are_dropped_only_when_asked_for() -> None:
    history = [
        ChatMessage(role="system", content="S"),
        *(ChatMessage(role=role, content="x" * 300) for _ in range(9) for role in ("user", "assistant")),
        ChatMessage(role="user", content="last"),
    ]
    with pytest.raises(ContextOverflowError):
        scripted().chat(history)
    llm = scripted(overflow="drop_oldest_turns")
    response = llm.chat(history)
    assert response.raw["dropped_messages"][:2] == [1, 2]
    assert "<<SYS>>\nS\n" in llm.engine.prompts[0]
    assert "last" in llm.engine.prompts[0]


# Settings.


@pytest.fixture
def untouched() -> Any:
    """Settings as a fresh process has them, put back afterwards."""
    names = [name for name in vars(Settings) if name.startswith("_")]
    before = {name: getattr(Settings, name) for name in names}
    tokenizer = llama_index.core.global_tokenizer
    for name in names:
        setattr(Settings, name, None)
    llama_index.core.global_tokenizer = None
    yield
    for name, value in before.items():
        setattr(Settings, name, value)
    llama_index.core.global_tokenizer = tokenizer


def state() -> dict[str, Any]:
    return {**vars(Settings), "tokenizer": llama_index.core.global_tokenizer}


def test_using_a_model_changes_nothing_global(untouched: Any) -> None:
    before = state()
    scripted().complete("q")
    assert state() == before


def test_configure_settings_sets_what_it_says(untouched: Any) -> None:
    handler = TokenCountingHandler(tokenizer=list)
    llm = scripted(max_tokens=300, callback_manager=CallbackManager([handler]))
    before = state()
    llm.configure_settings()
    changed = {name for name, value in state().items() if value is not before[name]}
    assert changed == {"_llm", "_prompt_helper", "_chat_prompt_helper", "tokenizer"}
    assert Settings.llm is llm
    assert Settings.tokenizer("あい") == llm.engine.token_ids("あい")
    for window, output in (
        (Settings.context_window, Settings.num_output),
        (Settings.chat_context_window, Settings.chat_num_output),
    ):
        assert (window, output) == (llm.metadata.context_window, 300)
    assert llm.callback_manager.handlers == [handler]


def test_configure_settings_can_be_undone(untouched: Any) -> None:
    Settings.prompt_helper = PromptHelper(context_window=1000, chunk_size_limit=77, chunk_overlap_ratio=0.3)
    Settings.chat_prompt_helper = ChatPromptHelper(chunk_size_limit=88)
    before = state()
    with scripted().configure_settings():
        assert (Settings.prompt_helper.chunk_size_limit, Settings.prompt_helper.chunk_overlap_ratio) == (77, 0.3)
        assert Settings.chat_prompt_helper.chunk_size_limit == 88
        assert Settings.context_window > 3000
    after = state()
    assert all(after[name] is value for name, value in before.items())
    assert Settings.context_window == 1000


def test_errors_have_one_root() -> None:
    for wrong in ({"temprature": 1}, {"base_url": "x", "engine": None}, {"attributes": {"x": 1}}):
        with pytest.raises(KarakuriError):
            KarakuriLLM(**wrong)


def test_an_engine_of_an_unknown_family_is_not_asked_for_it_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: pytest.fail("the hub was asked"))
    llm = KarakuriLLM(engine=LocalEngine("someone/model"))
    assert (llm.context_window, llm.metadata.model_name) == (None, "someone/model")
