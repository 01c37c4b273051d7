"""MobileNetV2's real weights, as `make test` installs them: without them a test is skipped, or fails where asked to."""

import os
from importlib.util import find_spec

import pytest

from mvar.evaluation.extractors.mobilenet import MODULE


def need_mobilenet() -> None:
    """Skip, or fail, where the weights are not installed."""
    if find_spec(MODULE) is None:
        missing = pytest.fail if os.environ.get("REQUIRE_MOBILENET") else pytest.skip
        missing(f"MobileNetV2's weights ({MODULE}) are not installed: `make .venv/weights`")
