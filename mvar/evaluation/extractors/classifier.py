"""The feature extractor of small data sets: a classifier trained on the generator's own training split.

Inception knows nothing of 8x8 digits. A small classifier trained on the same classes does, at the price that its FID
compares only with FIDs of the same classifier: its seed, steps and data make up the extractor's identity.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mvar import layout
from mvar.checkpoints.weights import load_weights, save_weights
from mvar.config import OptimConfig
from mvar.data.crops import ImageSet, to_float
from mvar.data.splits import load_images
from mvar.errors import UserError
from mvar.evaluation.extractors.contract import ExtractorKind, channels_last
from mvar.evaluation.images import Images
from mvar.progress import Progress
from mvar.training.contract import DataOrder, Objective, Tensors
from mvar.training.loop import fit

NUM_FEATURES = 64
BATCH_SIZE = 64
PEAK_LR = 3e-3
SHIFT_PX = 1


class Classifier(nn.Module):
    """Three 3x3 convolutions with group norm, 64 normalised features, logits linear in them; any image size.

    The features are not rectified, since FID models them as a Gaussian, and each image's have mean 0 and variance 1
    (layer norm without affine): a seed or a longer training would else change their scale and with it every FID, and
    KID's cubic kernel would be all noise. The last map is averaged to 2x2, so that features keep a trace of
    position, which digits need (a plain global average loses 1 % accuracy).
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, stride in ((32, 1), (64, 2), (64, 2)):
            layers += [nn.Conv2d(channels, width, 3, stride=stride, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
            channels = width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.project = nn.Linear(4 * channels, NUM_FEATURES)
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, 64)` and logits `(B, num_classes)` of images `(B, ch, H, W)` in [-1, 1]."""
        return self.from_map(self.map(images))

    def map(self, images: Tensor) -> Tensor:
        """What the convolutions give, `(B, 64, H / 4, W / 4)`."""
        return self.body[:-2](images)

    def from_map(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of a map."""
        features = functional.layer_norm(self.project(self.body[-2:](found)), (NUM_FEATURES,))
        return features, self.head(features)


class ClassifierObjective(Objective):
    """Cross-entropy on training images that are shifted by up to one pixel along each side."""

    def __init__(self, classifier: Classifier, images: ImageSet, seed: int) -> None:
        self.module = classifier
        self.images = images
        self.order = DataOrder(len(images), BATCH_SIZE, seed)

    def batch(self, step: int, rng: np.random.Generator) -> Tensors:
        """Numbers `(B,)` of the step's images, and a seed `(B,)` for what is random in each."""
        numbers = self.order.rows(step)
        return torch.from_numpy(numbers), torch.from_numpy(rng.integers(2**63, size=len(numbers)))

    def load(self, rows: Tensors) -> Tensors:
        """Images uint8 `(B, ch, H, W)` and labels `(B,)`."""
        images = []
        for number, seed in zip(*(row.tolist() for row in rows), strict=True):
            rng = np.random.default_rng(seed)
            images.append(random_shift(self.images.image(number, rng), rng))
        return torch.from_numpy(np.stack(images)), torch.from_numpy(self.images.labels[rows[0].numpy()])

    def loss(self, batch: Tensors, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy in nats, and the batch's accuracy, a share."""
        images, labels = batch
        _, logits = self.module(to_float(images))
        accuracy = (logits.argmax(1) == labels).float().mean()
        return functional.cross_entropy(logits, labels), {"train/accuracy": accuracy.detach()}


def random_shift(image: Any, rng: np.random.Generator) -> np.ndarray:
    """A `(ch, H, W)` image moved by up to one pixel along each side, its border repeated."""
    image = np.asarray(image)
    height, width = image.shape[-2:]
    padded = np.pad(image, ((0, 0), (SHIFT_PX, SHIFT_PX), (SHIFT_PX, SHIFT_PX)), mode="edge")
    y, x = rng.integers(0, 2 * SHIFT_PX + 1, size=2)
    return padded[:, y : y + height, x : x + width]


def classifier_optim(steps: int) -> OptimConfig:
    """How the classifier is trained: AdamW, 10 % warm-up, linear decay."""
    return OptimConfig(steps=steps, batch_size=BATCH_SIZE, base_lr=PEAK_LR * 256 / BATCH_SIZE, warmup_fraction=0.1)


class ClassifierKind(ExtractorKind):
    """A classifier that is trained on the training split: its seed, steps and data make up its identity."""

    knows_labels = True
    keeps = layout.CLASSIFIER

    def train(
        self,
        directory: Path,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] | None = None,
        measured: Progress | None = None,
    ) -> bool:
        """Train it on the training split and measure it on the held-out one, which its weights' metadata keep.

        Raises:
            UserError: a data set that cannot be read.
        """
        config, directory = self.config, Path(directory)
        if (directory / layout.CLASSIFIER).exists():
            return True
        data, evaluation = config.data, config.evaluation
        torch.manual_seed(evaluation.classifier_seed)
        classifier = Classifier(data.channels, data.num_classes)
        optim = classifier_optim(evaluation.classifier_steps)
        result = fit(
            ClassifierObjective(classifier, load_images(data, "train"), evaluation.classifier_seed),
            optim,
            directory,
            config.runtime.for_batch(optim.batch_size),
            seed=evaluation.classifier_seed,
            progress=progress,
            should_stop=should_stop,
        )
        if not result.finished:
            return False
        heldout = load_images(data, "heldout")
        _, logits = self.of(classifier.double()).extract(Images(heldout, "held-out images"), progress=measured)
        accuracy = (logits.argmax(1).numpy() == heldout.labels).mean()
        metadata = {"extractor_id": config.extractor_id, "heldout_accuracy": float(accuracy)}
        save_weights(directory / layout.CLASSIFIER, classifier.float(), metadata)
        return True

    def network(self, directory: Path) -> tuple[nn.Module, float | None]:
        """The trained classifier, in double precision: features do not depend on the batch that an image is in."""
        config, path = self.config, Path(directory) / layout.CLASSIFIER
        if not path.is_file():
            raise UserError(f"extractor: no file {str(path)!r}; allowed: a directory where the classifier is trained")
        state, metadata = load_weights(path)
        if metadata.get("extractor_id") != config.extractor_id:
            raise UserError(
                f"extractor: {str(path)!r} is of extractor {metadata.get('extractor_id')}; allowed: "
                f"{config.extractor_id}"
            )
        classifier = Classifier(config.data.channels, config.data.num_classes)
        classifier.load_state_dict(state)
        return classifier.double(), float(metadata["heldout_accuracy"])

    def forward(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, 64)` and logits `(B, num_classes)`."""
        return network(to_float(images).double())

    def forward_spatial(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, logits, and 7 channels of the last map as spatial features: on digits 2 x 2 x 7."""
        assert isinstance(network, Classifier)
        found = network.map(to_float(images).double())
        return (*network.from_map(found), channels_last(found))
