"""Our own pass of a Llama beside transformers' on the same modules: the same numbers, to the last bit.

Where heads share keys, SDPA adds up in another order (one head with several queries), which only masked passes show.
"""

from __future__ import annotations

import pytest
import torch

from karakuri_integrations.engines import LocalEngine
from karakuri_integrations.engines.forward import Forward
from karakuri_integrations.engines.key_values import KeyValues
from karakuri_integrations.engines.llama_pass import LlamaPass
from karakuri_integrations.engines.memory import KV_CACHE_DTYPES

from .conftest import answer, loaded_model, make_model, make_tokenizer

LONG = [5 + n % 300 for n in range(150)]

#: Shapes of what is asked of a pass: first row, new ids of each row, their starts, wanted columns.
PASSES = [
    (0, [LONG[:100]], [0], 1),
    (0, [LONG[100:]], [100], 1),
    (1, [LONG[:37]], [0], 1),
    (2, [LONG[50:149]], [0], 1),
    (0, [[7], [8], [9]], [150, 37, 99], 1),
    (0, [[7], [8, 9, 10], [11, 12]], [151, 38, 100], 3),
    (0, [[7]], [152], 1),
    (0, [[7, 8, 9, 10]], [153], 4),
]


@pytest.fixture(scope="module", params=["nf4", "int8", "bf16", "fp32"])
def model(checkpoint, request):
    engine = LocalEngine(checkpoint, device="cpu", quantization=request.param)
    yield loaded_model(engine)
    engine.close()


def both(model) -> tuple[Forward, Forward]:
    ours, theirs = Forward(model), Forward(model)
    theirs._begun = True  # so that it never looks for ours
    ours._cores = theirs._cores = None
    return ours, theirs


def check(model, dtype: str = "auto") -> None:
    """Exact where each head has keys of its own, and in bf16 where nothing is masked; else to the type's rounding.

    In fp32 a matrix times one token is rounded otherwise than times many, and ours leaves out what nobody looks at.
    """
    alike = model.config.num_attention_heads == model.config.num_key_value_heads
    single = next(model.parameters()).dtype == torch.float32
    near = 2**-18 if single else 2**-9
    ours, theirs = both(model)
    mine, others = KeyValues(dtype), KeyValues(dtype)
    exact = alike or not single
    for first, new, starts, wanted in PASSES:
        for values in (mine, others):
            values.reserve(first + len(new), 256, 10**6)
        found, right = (run(values, first, new, starts, wanted) for run, values in ((ours, mine), (theirs, others)))
        assert isinstance(ours._run(), LlamaPass)
        exact = alike or (exact and len(new) == 1)
        if single and wanted < max(map(len, new)):
            exact = False
        for row, ids in enumerate(new):
            filled = wanted - (max(map(len, new)) - len(ids))  # what is behind a shorter row's end is nobody's
            one, other = found[row, :filled].float(), right[row, :filled].float()
            assert torch.equal(one, other) if exact else (one - other).norm() < near * other.norm()


@pytest.mark.parametrize("dtype", KV_CACHE_DTYPES)
def test_the_same_bits(model, dtype):
    check(model, dtype)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "head_dim": 32},
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 32},
        {"hidden_act": "gelu"},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        {
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
            "max_position_embeddings": 64,
        },
    ],
    ids=lambda one: next(iter(one)) + str(next(iter(one.values())))[:30],
)
@pytest.mark.parametrize("quantization", ["nf4", "fp32"])
def test_other_llamas(tmp_path, settings, quantization):
    make_model(tmp_path, **settings)
    make_tokenizer(tmp_path)
    engine = LocalEngine(tmp_path, device="cpu", quantization=quantization, template="karakuri-lm-70b-chat-v0.1")
    check(loaded_model(engine))
    engine.close()


