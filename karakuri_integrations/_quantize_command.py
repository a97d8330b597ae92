"""`karakuri quantize`: write a quantised copy of a checkpoint, or verify one. Knows arguments and what is printed."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InsufficientMemoryError, OptionError

if TYPE_CHECKING:
    from .engines.checkpoint import Checkpoint
    from .engines.manifest import Manifest

__all__ = ["add_quantize"]

_EPILOG = """\
The copy is loaded as it is: ChatKarakuri(model="OUT"), karakuri chat --model OUT. An interrupted run goes on when the
same command is run again. --verify OUT checks the SHA-256 of every file and the logits that were recorded; --verify
MODEL OUT compares the logits with those of the source, quantised in memory."""


def add_quantize(commands: Any) -> None:
    """Add the command to an argument parser's subparsers."""
    command = commands.add_parser(
        "quantize",
        help="write a 4-bit (or 8-bit) copy of a checkpoint, or verify one",
        epilog=_EPILOG,
        usage="karakuri quantize MODEL OUT [options]\n       karakuri quantize --verify [MODEL] OUT [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=_quantize)
    command.add_argument("paths", nargs="+", metavar="MODEL OUT", help="a model id or folder; the folder to write")
    command.add_argument("--verify", action="store_true", help="check the copy in OUT instead of writing it")
    command.add_argument("--quantization", help="nf4 (default), fp4, int8")
    command.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1")
    command.add_argument("--revision", help="a branch, tag or (safest) the full commit hash on the hub")
    command.add_argument("--local-files-only", action="store_true", help="never contact the hub")
    command.add_argument("--no-logits", action="store_true", help="hashes only: load neither the source nor the copy")
    command.add_argument("-v", "--verbose", action="store_true", help="show logs and library warnings")


def _quantize(options: argparse.Namespace) -> int:
    if not 2 - options.verify <= len(options.paths) <= 2:
        form = "--verify OUT or --verify MODEL OUT" if options.verify else "MODEL OUT"
        raise OptionError(f"karakuri quantize takes {form}, got {len(options.paths)} names")
    folder = Path(options.paths[-1]).expanduser().resolve()
    if options.verify:
        if options.quantization:
            raise OptionError("--quantization is for writing; what a copy is quantised to stands in its manifest")
        _verify(options, folder)
    else:
        _write(options, folder)
    return 0


def _source(options: argparse.Namespace) -> Checkpoint | None:
    from .engines.checkpoint import Checkpoint, source_of

    if len(options.paths) < 2:
        if options.revision or options.local_files_only:
            raise OptionError("--revision and --local-files-only are about MODEL; name it before OUT or leave them out")
        return None
    return Checkpoint(source_of(options.paths[0], options.revision, None, options.local_files_only))


def _write(options: argparse.Namespace, folder: Path) -> None:
    from .engines.precision import precision_of, quantization_advice
    from .engines.quantizing import FORMS, quantize

    if options.quantization not in (None, *FORMS):
        advice = quantization_advice(options.quantization, FORMS)
        raise OptionError(
            f"--quantization must be one of {', '.join(FORMS)}, got {options.quantization!r:.40}; {advice}"
        )
    source = _source(options)
    assert source is not None  # noqa: S101  # two names were given
    try:
        manifest = quantize(source, folder, precision_of(options.quantization or "nf4"), options.device)
    except KeyboardInterrupt:
        print("\nkarakuri: interrupted; run the same command again to go on", file=sys.stderr)
        raise
    size = sum(one.bytes for one in manifest.files.values())
    print(f"{folder.name}: {manifest.recipe.model} as {manifest.recipe.quantization}, {size / 1e6:,.1f} MB")
    if not options.no_logits:
        _compare(manifest, folder, source, options.device)
    print(f"use it: karakuri chat --model {options.paths[-1]}")


def _compare(manifest: Manifest, folder: Path, source: Checkpoint, device: str) -> None:
    from .engines.checkpoint import Checkpoint
    from .engines.verifying import compare_with_source

    if manifest.recipe.commit and not source.source.revision:  # the commit that the copy was made from
        source = Checkpoint(replace(source.source, revision=manifest.recipe.commit))
    try:
        compared, sentence = compare_with_source(manifest, folder, source, device)
    except InsufficientMemoryError as error:
        print(
            f"the logits were not compared, the files are written and hashed: {error}; then run karakuri quantize "
            "--verify MODEL OUT",
            file=sys.stderr,
        )
        return
    if manifest.logits is None:
        with contextlib.suppress(OSError):  # a copy that may only be read can be compared too
            compared.write(folder)
    print(sentence)


def _verify(options: argparse.Namespace, folder: Path) -> None:
    from .engines.verifying import check_files_intact, compare_with_record

    manifest = check_files_intact(folder)
    print(f"{folder.name}: {len(manifest.files)} files are what was written")
    if options.no_logits:
        return
    source = _source(options)
    if source is None:
        print(compare_with_record(manifest, folder, options.device))
    else:
        _compare(manifest, folder, source, options.device)
