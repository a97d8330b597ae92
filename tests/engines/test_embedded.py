"""The model that ships with the package, as `LocalEngine()` loads it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from karakuri_integrations.attributes import SteeringAttributes
from karakuri_integrations.conversation import Message, Prompt, Reply, Request, Sampling
from karakuri_integrations.engines import LocalEngine
from karakuri_integrations.generation import astream, fold, stream
from karakuri_integrations.templates import render

from .conftest import loaded_model


@pytest.fixture(scope="module")
def embedded():
    engine = LocalEngine()
    yield engine
    engine.close()


def ask(engine: LocalEngine, question: str, **attributes: int) -> Prompt:
    return render(Request((Message("user", question),), attributes=SteeringAttributes(attributes)), engine.family)


def test_it_is_known_by_its_configuration_and_template(embedded):
    assert embedded.model == "karakuri-demo"
    assert embedded.family.name == "karakuri-lm-70b-chat-v0.1"
    assert embedded.context_window == 4096
    assert embedded.canary() == ()


def test_it_is_held_in_four_bits(embedded):
    import bitsandbytes

    report = embedded.report()
    model = loaded_model(embedded)
    linears = [name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert report.quantization == "nf4"
    assert report.quantized_modules == tuple(linears)
    assert len(linears) == 7 * model.config.num_hidden_layers
    assert report.quantized_share == 1.0
    in_linears = sum(
        module.in_features * module.out_features for name, module in model.named_modules() if name in linears
    )
    saved = report.bf16_bytes - report.weight_bytes
    assert saved == pytest.approx(in_linears * 1.48, rel=0.05)  # 2 bytes each became 0.52


def without_cache(reply: Reply) -> Reply:
    return replace(reply, usage=replace(reply.usage, cache_read=0))


@pytest.mark.parametrize("question", ["富士山について教えてください。", "Please tell me about Mount Fuji."])
async def test_it_answers_the_same_on_every_path(embedded, question):
    prompt, sampling = ask(embedded, question), Sampling(max_tokens=80)
    reply = fold(stream(embedded, prompt, sampling))
    assert reply.text
    assert "\ufffd" not in reply.text
    assert reply.usage.input_tokens == embedded.count_tokens(prompt)
    again = [one async for one in astream(embedded, prompt, sampling)]
    assert without_cache(fold(again)) == without_cache(reply)
    shorter = fold(stream(embedded, prompt, Sampling(max_tokens=80, stop=(reply.text[5:8],))))
    assert shorter.text == reply.text[: reply.text.index(reply.text[5:8])].rstrip()


def test_a_prompt_near_the_window_is_answered(embedded):
    text = "富士山は日本の山です。" * 2
    while embedded.count_tokens(ask(embedded, text)) < 3500:
        text += text[:2000]
    text = text[: len(text) // 2]
    n_prompt = embedded.count_tokens(ask(embedded, text))
    assert n_prompt > 1500
    (last,) = list(embedded.stream(ask(embedded, text), Sampling(max_tokens=3)))[-1:]
    assert last.usage.input_tokens == n_prompt
