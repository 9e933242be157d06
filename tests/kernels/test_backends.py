"""How a backend is chosen, and that our `kernels` gets in nobody's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels

ROOT = Path(__file__).parents[2]
OURS = f"import kernels; assert kernels.__path__ == [{str(ROOT / 'kernels')!r}], kernels\n"


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_kernels_imports_no_backend() -> None:
    code = (
        "import sys, kernels; print('torch' in sys.modules, 'kernels.torch_backend' in sys.modules)"
    )
    assert run_python(code).split() == ["False", "False"]


def test_auto_is_resolved_by_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert kernels.resolve_backend() == "torch-cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert kernels.resolve_backend() == "torch-cuda"
    assert kernels.resolve_backend(device="cuda:1") == "torch-cuda"
    assert kernels.resolve_backend(device="cpu") == "torch-cpu"
    for name in kernels.BACKENDS:
        assert kernels.resolve_backend(name) == name


@pytest.mark.parametrize(
    ("name", "device", "error", "message"),
    [
        ("torch-gpu", "auto", ValueError, "unknown backend 'torch-gpu', .*mean 'torch-cpu'"),
        ("Reference", "auto", ValueError, "one of auto, reference, .*did you mean 'reference'"),
        ("auto", "gpu", ValueError, "unknown device 'gpu', expected auto, cpu, cuda"),
        ("auto", "cuda:x", ValueError, "unknown device 'cuda:x'"),
        ("reference", "cuda", ValueError, "'reference' runs on cpu, not on device 'cuda'"),
        ("torch-cuda", "cpu", ValueError, "'torch-cuda' runs on cuda, not on device 'cpu'"),
        ("auto", "cuda", RuntimeError, "needs CUDA device 'cuda', torch sees 0"),
        ("torch-cuda", "auto", RuntimeError, "'torch-cuda' needs CUDA"),
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
