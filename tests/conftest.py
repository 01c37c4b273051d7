"""Settings of the whole suite: one torch thread a worker (tests run in parallel), and a deterministic hypothesis."""

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=20, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
