"""A data source of one's own: pictures of shapes, drawn when they are asked for. No files are needed.

mvar run mixers --plugin examples/source.py --preset smoke --set data.name=shapes data.num_classes=3
"""

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

import mvar

SIDE = 8  # pixels; another `data.image_size` resizes them
CLASSES = ("disc", "square", "triangle")


@mvar.register("source", "shapes")
class Shapes(mvar.DataSource):
    """Three classes, grey, of any number: `data.name=shapes data.shapes.per_class=200`."""

    class Settings(mvar.Config):
        """Part of a run's id where its data are shapes, and only where they differ from these."""

        per_class: int = Field(default=300, ge=10, description="Pictures of each class.")
        seed: int = Field(default=0, ge=0, description="Of sizes and places.")

    def check(self, config, stored=False, order_is_asked=False):
        """What is wrong is one line, before anything is launched."""
        if config.num_classes != len(CLASSES):
            raise mvar.UserError(f"data.num_classes: {config.num_classes}; allowed: {len(CLASSES)}, as shapes has")

    def open(self, config, split=None):
        """All pictures: which are held out is chosen as `data.heldout_fraction` says."""
        settings = config.settings_of("shapes")
        labels = np.arange(settings.per_class * len(CLASSES)) % len(CLASSES)
        draws = np.random.default_rng(settings.seed)
        pixels = np.stack([drawn(CLASSES[label], draws) for label in labels])
        return mvar.OpenedSource(mvar.ArrayPictures(pixels, labels, CLASSES))


def drawn(shape, draws):
    """One picture, uint8 `(SIDE, SIDE)`."""
    picture = Image.new("L", (SIDE, SIDE))
    (x, y), size = draws.integers(0, 3, 2), draws.integers(4, 6)
    box, white = (x, y, x + size - 1, y + size - 1), int(draws.integers(160, 256))
    if shape == "disc":
        ImageDraw.Draw(picture).ellipse(box, fill=white)
    elif shape == "square":
        ImageDraw.Draw(picture).rectangle(box, fill=white)
    else:
        ImageDraw.Draw(picture).polygon([(x, y + size - 1), (x + size - 1, y + size - 1), (x + size // 2, y)], white)
    return np.array(picture)
