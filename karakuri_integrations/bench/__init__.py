"""`karakuri bench`: how fast a model runs on this machine, against the machine's ceiling and against others.

Knows the command's options and the order of the measurements. What is measured is `measures`', `eight_bits`',
`load`'s and `machine`'s; who takes part is `providers`' and `peers`'; a model of 70 billion parameters is `large`'s;
how it is shown is `shown`'s and `picture`'s. Those import torch, so they are imported when they are needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import OptionError

if TYPE_CHECKING:
    from .figures import Figure
    from .subject import Effort, Subject

__all__ = ["add_options", "run"]

#: The parts of an ordinary measurement, in their order.
PARTS: Final = ("stream", "first-token", "batch", "prefixes", "lookup", "8-bits", "memory")


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `karakuri bench`."""
    command.add_argument("--model", help="a model id or folder; default: the embedded demonstration model")
    command.add_argument(
        "--synthetic", metavar="SIZE", help="instead: a Llama of this size with random weights; 94m, 70b, 70b-small"
    )
    command.add_argument("--layers", type=int, help="with --synthetic 70b: so many of its 80 layers")
    command.add_argument("--template", help="the prompt template, where the model's name does not tell")
    command.add_argument("--quantization", default="nf4", help="nf4 (default), fp4, int8, bf16, fp16, fp32, none")
    command.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, balanced, offload")
    command.add_argument("--rounds", type=int, default=5, help="rounds of each comparison; default 5")
    command.add_argument("--tokens", type=int, default=64, help="tokens of a reply; default 64")
    command.add_argument("--peers", action="store_true", help="transformers, ChatHuggingFace and HuggingFaceLLM too")
    command.add_argument(
        "--only", action="append", choices=PARTS, help="this part of the measurement only; repeatable; default: all"
    )
    command.add_argument(
        "--load", type=float, metavar="SECONDS", help="instead: 32 clients that come at random for so long"
    )
    command.add_argument("--json", metavar="FILE", help="write the figures there too")
    command.add_argument("--resume", action="store_true", help="with --synthetic 70b: go on with what --json FILE has")
    command.add_argument(
        "--cuda-graphs", action="store_true", help="with --synthetic 70b: LocalEngine(cuda_graphs=True)"
    )
    command.add_argument("--svg", metavar="FILE", help="draw the curve and the comparison there")
    command.add_argument("-v", "--verbose", action="store_true", help="show logs and library warnings")


def run(options: argparse.Namespace) -> int:
    """Measure and show. Progress goes to standard error, the table to standard output."""
    from .synthetic import LARGE

    _check(options)
    if options.synthetic in LARGE:
        return _run_large(options)
    with tempfile.TemporaryDirectory() as folder:
        figures, about = _measured(options, Path(folder))
    from .shown import table

    print(table(figures, about), end="")
    if options.json:
        rows = [one.as_json() for one in figures]
        _write(options.json, json.dumps({"about": about, "figures": rows}, ensure_ascii=False, indent=1) + "\n")
    if options.svg:
        from .picture import picture

        _write(options.svg, picture(figures, _title(about)))
    return 0


def _run_large(options: argparse.Namespace) -> int:
    """A size whose weights are made on the device; the file is written as the measurement goes."""
    from .large import Request, measure
    from .picture import bars
    from .shown import table
    from .subject import Effort

    book = Path(options.json) if options.json else None
    request = Request(
        options.synthetic,
        options.layers,
        options.quantization,
        options.device,
        book,
        options.resume,
        options.cuda_graphs,
    )
    with tempfile.TemporaryDirectory() as folder:
        found = measure(request, Effort(options.rounds, options.tokens, _say), Path(folder))
    print(table(found.figures(), found.about) + "\n".join(found.closing()))
    if options.svg:
        _write(options.svg, bars(found.figures(), _title(found.about)))
    return 0


def _title(about: Mapping[str, Any]) -> str:
    return f"{about['model']}, {about['quantization']}, {about.get('gpu', about['device'])}"


