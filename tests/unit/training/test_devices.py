"""Peaks of devices by the names that `nvidia-smi -L` gives them, and none where a name only resembles a known one."""

from pathlib import Path

import pytest
import torch

from megagpt.training import devices
from megagpt.training.devices import device_name, peak_tflops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H800", 989.4),
        ("NVIDIA H20", 148.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("A100-SXM4-40GB", 312.0),
        ("NVIDIA A800-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA A40", 149.7),
        ("NVIDIA A10", 125.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71.0),
    ],
)
def test_known_devices(name, peak):
    assert peak_tflops(name, "bf16") == peak
    assert peak_tflops(name, "fp16") == peak
    assert peak_tflops(name, "fp32") is None


@pytest.mark.parametrize(
    "name",
    [
        "Tesla V100-SXM2-32GB",
        "Tesla T4",
        "NVIDIA L4",
        "NVIDIA L40",
        "NVIDIA A10G",
        "NVIDIA A30",
        "NVIDIA GH200 480GB",
        "NVIDIA H200 NVL",
        "NVIDIA RTX A1000 Laptop GPU",
        "NVIDIA RTX A4000",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "AMD Instinct MI300X",
        "CPU",
        "",
    ],
)
def test_others_have_no_peak(name):
    assert peak_tflops(name, "bf16") is None


def test_the_cpu_has_a_name():
    assert device_name(torch.device("cpu")) == "CPU"


@pytest.mark.parametrize(
    ("text", "precision", "is_slow"),
    [
        ("flags\t\t: fpu avx2 avx512f\n", "bf16", True),
        ("flags\t\t: fpu avx2 avx512f avx512_bf16\n", "bf16", False),
        ("flags\t\t: fpu amx_bf16\n", "bf16", False),
        ("Features\t: fp asimd bf16\n", "bf16", False),
        ("Features\t: fp asimd\n", "bf16", True),
        ("flags\t\t: fpu avx2\n", "fp32", False),
        ("hart\t: 0\n", "bf16", False),
    ],
)
def test_a_cpu_without_bfloat16_is_told(
    text: str, precision: str, is_slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\n{text}", encoding="utf-8")
    monkeypatch.setattr(devices, "_CPU_INFO", path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (devices.slow_precision(precision) is not None) == is_slow
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.slow_precision(precision) is None
