"""Triton's kernels: right in its interpreter, and compiled for GPUs that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]

COMPILE = """
import subprocess, tempfile, triton, triton.language as tl
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import kernels.triton_backend as backend

def compiled(kernel, signature, tile, capability, sum_type):
    constants = dict(
        dimensions=640, tile_rows=tile.rows, tile_queries=tile.queries,
        tile_dimensions=tile.dimensions, width=64, together=8, sum_type=sum_type,
    )
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

for number, sum_type in (("fp16", tl.float32), ("i8", tl.int32)):
    out = "*fp32" if number == "fp16" else "*i32"
    tile = backend._HOPPER
    signature = dict(
        x=f"tensordesc<{number}[{tile.rows},{tile.dimensions}]>",
        q=f"tensordesc<{number}[{tile.queries},{tile.dimensions}]>",
        out=out, rows="i32", query_tiles="i32", out_stride="i32", programs="i32",
    )
    made = compiled(backend._largest_tma, signature, tile, 90, sum_type)
    print(number, "tma", "wgmma" in made.asm["ptx"], made.metadata.shared)
    for capability in (80, 90):
        signature = dict(
            x="*" + number, q="*" + number, out=out, rows="i32", query_tiles="i32",
            x_stride="i32", q_stride="i32", out_stride="i32",
        )
        made = compiled(backend._largest, signature, backend._OTHERS, capability, sum_type)
        print(number, capability, "mma" in made.asm["ptx"], made.metadata.shared)
"""


def test_the_kernels_are_right_in_the_interpreter() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/kernels/interpreted_triton.py",
        ],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_the_kernels_compile_for_a100_and_h100() -> None:
    """Offline: tensor-core instructions, and shared memory that those GPUs have."""
    code = COMPILE
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", "exec(open(0).read())"],
        input=code,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert line[2] == "True", line
        assert int(line[3]) <= (232_448 if line[1] in ("tma", "90") else 166_912), line