def _check(options: argparse.Namespace) -> None:
    """Before anything is loaded: what was asked for can be done, and its result can be written."""
    from .synthetic import LARGE, SIZES

    for name in ("rounds", "tokens"):
        if getattr(options, name) < 1:
            raise OptionError(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.load is not None and not 1 <= options.load <= 86_400:
        raise OptionError(f"--load must be 1 to 86400 seconds, got {options.load:g}")
    if options.load is not None and (options.peers or options.svg or options.only):
        raise OptionError(
            "--load measures one thing only; leave out --peers, --svg and --only, or run the command twice"
        )
    if options.only and options.peers and {"stream", "batch"}.isdisjoint(options.only):
        raise OptionError("--peers take part in one stream and several at once; add --only stream or --only batch")
    if options.only and options.svg and not {"stream", "batch"} <= {*options.only}:
        raise OptionError("--svg draws one stream and several at once; add --only stream and --only batch")
    if options.synthetic is not None and options.synthetic not in SIZES:
        raise OptionError(f"--synthetic must be one of {', '.join(SIZES)}, got {options.synthetic!r:.40}")
    if options.synthetic is not None and options.model is not None:
        raise OptionError("--synthetic and --model are two models; give one of them")
    large = options.synthetic in LARGE
    if large and (options.peers or options.load is not None or options.only):
        raise OptionError(
            f"--synthetic {options.synthetic} measures generate beside it and nothing else; leave out --peers, --load "
            "and --only"
        )
    if large and options.template is not None:
        raise OptionError(f"--synthetic {options.synthetic} has a template of its own; leave out --template")
    if not large and (options.layers is not None or options.resume or options.cuda_graphs):
        raise OptionError(f"--layers, --resume and --cuda-graphs go with --synthetic {' or '.join(LARGE)}")
    if options.layers is not None and options.layers < 1:
        raise OptionError(f"--layers must be at least 1, got {options.layers}")
    if options.resume and options.json is None:
        raise OptionError("--resume goes on with the file of --json; give that too")
    for path in (options.json, options.svg):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise OptionError(f"{path!r:.120} cannot be written: its folder does not exist")
        if path is not None and Path(path).is_dir():
            raise OptionError(f"{path!r:.120} cannot be written: it is a folder")


def _measured(options: argparse.Namespace, folder: Path) -> tuple[list[Figure], dict[str, Any]]:
    from .machine import describe
    from .subject import Effort, Subject

    model, template = options.model, options.template
    if options.synthetic is not None:
        from ..engines.loading import import_torch
        from .synthetic import make_checkpoint

        import_torch()
        model = str(make_checkpoint(options.synthetic, folder))
    subject = Subject(model, template, options.quantization, options.device)
    effort = Effort(options.rounds, options.tokens, _say)
    try:
        _say("loading the model")
        report = subject.plain.report()
        device = subject.look(lambda batch: batch.model.get_input_embeddings().weight.device)
        about = {"model": report.model, "quantization": report.quantization, **describe(device)}
        if options.load is not None:
            from .load import load

            return load(subject, effort, options.load), about
        return _parts(subject, effort, options.only or PARTS, options.peers), about
    finally:
        subject.close()


def _parts(subject: Subject, effort: Effort, wanted: Collection[str], with_peers: bool) -> list[Figure]:
    from . import machine, measures
    from .eight_bits import eight_bits
    from .peers import peers
    from .providers import ours

    compared = not {"stream", "batch"}.isdisjoint(wanted)
    others = [*ours(subject, effort), *(peers(subject, effort) if with_peers else [])] if compared else []

    def stream() -> list[Figure]:
        return measures.one_stream(subject, effort, others)

    def batch() -> list[Figure]:
        return [*measures.curve(subject, effort), *measures.together(subject, effort, others)]

    parts: dict[str, Callable[[], list[Figure]]] = {
        "stream": stream,
        "first-token": lambda: measures.first_token(subject, effort),
        "batch": batch,
        "prefixes": lambda: measures.chat_and_document(subject, effort),
        "lookup": lambda: measures.lookup(subject, effort),
        "8-bits": lambda: eight_bits(subject, effort),
        "memory": lambda: measures.memory(subject, effort),
    }
    found = [one for name in PARTS if name in wanted for one in parts[name]()]
    if "stream" in wanted:  # its rate is set beside the ceiling
        assert found[0].value is not None  # noqa: S101  # it was measured
        found += machine.ceiling(subject, effort, found[0].value.median)
    return found


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OptionError(f"{path!r:.120} cannot be written: {error.strerror}") from error
