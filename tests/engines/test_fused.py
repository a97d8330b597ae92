"""4-bit layers that call bitsandbytes' CPU code directly give the very same numbers; all others stay as they were."""

from __future__ import annotations

import pytest
import torch

from karakuri_integrations.engines import LocalEngine, fused

from .conftest import answer, loaded_model

bnb = pytest.importorskip("bitsandbytes")


def layer(inputs: int = 128, outputs: int = 192, *, bias: bool = False, kind: str = "nf4", compute=torch.bfloat16):
    torch.manual_seed(inputs + outputs)
    return bnb.nn.Linear4bit(inputs, outputs, bias=bias, compute_dtype=compute, quant_type=kind).to("cpu").eval()


def fast(one) -> bool:
    return fused.hasten(torch.nn.Sequential(one)) == 1


needed = pytest.mark.skipif(not layer().support_avx512bf16_for_cpu, reason="this processor lacks avx512_bf16")


@needed
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (128, 192), (256, 640), (1024, 96)])
def test_the_numbers_are_the_same(kind, inputs, outputs):
    one, same = layer(inputs, outputs, kind=kind), layer(inputs, outputs, kind=kind)
    assert fast(one)
    for shape in ((1, 1), (1, 7), (16, 1), (3, 33), (1, 300)):
        given = torch.randn(*shape, inputs, dtype=torch.bfloat16)
        with torch.inference_mode():
            assert torch.equal(one(given), same(given))


@needed
def test_inputs_of_other_strides_and_types():
    one, same = layer(), layer()
    assert fast(one)
    wide = torch.randn(4, 3, 256, dtype=torch.bfloat16)
    with torch.inference_mode():
        for given in (wide[..., :128], wide[..., ::2], wide[:, -1:, 128:], wide[..., :128].float(), wide[0, 0, :128]):
            got, right = one(given), same(given.contiguous())  # 0.50 reads the wrong numbers of every second column
            assert got.dtype == right.dtype and got.shape == right.shape
            assert torch.equal(got, right)


@pytest.mark.parametrize("other", [{"bias": True}, {"compute": torch.float32}, {"compute": None}])
def test_other_layers_stay_as_they_are(other):
    one = layer(**other)
    assert not fast(one)
    assert "forward" not in vars(one)


@needed
def test_a_library_without_the_code_is_used_as_it_is(monkeypatch):
    monkeypatch.setattr(fused, "_CODE", "no_such_code_{}")
    one = layer()
    assert not fast(one)
    assert torch.isfinite(one(torch.ones(1, 128, dtype=torch.bfloat16))).all()


@needed
def test_a_result_that_differs_is_not_taken(monkeypatch):
    monkeypatch.setattr(fused, "_direct", lambda one: lambda given: type(one).forward(one, given) * 1.01)
    assert not fast(layer())


@needed
def test_all_layers_of_a_loaded_model_are_fast_and_it_says_the_same(checkpoint, monkeypatch):
    engine = LocalEngine(checkpoint, device="cpu")
    found = answer(engine, max_tokens=40)
    quantized = [one for one in loaded_model(engine).modules() if type(one).__name__ == "Linear4bit"]
    assert len(quantized) == 14
    assert all("forward" in vars(one) for one in quantized)
    engine.close()
    monkeypatch.setattr(fused, "hasten", lambda model: 0)
    assert answer(engine, max_tokens=40) == found
    engine.close()
