"""Dense peak FLOP/s of known devices, for model FLOP/s utilisation (MFU). Unknown devices have none, and no MFU."""

import re
from pathlib import Path

import torch

# dense (no sparsity) tensor-core peaks for bf16 and fp16 with fp32 accumulation, in TFLOP/s, from vendors' data sheets;
# the first entry whose words are all among the words of the device's name counts
PEAK_TFLOPS_16BIT: tuple[tuple[tuple[str, ...], float], ...] = (
    (("B200",), 2250.0),
    (("H200",), 989.4),
    (("H100", "PCIe"), 756.5),
    (("H100", "NVL"), 835.0),
    (("H100",), 989.4),
    (("H800", "PCIe"), 756.5),
    (("H800",), 989.4),
    (("H20",), 148.0),
    (("A100",), 312.0),
    (("A800",), 312.0),
    (("L40S",), 362.05),
    (("A40",), 149.7),
    (("A10",), 125.0),
    (("RTX", "4090"), 165.2),
    (("RTX", "3090"), 71.0),
)
# words that make it another device than the entry without them: cut-down, mobile or partitioned
OTHER_DEVICE_WORDS = frozenset({"NVL", "MIG", "D", "Ti", "SUPER", "Laptop", "Max", "Mobile"})


def device_name(device: torch.device) -> str:
    """What the driver calls the device; "CPU" for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak_tflops(name: str, precision: str) -> float | None:
    """Dense peak of a device in TFLOP/s, or None where it is not known (also for fp32: TF32 settings decide there)."""
    if precision == "fp32":
        return None
    words = set(name.replace("-", " ").split())
    for wanted, peak in PEAK_TFLOPS_16BIT:
        if words.issuperset(wanted):
            return None if words & OTHER_DEVICE_WORDS - set(wanted) else peak
    return None


_CPU_INFO = Path("/proc/cpuinfo")


def slow_precision(precision: str) -> str | None:
    """What to tell of a precision that the CPU is slow in, where that is what trains: bfloat16 without instructions.

    None where there is a GPU, where it is not slow, and where the processor does not say what it has.
    """
    if precision != "bf16" or torch.cuda.is_available() or not _CPU_INFO.exists():
        return None
    text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    if found is None or set(found[1].split()) & {"avx512_bf16", "amx_bf16", "bf16"}:
        return None
    return 'this CPU has no bfloat16 instructions: train.precision = "fp32" is faster on it'
