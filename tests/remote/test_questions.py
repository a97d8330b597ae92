"""What a server is asked beside replies: the limit of such a question is its own, and its error says so."""

import pytest
from loopback import Loopback, Reply

pytest.importorskip("urllib3")

from karakuri_integrations.engines import RemoteEngine, asking
from karakuri_integrations.errors import RemoteTimeoutError

MODEL = "karakuri-ai/karakuri-lm-70b-chat-v0.1"


def test_a_question_that_is_not_answered_names_its_own_limit(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_PATIENCE", 0.3)
    monkeypatch.setitem(asking.Asker.fetch.__kwdefaults__, "patience", 0.3)
    silent = RemoteEngine(loopback.script("a", [Reply(end="stall", framing="raw")]), MODEL, server="vllm")
    with pytest.raises(RemoteTimeoutError, match=r"small question \(/tokenize\) within 0.3 s") as caught:
        silent.token_ids("はい")
    assert caught.value.stage == "question"
    assert "first_token" not in str(caught.value)
    assert caught.value.url.endswith("/tokenize")


def test_the_calls_own_limit_stays_the_calls(loopback: Loopback) -> None:
    """max_tokens is not known, so the prompt's tokens are asked for first."""
    from karakuri_integrations.conversation import Prompt, Sampling

    url = loopback.script("a", [Reply(end="stall", framing="raw")])
    silent = RemoteEngine(url, MODEL, server="vllm", context_window=4096)
    with pytest.raises(RemoteTimeoutError) as caught:
        next(silent.stream(Prompt(("はい",)), Sampling(timeout=0.4)))
    assert caught.value.stage == "total"


@pytest.mark.parametrize("headers", ["x", 5, ["a"], [("a", "b")]])
def test_headers_that_are_no_mapping_are_named_beside_credentials_in_the_address(headers: object) -> None:
    from karakuri_integrations.errors import OptionError

    for module, name in (("langchain", "ChatKarakuri"), ("llama_index", "KarakuriLLM")):
        model = getattr(pytest.importorskip(f"karakuri_integrations.{module}"), name)
        with pytest.raises(OptionError, match="default_headers must be a mapping"):
            model(base_url="http://user:pass@127.0.0.1:9/v1", model=MODEL, default_headers=headers)
