"""Text can never become structure: template tokens planted in every role, split over content parts, 1,000 times."""

import random
from collections.abc import Sequence

import pytest

from karakuri_integrations.conversation import Control, Message, Prompt, Request
from karakuri_integrations.engines import LocalEngine
from karakuri_integrations.escaping import unescape
from karakuri_integrations.templates import FAMILIES, Family, render

CONTROLS = ("<s>", "</s>", "<unk>")
SPICE = ("\u2060", "[", "<", "/", "]", " ", "あ", "\r\n", "\0", "\u2028", "🍣", "a", "　", "</", "INST]", "ATTR]")


def planted(chance: random.Random, family: Family) -> str:
    """Text with whole and broken template tokens, some escaped already."""
    parts = [chance.choice((*family.literals, *CONTROLS)) for _ in range(chance.randint(1, 4))]
    parts += [chance.choice(SPICE) for _ in range(chance.randint(0, 8))]
    parts += [token[:1] + "\u2060" * chance.randint(1, 3) + token[1:] for token in chance.sample(family.literals, 2)]
    chance.shuffle(parts)
    return "x" + "".join(parts) + "x"  # the family's own outer strip is tested elsewhere


def split(chance: random.Random, text: str) -> list[str]:
    cuts = sorted(chance.randint(0, len(text)) for _ in range(chance.randint(0, 4)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def conversation(chance: random.Random, family: Family) -> list[tuple[str, str]]:
    roles = ["system"] * chance.randint(0, 1)
    for _ in range(chance.randint(0, 3)):
        roles += ["user", "assistant"]
    return [(role, planted(chance, family)) for role in (*roles, "user")]


def texts(prompt: Prompt) -> str:
    return "".join(part for part in prompt.segments if isinstance(part, str))


def controls(prompt: Prompt) -> list[str]:
    return [part.token for part in prompt.segments if isinstance(part, Control)]


def rendered(turns: Sequence[tuple[str, str]], family: Family, policy: str = "escape") -> Prompt:
    messages = tuple(Message(role, text, None, place) for place, (role, text) in enumerate(turns))  # type: ignore[arg-type]
    return render(Request(messages), family, policy)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_lets_data_become_structure(name: str) -> None:
    family = FAMILIES[name]
    for seed in range(1000):
        turns = conversation(random.Random(seed), family)
        prompt = rendered(turns, family)
        harmless = rendered([(role, "x") for role, _ in turns], family)
        assert controls(prompt) == controls(harmless)
        for literal in family.literals:
            assert texts(prompt).count(literal) == texts(harmless).count(literal)
        assert all(one not in prompt.text.replace("<s>", "", controls(prompt).count("<s>")) for one in ("<s>", "<unk>"))
        raw = rendered(turns, family, "allow")
        assert unescape(texts(prompt), family.literals) == texts(raw)
        assert all(text in texts(raw) for _, text in turns)


def test_a_thousand_conversations_through_langchain_and_the_tokenizer() -> None:
    pytest.importorskip("transformers", reason="the embedded model's tokenizer needs the extra `local`")
    pytest.importorskip("langchain_core")
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

    from karakuri_integrations.langchain import ChatKarakuri

    kinds = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}
    engine = LocalEngine()
    llm, tokens = ChatKarakuri(engine=engine), engine._shared.tokens
    begin, end = tokens.control_id("<s>"), tokens.control_id("</s>")
    for seed in range(1000):
        chance = random.Random(seed)
        turns = conversation(chance, engine.family)
        messages = [
            kinds[role](content=[{"type": "text", "text": part} for part in split(chance, text)])
            for role, text in turns
        ]
        prompt = rendered(turns, engine.family)
        assert llm.render_prompt(messages) == prompt.text
        ids = tokens.encode(prompt)
        assert ids.count(begin) == controls(prompt).count("<s>") == (len(turns) + 1) // 2
        assert ids.count(end) == controls(prompt).count("</s>") == (len(turns) - 1) // 2
        assert 0 not in ids
        assert tokens.text_stream().push_all(ids) == texts(prompt)


def test_llama_index_blocks_give_the_same_prompt() -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.base.llms.types import ChatMessage, TextBlock

    from karakuri_integrations.engines import ScriptedEngine
    from karakuri_integrations.llama_index import KarakuriLLM

    engine = ScriptedEngine([])
    llm = KarakuriLLM(engine=engine)
    for seed in range(200):
        chance = random.Random(seed)
        turns = conversation(chance, engine.family)
        messages = [
            ChatMessage(role=role, blocks=[TextBlock(text=part) for part in split(chance, text)])
            for role, text in turns
        ]
        joined = [(turn[0], message.content or "") for turn, message in zip(turns, messages, strict=True)]
        assert llm.render_prompt(messages) == rendered(joined, engine.family).text
