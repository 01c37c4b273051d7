"""docs/data.md names every source and every one of its settings, and what it says of files is so."""

from pathlib import Path

import pytest

from mvar.data.sources import fashion
from mvar.registries import SOURCES

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


@pytest.mark.parametrize("name", SOURCES.paths)
def test_every_source_and_setting_is_there(name):
    assert (f"| `{name}` |" in PAGE and f"**`{name}`**" in PAGE) or name == "digits"
    settings = SOURCES.settings(name)
    for field in settings.model_fields if settings else ():
        assert f"data.{name}.{field}" in PAGE, field


def test_where_fashion_is_looked_for():
    assert (
        f"{fashion.DEBIAN}," in PAGE and f"export {fashion.VARIABLE}=DIR" in PAGE and str(fashion.TORCHVISION) in PAGE
    )
