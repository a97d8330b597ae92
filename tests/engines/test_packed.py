"""Matrices on a CPU: the kernels called themselves give the numbers of the modules, and modules stay where they cannot."""

from __future__ import annotations

import pytest
import torch

from karakuri_integrations.engines import packed

bitsandbytes = pytest.importorskip("bitsandbytes")

INPUTS = [(1, 1), (3, 1), (1, 40), (2, 7)]


def four_bits(outputs: int, inputs: int, kind: str = "nf4", **options: object):
    torch.manual_seed(outputs)
    made = bitsandbytes.nn.Linear4bit(
        inputs, outputs, bias=False, compute_dtype=torch.bfloat16, quant_type=kind, **options
    )
    made.weight = bitsandbytes.nn.Params4bit(
        torch.randn(outputs, inputs, dtype=torch.bfloat16),
        requires_grad=False,
        quant_type=kind,
        compress_statistics=True,
    )
    return made.to("cpu").eval()


def inputs_of(module, shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(*shape, module.in_features, dtype=torch.bfloat16)


@pytest.fixture
def fast():
    made = packed.shortened(four_bits(64, 64))
    if not isinstance(made, packed._Short):
        pytest.skip("this CPU, or this version of bitsandbytes, has no fast code for 4 bits")


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", INPUTS)
def test_the_numbers_are_those_of_bitsandbytes(kind, shape):
    one, other = four_bits(96, 128, kind), four_bits(96, 128, kind)
    given = inputs_of(one, shape)
    assert torch.equal(packed.shortened(one)(given), other(given))
    turned = inputs_of(one, (shape[1], shape[0])).transpose(0, 1)  # not one row behind the other
    assert torch.equal(packed.shortened(one)(turned), other(turned))


@torch.inference_mode()
def test_joined_is_one_below_the_other():
    modules = [four_bits(rows, 128) for rows in (64, 32, 32)]
    given = inputs_of(modules[0], (3, 5))
    right = torch.cat([four_bits(rows, 128)(given) for rows in (64, 32, 32)], -1)
    assert torch.equal(torch.cat([one(given) for one in packed.joined(modules)], -1), right)


@torch.inference_mode()
def test_numbers_of_another_type_go_through_bitsandbytes(fast):
    module = four_bits(64, 64)
    given = inputs_of(module, (2, 3)).float()
    assert torch.equal(packed.shortened(module)(given), four_bits(64, 64)(given))


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(2, 96), (1, 32), (0, 64), (1, 63)])
def test_what_does_not_fit_a_matrix_never_gets_to_the_kernel(fast, monkeypatch, shape):
    made = packed.shortened(four_bits(64, 64))
    seen = []
    monkeypatch.setattr(made, "_otherwise", lambda given: seen.append(given.shape))
    monkeypatch.setattr(made, "_kernel", None)
    made(torch.zeros(shape, dtype=torch.bfloat16))
    assert seen == [shape]


@torch.inference_mode()
@pytest.mark.parametrize("version", ["0.48.2", "0.51.0", "1.0.0", "strange"])
def test_a_version_that_was_not_looked_at_is_not_called_itself(fast, monkeypatch, version):
    monkeypatch.setattr(bitsandbytes, "__version__", version)
    module = four_bits(64, 64)
    made = packed.shortened(module)
    assert not isinstance(made, packed._Short)
    given = inputs_of(module, (1, 4))
    assert torch.equal(made(given), four_bits(64, 64)(given))


@torch.inference_mode()
def test_a_kernel_that_gives_other_numbers_is_not_used(fast, monkeypatch):
    monkeypatch.setattr(packed, "_kernel", lambda _kind: lambda *_: None)
    assert not isinstance(packed.shortened(four_bits(64, 64)), packed._Short)


@torch.inference_mode()
def test_weights_that_are_not_as_the_kernel_takes_them_are_not_given_to_it(fast, monkeypatch):
    called = []
    monkeypatch.setattr(packed, "_kernel", lambda _kind: called.append)
    module = four_bits(64, 64)
    state = packed._packed(module)
    state.absmax = state.absmax.float()
    assert not isinstance(packed._multiply(module.weight, state), packed._Short)
    assert called == []


# --- in 16 bits ---


def linear(outputs: int = 200, inputs: int = 96, **options: object) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(inputs, outputs, **{"bias": False, "dtype": torch.bfloat16, **options}).requires_grad_(False)


@torch.inference_mode()
@pytest.mark.parametrize("shape", INPUTS)
def test_the_matrix_of_logits_in_an_order_of_its_own(shape):
    module = linear()
    made = packed.ordered(module)
    given = inputs_of(module, shape)
    assert torch.equal(made(given), module(given))
    assert torch.equal(made(given.float().bfloat16().transpose(0, 1)), module(given.transpose(0, 1)))


@pytest.mark.parametrize(
    "options", [{"dtype": torch.float32}, {"bias": True}, {"dtype": torch.float16}], ids=["fp32", "bias", "fp16"]
)
def test_other_matrices_stay(options):
    module = linear(**options)
    assert packed.ordered(module) is module


def test_a_large_one_is_not_there_twice(monkeypatch):
    monkeypatch.setattr(packed, "_ORDERED_BYTES", 1000)
    module = linear()
    assert packed.ordered(module) is module


@pytest.mark.parametrize("problem", [AttributeError, RuntimeError, TypeError, None])
def test_where_torch_has_no_such_operation_the_module_stays(monkeypatch, problem):
    class Other:
        def __init__(self, module: object) -> None:
            if problem is not None:
                raise problem("gone")

        def __call__(self, given: torch.Tensor) -> torch.Tensor:
            return given[..., :1].expand(*given.shape[:-1], 200)

    monkeypatch.setattr(packed, "_Ordered", Other)
    module = linear()
    assert packed.ordered(module) is module
