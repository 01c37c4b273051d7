"""Data sources by name: an unknown one is an error that lists what is there, a user's own is like the others."""

import numpy as np
import pytest
from PIL import Image

from mvar.config import DataConfig, RunConfig, override
from mvar.data.sources.contract import DataSource, OpenedSource, find
from mvar.data.splits import check_classes, load_images
from mvar.errors import UserError
from mvar.registries import SOURCES


@pytest.fixture(autouse=True)
def own(monkeypatch):
    monkeypatch.setattr(SOURCES, "own", {})


class Stripes(DataSource):
    """Two classes of grey pictures: one number a picture."""

    def check(self, config, stored=False, order_is_asked=False):
        if config.num_classes != 2:
            raise UserError(f"data.num_classes: {config.num_classes}; allowed: 2")

    def open(self, config, split=None):
        return OpenedSource(self)

    labels = np.arange(8) % 2
    class_names = ("even", "odd")

    def picture(self, i, mode, side):
        return Image.new(mode, (10, 10), i)

    def name(self, i):
        return str(i)

    def fingerprint(self, indices):
        return str(list(indices))


@pytest.mark.parametrize("name", SOURCES.names())
def test_every_name_is_one_source(name):
    source = find(name)
    assert isinstance(source, DataSource) and SOURCES.names()[:2] == ["digits", "imagefolder"]
    assert source.in_memory == (name in ("digits", "fashion"))
    assert source.has_readings == (name in ("digits", "imagefolder"))


def test_an_unknown_name_lists_what_is_there(tmp_path, monkeypatch):
    """Nor is the working directory read, where a config was not validated."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("L", (9, 9), i).save(tmp_path / name / f"{i}.png")
    said = r"data.name: 'digit' is unknown \(did you mean 'digits'\?\); allowed: digits, imagefolder"
    config = DataConfig.model_construct(**{**DataConfig(num_classes=2).model_dump(), "name": "digit", "root": "."})
    for call in (lambda: load_images(config, "train"), lambda: check_classes(config), lambda: DataConfig(name="digit")):
        with pytest.raises(UserError, match=said):
            call()
    with pytest.raises(UserError, match=said):
        override(RunConfig(), {"data.name": "digit"})


def test_one_of_the_users_own():
    SOURCES.register("stripes", Stripes)
    SOURCES.register("stripes", Stripes)  # a file that is loaded twice
    config = override(RunConfig(), {"data.name": "stripes", "data.num_classes": "2"})
    assert config.run_id.startswith("stripes-d8-")
    check_classes(config.data)
    train, heldout = (load_images(config.data, split) for split in ("train", "heldout"))
    values = [int(images.image(i, None).mean()) for images in (train, heldout) for i in range(len(images))]
    assert (len(train), len(heldout)) == (6, 2) and sorted(values) == list(range(8))
    assert train.image(0, None).shape == (1, 8, 8)
    with pytest.raises(UserError, match=r"data.num_classes: 10; allowed: 2"):
        check_classes(DataConfig(name="stripes"))
    with pytest.raises(UserError, match=r"unknown; allowed: digits, imagefolder, .*stripes"):
        DataConfig(name="zzz")


@pytest.mark.parametrize("name", ["digits", "stripes", "Stripes", "a/b", "", "a" * 33])
def test_names_that_cannot_be_had(name):
    class Other(Stripes):
        pass

    SOURCES.register("stripes", Stripes)
    with pytest.raises(UserError, match=r"^data.name: .*allowed: (another name than digits, imag|up to 32 small)"):
        SOURCES.register(name, Other)
