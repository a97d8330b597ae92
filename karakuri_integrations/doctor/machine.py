"""What there is: the package's extras, torch, the processor, devices and their free memory. Runs without torch."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ..engines.memory import free_ram

__all__ = ["NAME", "Device", "Extra", "Processor", "Torch", "devices", "extras", "processor", "torch_here"]

NAME: Final = "karakuri-integrations"
_REQUIREMENT: Final = re.compile(r"""([\w.-]+)\s*([^;\[]*?)\s*;\s*extra\s*==\s*['"]([\w-]+)['"]""")
_EXTRAS: Final = ("langchain", "llama-index", "local", "remote", "sagemaker")
#: Words of /proc/cpuinfo that say how fast this processor can be with 4-bit and bf16 weights.
_FLAGS: Final = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


@dataclass(frozen=True)
class Extra:
    """One of the package's extras: what of it is installed, in which version, what is missing and what installs it."""

    name: str
    installed: Mapping[str, str]
    missing: tuple[str, ...]
    line: str = ""


@dataclass(frozen=True)
class Torch:
    """`cuda` is the version that it was built for, None in a build without."""

    version: str
    cuda: str | None
    threads: int


@dataclass(frozen=True)
class Processor:
    """`fast_nf4`: bitsandbytes' fused 4-bit code runs on it; None where that cannot be known."""

    name: str
    flags: tuple[str, ...]
    fast_nf4: bool | None


@dataclass(frozen=True)
class Device:
    """Where weights can be. Bytes; None where they cannot be known. `name` is what `--device` takes."""

    name: str
    what: str
    free: int | None
    total: int | None = None
    bf16: bool | None = None


def extras() -> list[Extra]:
    """By the package's own metadata, so that what it names here is what pip would install."""
    try:
        requirements = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:  # run from a folder; nothing says what belongs to what
        requirements = []
    wanted: dict[str, list[str]] = {}
    for one in requirements:
        if (match := _REQUIREMENT.match(one)) and match[1] != NAME:
            wanted.setdefault(match[3], []).append(match[1])
    return [_extra(name, wanted[name]) for name in _EXTRAS if name in wanted]


def _extra(name: str, packages: Sequence[str]) -> Extra:
    versions = {one: _version(one) for one in packages}
    missing = tuple(one for one, version in versions.items() if version is None)
    installed = {one: version for one, version in versions.items() if version is not None}
    return Extra(name, installed, missing, f'pip install "{NAME}[{name}]"' if missing else "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def torch_here() -> Torch | None:
    """What torch itself says; None where it is not installed."""
    if find_spec("torch") is None:
        return None
    import torch

    return Torch(str(torch.__version__), torch.version.cuda, torch.get_num_threads())


def processor() -> Processor:
    """Name and the instructions that matter; only Linux tells."""
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    words = flags[1].split() if flags else []
    return Processor(
        name[1].strip() if name else platform.processor() or "unknown",
        tuple(one for one in _FLAGS if one in words),
        "avx512_bf16" in words if words else None,
    )


def devices() -> list[Device]:
    """Main memory, each GPU, and several GPUs together."""
    cards = _cards()
    found = [_main_memory(), *cards]
    if len(cards) > 1:
        free = sum(one.free or 0 for one in cards)
        found.append(Device("balanced", f"{len(cards)} GPUs together", free, None, all(one.bf16 for one in cards)))
    return found


def _main_memory() -> Device:
    try:
        return Device("cpu", "main memory", free_ram(), bf16=True)
    except ImportError:  # psutil comes with the extra `local`
        return Device("cpu", "main memory", None, bf16=None)


def _cards() -> list[Device]:
    if find_spec("torch") is None:
        return _cards_without_torch()
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        # Older cards only emulate bf16; the loader computes in fp16 there.
        bf16 = torch.cuda.get_device_capability(number) >= (8, 0)
        found.append(Device(f"cuda:{number}", torch.cuda.get_device_name(number), free, total, bf16))
    return found


def _cards_without_torch() -> list[Device]:
    """What the driver's own tool says, where there is one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 2) for line in shown.splitlines() if line.count(",") >= 2]
    return [
        Device(f"cuda:{number}", name.strip(), int(float(free)) * 2**20, int(float(total)) * 2**20)
        for number, (name, free, total) in enumerate(rows)
    ]
