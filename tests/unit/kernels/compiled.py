"""Compiling Triton kernels for GPUs that are not here: Triton brings all it needs, down to the assembler.

The compiler must not see TRITON_INTERPRET, which other tests of the process set: it runs in a process of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_PROGRAM = """
import importlib, json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
sizes = []
for case in json.load(sys.stdin):
    kernel = getattr(importlib.import_module(case["module"]), case["kernel"])
    multiples = {(place,): [["tt.divisibility", 16]] for place in case["multiples_of_16"]}
    source = ASTSource(kernel, case["signature"], constexprs=case["constexprs"], attrs=multiples)
    made = triton.compile(source, target=GPUTarget("cuda", case["capability"], 32), options=case["options"])
    sizes.append({"cubin_bytes": len(made.asm["cubin"]), "shared_bytes": made.metadata.shared})
print(json.dumps(sizes))
"""


def case(
    module: str,
    kernel: str,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    capability: int,
    num_warps: int = 4,
    num_stages: int = 2,
    multiples_of_16: Sequence[str] = (),
) -> dict[str, Any]:
    """One kernel to compile. `signature`: "*bf16", "i32", "fp32" … or "constexpr" of every argument, in order.

    `multiples_of_16`: addresses and sizes that are such at run time, where Triton looks; it prefetches only those.
    """
    options = {"num_warps": num_warps, "num_stages": num_stages}
    return {
        "module": module,
        "kernel": kernel,
        "signature": signature,
        "constexprs": constexprs,
        "capability": capability,
        "options": options,
        "multiples_of_16": [place for place, name in enumerate(signature) if name in multiples_of_16],
    }


def compile_all(cases: list[dict[str, Any]]) -> list[dict[str, int]]:
    """`cubin_bytes` and `shared_bytes` (of shared memory a block) of each; raises where one does not compile."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    sizes: list[dict[str, int]] = json.loads(run.stdout.splitlines()[-1])
    return sizes
