"""device="offload": how many layers a GPU takes, what moves, what the warning says. No GPU: cards are faked, and what
crosses from one device to another goes from the CPU to the CPU under another name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from karakuri_integrations.engines import LocalEngine, loading, offloading
from karakuri_integrations.engines.checkpoint import Checkpoint, source_of
from karakuri_integrations.engines.forward import Forward
from karakuri_integrations.engines.key_values import KeyValues
from karakuri_integrations.engines.llama_pass import _Angles
from karakuri_integrations.engines.memory import Estimate
from karakuri_integrations.engines.offloading import Split, cost, split, split_of
from karakuri_integrations.engines.precision import PRECISIONS
from karakuri_integrations.engines.safety import Tensor
from karakuri_integrations.errors import InsufficientMemoryError, ModelLoadError, OptionError

from .conftest import answer, loaded_model, make_model, make_tokenizer

MIB = 2**20
BF16 = PRECISIONS["bf16"]


def tensors(layers: int = 10) -> list[Tensor]:
    """Layers of 100 MiB in bf16, 50 MiB beside them."""
    found = [Tensor(f"model.layers.{n}.mlp.up_proj.weight", (50, MIB), 100 * MIB) for n in range(layers)]
    return [Tensor("model.embed_tokens.weight", (25, MIB), 50 * MIB), *found]


def needed() -> Estimate:
    return Estimate(1050 * MIB, 200 * MIB)  # 20 MiB of keys and values a layer, a margin of 64


@pytest.mark.parametrize(
    ("free", "count"),
    [(50 + 64 + 120, 1), (50 + 64 + 239, 1), (50 + 64 + 3 * 120, 3), (5000, 10), (50 + 64 + 1200, 10)],
)
def test_layers_that_fit_with_their_keys_and_values(free, count):
    found = split_of("m", tensors(), needed(), BF16, stored=False, free=free * MIB)
    assert found == Split(count, 10, (10 - count) * 100 * MIB)
    assert found.whole == (count == 10)


def test_not_one_fits():
    with pytest.raises(InsufficientMemoryError, match='not one of the 10 layers of m fits; pass device="cpu"'):
        split_of("m", tensors(), needed(), BF16, stored=False, free=(50 + 64 + 119) * MIB)


def test_the_70b_on_a_card_of_24_gib():
    layer = [Tensor(f"model.layers.{n}.x.weight", (8192, 104448), 2 * 8192 * 104448) for n in range(80)]
    head = [Tensor(name, (45416, 8192), 2 * 45416 * 8192) for name in ("model.embed_tokens.weight", "lm_head.weight")]
    nf4 = PRECISIONS["nf4"]
    whole = Estimate(round(sum(offloading.tensor_bytes(one, nf4) for one in (*layer, *head))), 4096 * 320 * 2**10)
    found = split_of("70b", [*layer, *head], whole, nf4, stored=False, free=24 * 2**30)
    assert 40 < found.count < 60
    assert found.left / 2**30 == pytest.approx(34.4 * (80 - found.count) / 80, rel=0.05)


def faked(monkeypatch, *free: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (free[card], free[card]))


def placed(folder, quantization: str = "nf4", stored: str | None = None):
    given = Checkpoint(source_of(folder)), PRECISIONS[quantization], stored
    return loading._placed(*given, "offload", "auto")


def test_where_a_model_goes(checkpoint, monkeypatch):
    faked(monkeypatch, 10**9, 2 * 10**9)
    assert placed(checkpoint) == {"": "cuda:1"}  # all of it fits
    faked(monkeypatch, 65 * MIB, 10**6)
    found = placed(checkpoint)
    assert isinstance(found, Split)
    assert 0 < found.count < found.layers == 2


def test_what_cannot_be_divided_is_refused(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(ModelLoadError, match="torch sees no CUDA device"):
        LocalEngine(checkpoint, device="offload").report()
    faked(monkeypatch, 65 * MIB)
    with pytest.raises(OptionError, match='does not go with 8 bits, .* pass quantization="nf4"'):
        placed(checkpoint, "int8")
    with pytest.raises(ModelLoadError, match="GPTQ or AWQ"):
        placed(checkpoint, "none", "gptq")
    make_model(tmp_path)
    make_tokenizer(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"mixtral"'))
    with pytest.raises(ModelLoadError, match="serve it with llama.cpp"):
        placed(tmp_path, "bf16")
    with pytest.raises(OptionError, match="draft_model does not go with"):
        LocalEngine(checkpoint, device="offload", draft_model=checkpoint)


def test_the_first_layers_and_what_is_no_layer_move(checkpoint):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    split(model, 1, torch.device("meta"))
    where = {name: one.device.type for name, one in model.named_parameters()}
    assert {one for name, one in where.items() if ".layers.1." in name} == {"cpu"}
    assert {one for name, one in where.items() if ".layers.1." not in name} == {"meta"}


def test_it_is_loaded_divided_and_warned_of(checkpoint, monkeypatch):
    engine = LocalEngine(checkpoint, device="cpu", quantization="fp32")
    right = answer(engine)
    engine.close()
    moved = []
    monkeypatch.setattr(loading, "_placed", lambda *_: Split(1, 2, 12 * 2**30))
    monkeypatch.setattr(loading, "_best", lambda _: "cuda:0")
    monkeypatch.setattr(loading, "split", lambda _model, count, device: moved.append((count, str(device))))
    engine = LocalEngine(checkpoint, device="offload", quantization="fp32")
    with pytest.warns(UserWarning, match=r"1 of 2 layers are on cuda:0; the other 1 \(12.0 GiB\) stay in main memory"):
        assert answer(engine) == right
    assert moved == [(1, "cuda:0")]
    engine.close()


def test_what_a_token_costs_is_said():
    said = cost("m", Split(60, 80, 10**10), "cuda:0")
    assert "60 of 80 layers are on cuda:0" in said
    seconds, rate = (float(said.split(before)[1].split()[0]) for before in ("takes at least ", "at the "))
    assert seconds * rate == pytest.approx(10, rel=0.1)


def test_what_goes_from_device_to_device(checkpoint):
    """Rows alone and together, and what is masked: the logits are those of one device."""
    engine = LocalEngine(checkpoint, device="cpu", quantization="nf4")
    model = loaded_model(engine)
    one, two = Forward(model), Forward(model)
    other = torch.device("cpu:0")
    assert other != torch.device("cpu")
    two._run()
    two._llama._layers[1] = replace(two._llama._layers[1], device=other)
    two._llama._angles[other] = _Angles(model.model.rotary_emb, model.config, model.model.embed_tokens.weight, other)
    mine, others = KeyValues(), KeyValues()
    for values in (mine, others):
        values.reserve(2, 128, 10**6)
    for first, new, starts in (
        (0, [[5, 6, 7, 8]], [0]),
        (1, [[9, 10]], [0]),
        (0, [[11], [12]], [4, 2]),
        (0, [[13, 14]], [5]),
    ):
        assert torch.equal(one(mine, first, new, starts, 1), two(others, first, new, starts, 1))
    engine.close()
