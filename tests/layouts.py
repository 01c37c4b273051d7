"""One tiny data set in every layout that a data source reads: 20 grey pictures of 28 x 28 pixels, two of each class."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mvar.config import DataConfig

PIXELS = np.random.default_rng(7).integers(0, 256, (20, 28, 28), dtype=np.uint8)
LABELS = np.repeat(np.arange(10), 2)
SYNSETS = [f"n0{label:07d}" for label in range(10)]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">i4").tobytes() + values.astype(np.uint8).tobytes()


def imagefolder(root: Path) -> dict:
    for i, label in enumerate(LABELS):
        (root / SYNSETS[label]).mkdir(parents=True, exist_ok=True)
        (root / SYNSETS[label] / f"{i:02d}.png").write_bytes(png(PIXELS[i]))
    return {}


def npy(root: Path) -> dict:
    root.mkdir(parents=True)
    np.save(root / "images.npy", PIXELS)
    np.save(root / "labels.npy", LABELS)
    return {}


def member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def tar(root: Path) -> dict:
    """Two shards; in the second the labels are members before their pictures."""
    root.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as archive:
            for i in range(10 * shard, 10 * shard + 10):
                parts = [("png", png(PIXELS[i])), ("cls", str(LABELS[i]).encode())]
                for extension, data in parts[:: -1 if shard else 1]:
                    member(archive, f"{i:06d}.{extension}", data)
    return {}


def tar_json(root: Path) -> dict:
    root.mkdir(parents=True)
    with tarfile.open(root / "all.tar", "w") as archive:
        for i, label in enumerate(LABELS):
            member(archive, f"{i:06d}.png", png(PIXELS[i]))
            member(archive, f"{i:06d}.json", json.dumps({"class": int(label), "text": "x"}).encode())
    return {"tar": {"label": "json", "key": "class"}}


def parquet(root: Path) -> dict:
    """Two files of two row groups each, as `datasets` writes them."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    root.mkdir(parents=True)
    features = {"image": {"_type": "Image"}, "label": {"names": [f"class {i}" for i in range(10)]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for shard in range(2):
        rows = range(10 * shard, 10 * shard + 10)
        pictures = [{"bytes": png(PIXELS[i]), "path": f"{i}.png"} for i in rows]
        table = pa.table({"image": pictures, "label": pa.array(LABELS[list(rows)])}).replace_schema_metadata(metadata)
        pq.write_table(table, root / f"train-{shard:05d}-of-00002.parquet", row_group_size=6)
    return {}


def torchvision(root: Path) -> dict:
    """As it keeps MNIST: all pictures are both parts."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(PIXELS))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(LABELS))
    return {}


def ilsvrc(root: Path) -> dict:
    """The flat folder and a development kit, whose class numbers are in an order of its own."""
    root.mkdir(parents=True)
    for i in range(20):
        (root / f"ILSVRC2012_val_{i + 1:08d}.png").write_bytes(png(PIXELS[i]))
    kit = root.parent / f"{root.name}_devkit"
    write_kit(kit, SYNSETS, LABELS)
    return {"ilsvrc": {"devkit": str(kit)}}


def write_kit(kit: Path, synsets: Sequence[str], labels: np.ndarray) -> None:
    """A development kit, whose class numbers are in an order of its own, for flat pictures with these labels."""
    from scipy.io import savemat

    (kit / "data").mkdir(parents=True)
    numbers = np.random.default_rng(1).permutation(len(synsets)) + 1  # of each synset
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    rows = [(int(number), synset, "a, b", 0) for synset, number in zip(synsets, numbers, strict=True)]
    rows.sort()
    rows.append((len(synsets) + 1, "n99999999", "all of them", len(synsets)))  # a class of classes
    savemat(kit / "data/meta.mat", {"synsets": np.array(rows, dtype=fields)[:, None]})
    truth = "\n".join(str(numbers[label]) for label in labels) + "\n"
    (kit / "data/ILSVRC2012_validation_ground_truth.txt").write_text(truth)


WRITERS = {
    **{"imagefolder": imagefolder, "npy": npy, "tar": tar, "tar_json": tar_json},
    **{"parquet": parquet, "torchvision": torchvision, "ilsvrc": ilsvrc},
}


def written(layout: str, root: Path, **changes: object) -> DataConfig:
    """Write the data set in a layout to `root`; the config that reads it."""
    values = {"name": layout.partition("_")[0], "root": str(root), "image_size": 28, "resize_factor": 1.0}
    return DataConfig.model_validate({**values, **WRITERS[layout](root), **changes})
