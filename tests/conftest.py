"""Settings of the whole suite: one torch thread a worker (tests run in parallel), and a deterministic hypothesis."""

import pytest
import torch
from hypothesis import HealthCheck, settings

from mvar import plugins

torch.set_num_threads(1)
settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=20, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def no_plugins():
    """What a test loads is gone after it."""
    yield
    plugins.forget_all()