def test_matrices_that_read_the_same_are_one_and_take_no_memory(checkpoint):
    import bitsandbytes

    engine = LocalEngine(checkpoint, device="cpu", quantization="nf4")
    model = loaded_model(engine)
    before = sum(one.nbytes for one in model.parameters())
    answer(engine)
    attention = model.model.layers[0].self_attn
    assert isinstance(attention.q_proj, bitsandbytes.nn.Linear4bit)
    parts = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    if getattr(parts[0].quant_state, "packing_format_for_cpu", False):  # where the CPU has bitsandbytes' fast code
        assert len({one.untyped_storage().data_ptr() for one in parts}) == 1
        assert parts[0].untyped_storage().nbytes() == sum(one.nbytes for one in parts)
    assert sum(one.nbytes for one in model.parameters()) == before
    engine.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"num_key_value_heads": 1},
        {"intermediate_size": 176},
        {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 160},
    ],
    ids=["16-rows", "176-rows", "96-columns"],
)
def test_shapes_that_bitsandbytes_cannot_pack(tmp_path, settings):
    """Its fast CPU format takes 32 rows and a block of columns together; what has others runs on its general code."""
    make_model(tmp_path, **settings)
    make_tokenizer(tmp_path)
    engine = LocalEngine(tmp_path, device="cpu", quantization="nf4", template="karakuri-lm-70b-chat-v0.1")
    assert answer(engine)
    check(loaded_model(engine))
    engine.close()


def test_hooks_on_modules_are_called(checkpoint):
    """Whoever looks at the model's modules sees each pass, as with transformers' own."""
    engine = LocalEngine(checkpoint, device="cpu", quantization="fp32")
    right, seen = answer(engine), []
    hook = loaded_model(engine).model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    assert answer(engine) == right
    hook.remove()
    count = len(seen)
    assert count
    assert answer(engine) == right
    assert len(seen) == count
    engine.close()


def test_other_models_keep_their_own_pass():
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = MistralForCausalLM(MistralConfig(vocab_size=64, num_hidden_layers=1, **sizes))
    assert LlamaPass.of(model) is None


@pytest.mark.parametrize("quantization", ["nf4", "fp32"])
def test_places_behind_the_window(checkpoint, quantization):
    """A short row beside a longer one has places behind its end, and a window may be set wider than the model's."""
    engine = LocalEngine(checkpoint, device="cpu", quantization=quantization)
    ours, theirs = both(loaded_model(engine))
    for start, more in ((4090, 20), (4600, 3)):
        found = []
        for run in (ours, theirs):
            values = KeyValues()
            values.reserve(2, start + more, 10**6)
            run(values, 0, [[5, 6]], [0], 1)
            run(values, 1, [[5]], [0], 1)
            found.append(run(values, 0, [[7], [8] * more], [start, 1], more))
        assert torch.allclose(*found, rtol=0.05, atol=0.05)
    engine.close()


def test_a_window_that_is_set_wider(tmp_path):
    make_model(tmp_path, max_position_embeddings=64)
    make_tokenizer(tmp_path)
    engine = LocalEngine(
        tmp_path, device="cpu", quantization="fp32", template="karakuri-lm-70b-chat-v0.1", context_window=1024
    )
    assert len(engine.token_ids(answer(engine, max_tokens=700))) > 600
    engine.close()


@pytest.mark.parametrize("starts", [[0, 0, 0], [20, 0, 7]])
def test_prompts_side_by_side(model, starts):
    """Of each row the logits behind its own last token; of a part of a prompt none, and nothing but its keys is kept."""
    ours, theirs = both(model)
    mine, others = KeyValues(), KeyValues()
    for values in (mine, others):
        values.reserve(5, 256, 10**6)
    for row, start in enumerate(starts):
        if start:
            assert ours(mine, 2 + row, [LONG[:start]], [0], 0).shape[:2] == (1, 0)
            theirs(others, 2 + row, [LONG[:start]], [0], 1)
    new = [LONG[start:end] for start, end in zip(starts, (60, 33, 19), strict=True)]
    ends = [len(one) - 1 for one in new]
    found, right = ours(mine, 2, new, starts, ends), theirs(others, 2, new, starts, ends)
    assert found.shape == right.shape == (3, 1, 400)
    assert (found - right).float().norm() < 2**-6 * right.float().norm()
    rows, lengths = range(2, 5), [start + len(one) for start, one in zip(starts, new, strict=True)]
    for row, length, start in zip(rows, lengths, starts, strict=True):
        alone = KeyValues()
        alone.reserve(1, 256, 10**6)
        last = theirs(alone, 0, [LONG[:length]], [0], 1)
        assert (last[0, 0] - found[row - 2, 0]).float().norm() < 2**-5 * last.float().norm()
        for layer in (0, 1):
            for one, other in zip(mine.layer(layer, []), alone.layer(layer, []), strict=True):
                gap = (one[row, :, :length] - other[0, :, :length]).float()
                assert gap.norm() < 2**-5 * other[0, :, :length].float().norm(), (row, layer, start)
