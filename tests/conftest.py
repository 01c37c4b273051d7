"""Settings of the whole suite: a torch thread a worker (tests run in parallel), coarse pictures, a deterministic
hypothesis.
"""

from base64 import b64decode
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from mvar import plugins
from mvar.analysis import style
from mvar.files import atomic_write

HERE = Path(__file__).parent
# Files whose slow tests take long, the longest first: processes that share the files out then end together.
LONGEST = ("runs/test_damage_product.py", "test_docs.py", "training/test_kills.py", "fuzz/test_documents.py")
LONGEST += ("fuzz/test_sources.py", "test_examples.py", "test_notebooks.py", "test_packaging.py", "fuzz/test_caches.py")
LONGEST += ("fuzz/test_settings.py", "runs/test_first_version.py", "cluster/test_profile_fuzz.py")
LONGEST += ("data/test_pictures.py", "runs/test_runner.py", "analysis/test_report.py", "analysis/test_explorer_page.py")
LONGEST += ("cluster/test_random_kills.py", "cluster/test_accounting.py", "cluster/test_processes.py")
LONGEST += ("test_benchmarks.py", "fuzz/test_samples.py", "test_checkpoint_fuzz.py", "test_compile.py")
PIXEL = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")

torch.set_num_threads(1)
# Before anything counts on a GPU that is not there (fake tensors, dynamo): autograd would keep a thread for it, and
# processes that tests fork could not train.
torch.zeros((), requires_grad=True).backward()
settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=20, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    order = {HERE / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session", autouse=True)
def coarse():
    """Pictures of a quarter of the pixels a side: what tests of reports spend most of their time on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", style.DPI // 4)
        patch.setattr(style, "SCREEN_DPI", style.SCREEN_DPI // 4)
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """Every picture is a pixel, for tests of what stands beside pictures: a report then takes a quarter of its time."""

    def write(figure, path: Path, dpi: int) -> None:
        with atomic_write(path) as file:
            file.write(PIXEL)

    monkeypatch.setattr(style, "_write", write)


@pytest.fixture(autouse=True)
def no_plugins():
    """What a test loads is gone after it."""
    yield
    plugins.forget_all()
