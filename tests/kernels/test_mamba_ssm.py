"""Our kernels against Triton kernels of mamba-ssm and fla-core, run on the CPU by Triton's interpreter."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]
INSTALLED = Path(sys.prefix) / "mamba-ssm"  # where `make test` puts the package's Python files, without CUDA builds


def folder_of_mamba_ssm() -> Path:
    if (INSTALLED / "mamba_ssm").is_dir():
        return INSTALLED
    spec = find_spec("mamba_ssm")
    if spec and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]).parent
    missing(f"mamba-ssm is neither installed nor in {INSTALLED}: `make .venv/mamba-ssm`")


def missing(reason: str) -> NoReturn:
    """Skip what cannot be compared here; where it must be, that fails."""
    if os.environ.get("REQUIRE_MAMBA_SSM"):
        pytest.fail(reason)
    pytest.skip(reason)


# Largest relative errors: both compute in fp32; half precision rounds what the kernel keeps in between, to 2^-8.
TOLERANCE = {"torch.float32": 4e-6, "torch.bfloat16": 2e-2}


def errors_of(driver: str, *arguments: object) -> dict[str, list[dict[str, float]]]:
    """What a driver prints: by precision and case the relative error of each tensor."""
    if find_spec("triton") is None:
        missing("triton is not installed: torch's CPU build comes without it")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, Path(__file__).with_name(driver), *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found.keys() == TOLERANCE.keys()
    for precision, cases in found.items():
        for number, case in enumerate(cases):
            for name, error in case.items():
                assert error < TOLERANCE[precision], f"{precision}, case {number}, {name}: relative error {error}"
    return found


def test_a_kernel_that_must_be_compared_is_not_skipped(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "find_spec", lambda name: None)
    for required, outcome in (("", pytest.skip.Exception), ("1", pytest.fail.Exception)):
        monkeypatch.setenv("REQUIRE_MAMBA_SSM", required)
        with pytest.raises(outcome, match="triton is not installed"):
            errors_of("mamba_ssm_driver.py")


@pytest.mark.slow
def test_scan_agrees_with_mamba_ssms_kernel():
    """Forward, final state and all gradients, with and without a state before, at lengths no multiple of a chunk."""
    found = errors_of("mamba_ssm_driver.py", folder_of_mamba_ssm())
    for cases in found.values():
        assert [sorted(case) for case in cases][1] == sorted(
            ["y", "final_state", "grad_x", "grad_dt", "grad_A", "grad_B", "grad_C", "grad_D", "grad_state"]
        )


@pytest.mark.slow
def test_scan_and_convolution_agree_with_fla_cores_kernels():
    """Forward: `chunk_simple_gla` as Mamba-2's scan, and `causal_conv1d`, with and without what was before."""
    for cases in errors_of("fla_driver.py").values():
        assert [sorted(case) for case in cases] == [["state", "y"]] * 3 + [["tail", "y"]] * 2
