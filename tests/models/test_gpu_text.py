"""Every kernel of whole models, compiled for GPUs that are not here: sm_90 and gfx90a."""

from __future__ import annotations

import re

import pytest
from gpu_offline import GFX_90A, SM_90, hip, model_kernels, nvrtc

from packhorse.compiler.lower_gpu import c_name, gpu_program

pytestmark = pytest.mark.models

MODELS = ("resnet50", "mobilenet_v2", "minilm_l6", "lstm")


@pytest.mark.parametrize("name", MODELS)
def test_cuda(name, untrained, feeds):
    """No kernel spills registers, or wants more of them than its group can have."""
    kernels = model_kernels(untrained(name), feeds(name), SM_90)
    cubin, usage = nvrtc(gpu_program(kernels, "cuda"))
    assert set(usage) == {c_name(symbol) for symbol, _, _ in kernels}
    for symbol, _, plan in kernels:
        taken = usage[c_name(symbol)]
        assert (taken.spilled, taken.stack) == (0, 0), symbol
        assert taken.registers * plan.group <= 65536, symbol
        assert taken.shared <= SM_90.local_bytes, symbol
    assert cubin[:4] == b"\x7fELF"


@pytest.mark.parametrize("name", MODELS)
def test_hip(name, untrained, feeds, tmp_path):
    kernels = model_kernels(untrained(name), feeds(name), GFX_90A)
    text = hip(gpu_program(kernels, "hip"), tmp_path)
    assert all(f".amdhsa_kernel {c_name(symbol)}" in text for symbol, _, _ in kernels)
    assert set(re.findall(r"gpr_spill_count: +(\d+)", text)) == {"0"}
