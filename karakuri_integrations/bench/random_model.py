"""A model whose random weights are made and quantised on the device, layer by layer: 140 GB never are anywhere.

Its modules are those that transformers makes when it loads a checkpoint, quantised by transformers' own step, so that
passes cost what those of a loaded model cost. Runs in a model's worker thread, in the place of `engines.loading.load`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from ..engines.checkpoint import Checkpoint
from ..engines.loading import Loaded, bitsandbytes_arguments, bitsandbytes_problem, empty_model, report_of
from ..engines.precision import Precision, missing_backend
from ..engines.safety import Tensor

__all__ = ["FORMS", "make_model", "shapes"]

#: What the weights can be held in.
FORMS: Final = ("nf4", "fp4", "bf16", "fp16", "fp32")
_EVERY: Final = 8  # layers, after which something is said


def shapes(checkpoint: Checkpoint) -> list[Tensor]:
    """The tensors that the configuration describes, as a file of them in bf16 would hold them."""
    found = empty_model(checkpoint).named_parameters()
    return [Tensor(name, tuple(one.shape), 2 * one.numel()) for name, one in found]


def make_model(checkpoint: Checkpoint, precision: Precision, device: str, say: Callable[[str], None]) -> Loaded:
    """A model of the checkpoint's configuration, the same at each call on the same kind of device.

    No token that ends a reply, and none that the embedded model's tokenizer lacks, is ever the best one: all replies
    are equally long and have a text.
    """
    import torch

    problem = missing_backend(precision, None) or (bitsandbytes_problem(precision, device) if precision.bits else None)
    if problem is not None:
        raise problem
    place = torch.device(device)
    settings = bitsandbytes_arguments(precision, {"": str(place)}).get("quantization_config")
    dtype = getattr(torch, str(precision.dtype)) if settings is None else settings.bnb_4bit_compute_dtype
    model = empty_model(checkpoint)
    if settings is not None:
        _prepare(model, settings, dtype, place)
    with torch.no_grad():
        _fill(model, dtype, place, say)
        # The tables of positions are no parameters.
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(place)
        head = model.get_output_embeddings().weight
        head[_tokens(checkpoint) :] = 0
        head[sorted(checkpoint.eos_ids)] = 0
    if settings is not None:
        model.hf_quantizer.postprocess_model(model)
    if place.type == "cuda":
        torch.cuda.empty_cache()  # the engine looks at what is free
    return Loaded(model.eval(), report_of(model, checkpoint.source.name, precision, None))


def _prepare(model: Any, settings: Any, dtype: Any, place: Any) -> None:
    """The layers to be quantised become those of bitsandbytes, still without weights."""
    from transformers.quantizers import AutoHfQuantizer

    model.hf_quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=False)
    model.hf_quantizer.preprocess_model(model=model, dtype=dtype, device_map={"": place})


def _fill(model: Any, dtype: Any, place: Any, say: Callable[[str], None]) -> None:
    """Ones for norms, else what a Llama begins its training with; what is quantised is so at once."""
    import torch

    random, deviation = torch.Generator(place).manual_seed(0), model.config.initializer_range
    quantized = _quantized(model, dtype, place)
    for name, empty in _in_order(model, say):
        make = quantized.get(name)
        if make is not None:
            parameter = make(lambda value: value.normal_(0, deviation, generator=random))
        else:
            value = torch.ones(empty.shape, dtype=dtype, device=place)
            parameter = torch.nn.Parameter(value, requires_grad=False)
            if empty.ndim > 1:
                parameter.normal_(0, deviation, generator=random)
        module, _, own = name.rpartition(".")
        setattr(model.get_submodule(module), own, parameter)


def _quantized(model: Any, dtype: Any, place: Any) -> dict[str, Callable[[Callable[[Any], Any]], Any]]:
    """For each weight that is to be quantised what makes it, when it is told how to fill a tensor."""
    import torch

    own = getattr(model, "hf_quantizer", None)
    if own is None:
        return {}
    step = own.get_quantize_ops()
    shapes = {name: one.shape for name, one in model.named_parameters() if own.param_needs_quantization(model, name)}
    # One place for all of them: tensors of their own, freed each time, would leave holes of many sizes.
    place_of_all = torch.empty(max(one.numel() for one in shapes.values()), dtype=dtype, device=place)

    def make(name: str, fill: Callable[[Any], Any]) -> Any:
        value = fill(place_of_all[: shapes[name].numel()].view(shapes[name]))
        return step.convert({name: [value]}, full_layer_name=name, model=model)[name]

    return {name: partial(make, name) for name in shapes}


def _in_order(model: Any, say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """The parameters by name; what is said on the way is how far that is."""
    layers, last = model.config.num_hidden_layers, -1
    for name, empty in [*model.named_parameters()]:
        layer = int(name.split(".")[2]) if ".layers." in name else last
        if layer != last and layer % _EVERY == 0:
            say(f"random weights: layer {layer + 1} of {layers}")
        last = layer
        yield name, empty


def _tokens(checkpoint: Checkpoint) -> int:
    from tokenizers import Tokenizer

    return int(Tokenizer.from_file(str(checkpoint.small_files / "tokenizer.json")).get_vocab_size())
