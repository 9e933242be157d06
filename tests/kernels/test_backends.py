"""How a backend is chosen, and that our `kernels` gets in nobody's way."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from kernels import choice, cpu_backend
from tests.kernels.cases import ON_CPU

ROOT = Path(__file__).parents[2]
OURS = f"import kernels; assert kernels.__path__ == [{str(ROOT / 'kernels')!r}], kernels\n"


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_kernels_imports_no_backend() -> None:
    code = "import sys, kernels; print('torch' in sys.modules, 'kernels.grouped' in sys.modules)"
    assert run_python(code).split() == ["False", "False"]


def test_auto_measures_and_says_what() -> None:
    choice = kernels.resolve_backend()
    assert choice.backend in kernels.BACKENDS
    if not torch.cuda.device_count():
        assert choice.device == "cpu"
        for name in ON_CPU:
            assert re.search(rf"{name} [\d,]+", choice.why), choice
    assert kernels.resolve_backend() is choice  # once


def test_auto_leaves_out_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(choice, "_speed", lambda name, device: {"cpu-float32": 1e9}.get(name, 9e9))
    for faults, chosen in (
        ({}, "cpu-bf16"),
        ({"cpu-bf16": "fails"}, "cpu-int8"),
        ({"cpu-bf16": "fails", "cpu-int8": "needs vnni"}, "cpu-float32"),
    ):
        monkeypatch.setattr(choice, "_fault", lambda name, device, f=faults: f.get(name, ""))
        found = choice._fastest.__wrapped__("cpu")
        assert found.backend == chosen
        for name, fault in faults.items():
            assert f"{name} {fault}" in found.why
    monkeypatch.setattr(choice, "_fault", lambda name, device: "is broken")
    with pytest.raises(RuntimeError, match="no backend runs on cpu: cpu-float32 is broken"):
        choice._fastest.__wrapped__("cpu")


def test_a_coarse_engine_must_be_much_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_fault", lambda name, device: "")
    speeds = {"cpu-float32": 100e9, "cpu-bf16": 120e9, "cpu-int8": 129e9}
    monkeypatch.setattr(choice, "_speed", lambda name, device: speeds[name])
    assert choice._fastest.__wrapped__("cpu").backend == "cpu-float32"
    speeds["cpu-int8"] = 131e9
    found = choice._fastest.__wrapped__("cpu")
    assert found.backend == "cpu-int8"
    assert "cpu-float32 100, cpu-bf16 120, cpu-int8 131" in found.why


def test_an_engine_that_is_wrong_fails_its_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    class Low(cpu_backend.Float32):
        def _bound(self, rows, largest_RG, groups):  # type: ignore[no-untyped-def]
            return largest_RG - 0.1

    assert choice._self_test("cpu-float32", "cpu") == ""
    monkeypatch.setitem(cpu_backend.ENGINES, "cpu-float32", Low)
    assert "failed its self-test: RuntimeError: a similarity is" in choice._self_test(
        "cpu-float32", "cpu"
    )


def test_a_processor_without_the_instructions_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_processor_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(choice, "_fault", choice._fault.__wrapped__)
    with pytest.raises(RuntimeError, match="'cpu-int8' needs a processor with avx512_vnni or"):
        kernels.resolve_backend("cpu-int8")


def test_int8_products_that_saturate_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch._int_mm

    def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return real(a, b).clamp(-(2**15), 2**15 - 1)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    with pytest.raises(RuntimeError, match="int8 products saturate on this machine"):
        cpu_backend._check_int8(64)


@pytest.mark.parametrize(
    ("name", "device", "error", "message"),
    [
        ("cpu", "auto", ValueError, "unknown backend 'cpu', .*one of auto, reference"),
        ("Reference", "auto", ValueError, "one of auto, reference, .*did you mean 'reference'"),
        ("auto", "gpu", ValueError, "unknown device 'gpu', expected auto, cpu, cuda"),
        ("auto", "cuda:x", ValueError, "unknown device 'cuda:x'"),
        ("reference", "cuda", ValueError, "'reference' runs on cpu, not on device 'cuda'"),
        ("cuda", "cpu", ValueError, "'cuda' runs on cuda, not on device 'cpu'"),
        ("auto", "cuda", RuntimeError, "needs CUDA device 'cuda', torch sees 0"),
        ("cuda", "auto", RuntimeError, "'cuda' needs CUDA"),
        ("triton", "auto", RuntimeError, "'triton' needs CUDA"),
    ],
)
def test_a_backend_that_cannot_be_had_is_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str, device: str, error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(error, match=message):
        kernels.resolve_backend(name, device)


def test_open_clip_works_beside_our_kernels() -> None:
    code = OURS + "import open_clip, torch\nprint(len(open_clip.tokenize('a photo')[0]))"
    assert run_python(code).split() == ["77"]


def test_transformers_works_beside_our_kernels() -> None:
    """It looks for a package of that name on PyPI."""
    pytest.importorskip("transformers")
    code = OURS + (
        "import torch\n"
        "from transformers import BertConfig, BertModel\n"
        "sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)\n"
        "model = BertModel(BertConfig(vocab_size=9, intermediate_size=8, **sizes))\n"
        "print(*model(torch.tensor([[1, 2]])).last_hidden_state.shape)\n"
    )
    assert run_python(code).split() == ["1", "2", "8"]
