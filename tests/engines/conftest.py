"""A tiny Llama with random weights and a byte-fallback tokenizer, made once a session, for faults and concurrency."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

# Matrices this small are slower with two threads, and far slower when another process wants a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from karakuri_integrations.conversation import Message, Prompt, Request, Sampling
from karakuri_integrations.engines import LocalEngine
from karakuri_integrations.engines.channel import Channel, Deadline
from karakuri_integrations.templates import FAMILIES, render

# On a Python without the extra `local` (see matrix.sh) there is no engine to test.
collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]

FAMILY = FAMILIES["karakuri-lm-70b-chat-v0.1"]

#: A template of the published shape: nine attributes, read from the keys of each user message.
TEMPLATE = (
    "{% set names = ['helpfulness', 'correctness', 'coherence', 'complexity', 'verbosity', 'quality', 'toxicity', "
    "'humor', 'creativity'] %}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system is defined %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [ATTR]' }}{% for name in names %}"
    "{{ ' ' + name + ': ' + (message.get(name, 4 if loop.index0 < 6 else 0) | string) }}{% endfor %}"
    "{{ ' [/ATTR] [/INST]' }}{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

CORPUS = (
    "[INST] What is the tallest mountain? [ATTR] helpfulness: 4 correctness: 4 coherence: 4 complexity: 4 verbosity: 4 "
    "quality: 4 toxicity: 0 humor: 0 creativity: 0 [/ATTR] [/INST] It is Mount Fuji. <<SYS>> Be brief. <</SYS>>",
    "富士山は日本で一番高い山です。おはようございます。ありがとうございます。カタカナもあります。",
)


def make_tokenizer(folder: Path, *, legacy: bool = False, template: str | None = TEMPLATE) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaTokenizer

    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    raw.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    model = json.loads(raw.to_str())["model"]
    tokenizer = LlamaTokenizer(vocab=model["vocab"], merges=[tuple(one) for one in model["merges"]], legacy=legacy)
    if template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def make_model(folder: Path, **settings: object) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    values: dict[str, object] = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
        **settings,
    }
    model = LlamaForCausalLM(LlamaConfig(**values)).to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight[2] = 0  # a random model should not end by itself
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    make_model(folder)
    make_tokenizer(folder)
    return folder


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "damaged"))


@pytest.fixture
def engine(checkpoint: Path):
    """An engine on the tiny model, closed afterwards so that no test sees another one's model."""
    found = LocalEngine(checkpoint, device="cpu")
    yield found
    found.close()


def prompt_of(text: str = "富士山は？") -> Prompt:
    return render(Request((Message("user", text),)), FAMILY)


def answer(engine: LocalEngine, text: str = "富士山は？", **sampling: object) -> str:
    return "".join(one.text for one in engine.stream(prompt_of(text), Sampling(**{"max_tokens": 12, **sampling})))


class Look:
    """A job that hands out the loaded torch module. It runs when everything queued before it has ended."""

    def __init__(self) -> None:
        self.channel = Channel(Deadline(None))
        self.found = []

    def run(self, loaded) -> None:
        self.found.append(loaded.model)
        self.channel.put(None)

    def fits(self, loaded) -> bool:
        return not loaded.active


def loaded_model(engine: LocalEngine):
    """The torch module behind an engine, for tests that count or break it."""
    look = Look()
    worker = engine._shared.submit(look, 128, engine.family)
    assert look.channel.take(worker.alive) is None
    return look.found[0]
