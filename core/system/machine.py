"""The machine that a run is on: what decides its latencies, as far as the system tells.

Nothing here raises: what a system does not tell is None, or left out. Linux tells it in ``/proc``,
``/sys`` and the control groups of a container; macOS by ``sysctl``.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .cgroups import cpu_quota, memory_limit
from .load import OthersLoad, load_average, usable_cpus

_CPUINFO = Path("/proc/cpuinfo")
_CPUS = Path("/sys/devices/system/cpu")
_BOARD = Path("/sys/firmware/devicetree/base/model")

_DECIDING = {
    **{name: name for name in ("avx", "avx2", "fma", "f16c", "avx_vnni")},
    **{name: name for name in ("avx_vnni_int8", "avx512f", "avx512bw", "avx512vl")},
    **{name: name for name in ("avx512_vnni", "avx512_bf16", "avx512_fp16")},
    **{name: name for name in ("amx_tile", "amx_int8", "amx_bf16", "amx_fp16")},
    **{name: name for name in ("i8mm", "bf16", "sve", "sve2", "sme", "sme2")},
    # Linux names those of Arm otherwise than everyone else.
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
}
"""Instruction sets that decide how fast products of 8 and 16 bits are, and their usual names."""

_DECIDING_APPLE = {
    "hw.optional.neon": "neon",
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_FP16": "fp16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.arm.FEAT_SME2": "sme2",
    "hw.optional.fma": "fma",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512vnni": "avx512_vnni",
}

_THREAD_LIMITS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("ORT_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"),
)
"""Variables by which runtimes are told how many threads to take."""

_PATIENCE = 2.0
"""Seconds that ``sysctl`` may take: it answers in milliseconds or hangs."""


@dataclass(frozen=True)
class Machine:
    """What decides latencies on this machine.

    Attributes:
        processor: The model's name.
        architecture: ``x86_64``, ``aarch64``, ...
        system: The operating system and its release.
        physical_cores: Cores without hyper-threading; None where unknown.
        logical_cores: Cores as the system schedules them.
        usable_cores: How many of those this process may use: its affinity, and the quota of its
            container, which may be a fraction.
        threads: What runtimes were told of threads: variables of the environment and settings of
            backends, by name.
        instruction_sets: Those that decide how fast products of 8 and 16 bits are.
        governor: Of the frequency (``performance``, ``powersave``); None where the system has none
            or does not tell.
        memory_bytes: The machine's memory; None where unknown.
        memory_limit_bytes: What the container may use of it; None where there is no limit.
        load_average: Processes that ran or waited, over the last 1, 5 and 15 minutes; empty where
            unknown.
    """

    processor: str = ""
    architecture: str = ""
    system: str = ""
    physical_cores: int | None = None
    logical_cores: int = 1
    usable_cores: float = 1.0
    threads: Mapping[str, int] = field(default_factory=dict)
    instruction_sets: tuple[str, ...] = ()
    governor: str | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    load_average: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values by the names of the attributes."""
        return {
            **asdict(self),
            "threads": dict(self.threads),
            "instruction_sets": list(self.instruction_sets),
            "load_average": list(self.load_average),
        }


def machine(threads: Mapping[str, int] | None = None) -> Machine:
    """Return what this machine is now; never raises.

    Args:
        threads: Of the run's runtimes, by name, beside what the environment says.
    """
    told = _apple() if platform.system() == "Darwin" else {}
    cpuinfo = _cpuinfo()
    cpus = usable_cpus()
    return Machine(
        processor=_processor(cpuinfo, told),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}".strip(),
        physical_cores=_physical_cores() or _number(told.get("hw.physicalcpu")),
        logical_cores=os.cpu_count() or 1,
        usable_cores=min(float(len(cpus)), cpu_quota() or float("inf")),
        threads={**_threads_of_environment(), **(threads or {})},
        instruction_sets=_instruction_sets(cpuinfo, told),
        governor=_governor(cpus),
        memory_bytes=_memory() or _number(told.get("hw.memsize")),
        memory_limit_bytes=memory_limit(_memory()),
        load_average=load_average(),
    )


@functools.cache
def _cpuinfo() -> Mapping[str, str]:
    """Return the first core's lines of ``/proc/cpuinfo``, and those of the board after them."""
    found: dict[str, str] = {}
    for line in _text(_CPUINFO).splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def _processor(cpuinfo: Mapping[str, str], told: Mapping[str, str]) -> str:
    """Return the processor's name; on Arm it may be no more than its maker's numbers."""
    named = cpuinfo.get("model name") or told.get("machdep.cpu.brand_string")
    if named:
        return " ".join(named.split())
    board = _text(_BOARD).strip("\0\n ")
    numbers = [cpuinfo.get(f"CPU {part}", "") for part in ("implementer", "part")]
    core = f"Arm implementer {numbers[0]}, part {numbers[1]}" if all(numbers) else ""
    known = ", ".join(filter(None, (board or cpuinfo.get("Hardware", ""), core)))
    return known or platform.processor() or platform.machine()


def _instruction_sets(
    cpuinfo: Mapping[str, str], told: Mapping[str, str]
) -> tuple[str, ...]:
    flags = cpuinfo.get("flags") or cpuinfo.get("Features") or ""
    found = [_DECIDING[flag] for flag in flags.split() if flag in _DECIDING]
    found += [name for key, name in _DECIDING_APPLE.items() if told.get(key) == "1"]
    order = list(dict.fromkeys((*_DECIDING.values(), *_DECIDING_APPLE.values())))
    return tuple(sorted(set(found), key=order.index))


def _physical_cores() -> int | None:
    """Return how many groups of sibling threads there are; None where the system tells none."""
    siblings = {
        _text(folder / "topology" / "thread_siblings_list") for folder in _cpu_folders()
    }
    siblings.discard("")
    return len(siblings) or None


def _cpu_folders() -> Iterator[Path]:
    try:
        yield from sorted(_CPUS.glob("cpu[0-9]*"))
    except OSError:
        return


def _governor(cpus: frozenset[int]) -> str | None:
    """Return the governors of the cores that this process may use."""
    places = (_CPUS / f"cpu{n}" / "cpufreq" / "scaling_governor" for n in cpus)
    found = {_text(place).strip() for place in places}
    return ", ".join(sorted(filter(None, found))) or None


def _threads_of_environment() -> dict[str, int]:
    found: dict[str, int] = {}
    for name in _THREAD_LIMITS:
        # OMP_NUM_THREADS may be a list, "4,2": of the outer and the inner loops.
        stated = re.match(r"\s*(\d+)", os.environ.get(name, ""))
        if stated:
            found[name] = int(stated[1])
    return found


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Windows has no such function, and other systems may not know these names.
    except (AttributeError, OSError, ValueError):
        return None


@functools.cache
def _apple() -> Mapping[str, str]:
    """Return what ``sysctl`` tells of the hardware of a Mac, by name; empty where it cannot run."""
    names = ("hw", "hw.optional", "machdep.cpu")
    try:
        told = subprocess.run(
            ["/usr/sbin/sysctl", *names],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        ).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
    lines = (line.partition(": ") for line in told.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


__all__ = ["Machine", "OthersLoad", "load_average", "machine"]
