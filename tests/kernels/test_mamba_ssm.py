"""Our scan against mamba-ssm's real Triton kernel, run on the CPU by Triton's interpreter: what a GPU user gets."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLED = Path(sys.prefix) / "mamba-ssm"  # where `make test` puts the package's Python files, without CUDA builds


def folder_of_mamba_ssm() -> Path:
    if (INSTALLED / "mamba_ssm").is_dir():
        return INSTALLED
    spec = find_spec("mamba_ssm")
    if spec and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]).parent
    reason = f"mamba-ssm is neither installed nor in {INSTALLED}: `make .venv/mamba-ssm`"
    if os.environ.get("REQUIRE_MAMBA_SSM"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.mark.slow
def test_scan_agrees_with_mamba_ssms_kernel():
    """Forward, final state and all gradients, with and without a state before, at lengths no multiple of a chunk."""
    folder = folder_of_mamba_ssm()
    if find_spec("triton") is None:
        pytest.skip("triton is not installed: torch's CPU build comes without it")
    driver = Path(__file__).with_name("mamba_ssm_driver.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, driver, folder], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    cases = json.loads(ended.stdout.splitlines()[-1])
    assert [sorted(case) for case in cases][1] == sorted(
        ["y", "final_state", "grad_x", "grad_dt", "grad_A", "grad_B", "grad_C", "grad_D", "grad_state"]
    )
    for case in cases:
        for name, error in case.items():
            assert error < 4e-6, f"{name}: relative error {error}"  # both compute in fp32
