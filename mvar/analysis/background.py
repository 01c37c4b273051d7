"""What the numbers stand on: data, tokenizer, feature extractor, floors and machine, as the stages recorded them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from mvar import layout
from mvar.analysis.compare import Measured
from mvar.analysis.records import Records, shared_settings
from mvar.analysis.render import Table
from mvar.checkpoints.warm_start import Start
from mvar.config import RunConfig
from mvar.data.splits import load_images
from mvar.errors import UserError
from mvar.escaping import code, markdown
from mvar.files import digest
from mvar.runs.columns import MEASURED, Column
from mvar.runs.documents import read_document

# Floor metric -> what it is; those with a standard deviation have it under the same key with `_sd`.
FLOORS = {
    "floor/fid_reconstruction_heldout": "FID of reconstructed held-out images against the same images (rFID): what the "
    "tokenizer alone costs",
    "floor/fid_reconstruction_train": "FID of reconstructed training images against held-out ones: what a model "
    "that only repeats its training images reaches",
    "floor/fid_real": "FID(real, real): training images against held-out ones, no tokenizer",
    "floor/fid_resplit": "FID(real, real) over other splits of the same sizes: its standard deviation is what the "
    "choice of held-out images is worth",
    "floor/fid_halves": "FID of half of the held-out images against the other half: small sets bias FID upwards",
    "floor/precision_real": "precision of training images",
    "floor/recall_real": "recall of training images",
    "floor/copy_rate_reconstruction_heldout": "near-copies among reconstructed held-out images: new images seen "
    "through the tokenizer",
    "floor/copy_rate_reconstruction_train": "near-copies among reconstructed training images: of a "
    "model that only repeats them",
    "floor/psnr": "PSNR of reconstructed held-out images (dB)",
}
FLOORS_ARE = (
    "What real images, and reconstructions of real images, score by the same measures. They are marks to read a table "
    "by and no bounds: a generator may score below one by chance, or with another number of images. Their reference is "
    "the held-out images."
)


def other_references(rows: pd.DataFrame) -> list[str]:
    """What evaluations are compared with in place of the held-out images as the data have them, in words."""
    found = []
    for _, same in rows.groupby("settings", sort=False):
        settings = shared_settings(same)
        if settings.get("reference.sha256"):
            found.append(f"the statistics of {markdown(str(settings.get('reference.file')))}")
        elif factor := settings.get("reference.resize_factor"):
            found.append(f"held-out images resized to {factor:g} times their size")
    return list(dict.fromkeys(found))


def floors_are(records: Records) -> str:
    """What the floors are, and which FIDs they are no floors of."""
    others = other_references(records.done)
    told = f" FIDs against {' or '.join(others)} have other floors, which are not measured." if others else ""
    return f"{FLOORS_ARE}{told}"


def data_lines(records: Records, problems: list[str]) -> list[str]:
    """One line a data set: sizes, classes, channels and the source."""
    lines = []
    for config in _distinct(records, lambda config: [config.data.model_dump(mode="json")]):
        data = config.data
        try:
            sizes = _sizes(config, records)
            told = f"{sizes[0]:,} training and {sizes[1]:,} held-out images"
        except (UserError, OSError) as error:
            problems.append(f"data {data.name}: sizes are not known here: {error}")
            told = "sizes not known here"
        told += _reading(config, records, problems)
        side, colours = data.image_size, "grey" if data.channels == 1 else "colour"
        others = other_references(records.done.loc[records.done["data"] == data.name])
        against = f"the held-out images, which nothing was trained on{', or, where a table says so, ' * bool(others)}"
        lines.append(
            f"**{data.name}**: {told}, {data.num_classes:,} classes, {side} × {side} px, {colours}. Every metric is "
            f"against {against}{' or '.join(others)}."
        )
    return lines


def _reading(config: RunConfig, records: Records, problems: list[str]) -> str:
    """How a folder was read, where the two readings of it differ (`DataConfig.reading`)."""
    path = records.store.stage("data", config.data_id).path / layout.SUMMARY
    summary = _read(path, records, problems) if path.is_file() else None
    if not (summary and isinstance(summary.get("differs"), dict) and summary["differs"]):
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in summary["differs"].items())
    how = "as by the first version, which knows nothing of" if config.data.reading == 1 else "by data.reading=2, with"
    return f", read {how} {reasons}"


def tokenizer_lines(records: Records, problems: list[str]) -> list[str]:
    """One line a tokenizer: scales, codebook, quality."""
    lines = []
    for config in _distinct(records, lambda config: [config.tokenizer_id]):
        tokenizer, path = config.tokenizer, records.store.stage("tokenizer", config.tokenizer_id).path / layout.QUALITY
        quality = _read(path, records, problems)
        told = ""
        if quality:
            told = (
                f"; held-out PSNR {quality['psnr_db']:.1f} dB, {quality['codes_used']} of {quality['vocab_size']} "
                "codes in use on held-out images"
            )
        sides, length = " ".join(map(str, tokenizer.patch_sides)), tokenizer.schedule.num_tokens
        lines.append(
            f"**Tokenizer** {code(config.tokenizer_id)}: scales {sides} (L = {length:,} tokens), "
            f"{tokenizer.vocab_size:,} codes of {tokenizer.code_channels} channels{told}."
        )
    return lines


def extractor_lines(records: Records, problems: list[str]) -> list[str]:
    """One line a feature extractor: what it is and its held-out accuracy."""
    lines = []
    for config in _distinct(records, lambda config: [config.extractor_id]):
        path = records.store.stage("extractor", config.extractor_id).path / layout.EXTRACTOR
        found = _read(path, records, problems)
        accuracy = (found or {}).get("heldout_accuracy")
        told = "" if accuracy is None else f", {accuracy:.1%} of held-out images classified rightly"
        lines.append(
            f"**Feature extractor** {code(config.extractor_id)}: {markdown(config.evaluation.extractor)}{told}. FID of "
            f"another extractor is another number{_is_no_imagenet(config)}."
        )
    return lines


def _is_no_imagenet(config: RunConfig) -> str:
    """Of features that are not Inception's nothing compares with a published FID."""
    return "" if config.evaluation.extractor == "inception" else "; none of these compares with an ImageNet FID"


def floor_rows(records: Records, problems: list[str]) -> list[dict[str, Any]]:
    """Floors, one row a number: data, what it is, value, standard deviation (None where there is none)."""
    rows = []
    for config in _distinct(records, lambda config: [config.extractor_id, config.floors_id]):
        path = records.store.stage("extractor", config.extractor_id).path / layout.FLOORS
        document = _read(path, records, problems)
        record = (document or {}).get("floors", {}).get(config.floors_id)
        if document and not record:
            problems.append(f"{path.relative_to(records.store.root)}: no floors for this tokenizer and evaluation")
        metrics = (record or {}).get("metrics", {})
        counts = _floor_counts(config, records) if metrics else {}
        for key, text in FLOORS.items():
            if key in metrics:
                about = {"data": config.data.name, "images": counts.get(key, "")}
                rows.append(about | {"what": text, "value": metrics[key], "sd": metrics.get(f"{key}_sd"), "key": key})
    return rows


def _floor_counts(config: RunConfig, records: Records) -> dict[str, str]:
    """How many images each floor is of, in words; empty where the data are not here."""
    try:
        train, heldout = _sizes(config, records)
    except (UserError, OSError):
        return {}
    few = min(config.evaluation.num_images, train)
    against = f"{few:,} against {heldout:,}"
    return dict.fromkeys(FLOORS, against) | {
        "floor/fid_reconstruction_heldout": f"{heldout:,} against the same",
        "floor/fid_halves": f"{heldout - heldout // 2:,} against {heldout // 2:,}",
        "floor/copy_rate_reconstruction_heldout": f"{heldout:,}",
        "floor/copy_rate_reconstruction_train": f"{few:,}",
        "floor/psnr": f"{heldout:,}",
    }


def _sizes(config: RunConfig, records: Records) -> tuple[int, int]:
    """How many training and held-out images a data set has; it is listed once a report.

    Raises:
        UserError, OSError: it is not here, or cannot be read.
    """
    if config.data_id not in records.sizes:
        train, heldout = (len(load_images(config.data, split)) for split in ("train", "heldout"))
        records.sizes[config.data_id] = train, heldout
    return records.sizes[config.data_id]


def floors_table(rows: list[dict[str, Any]]) -> Table:
    """The floors as a table."""
    columns = (
        Column("what", "floor", is_text=True),
        Column("value", "value", MEASURED, 3),
        Column("data", "data", is_text=True),
        Column("images", "images", is_text=True),
    )
    shown = [
        {
            "what": row["what"],
            "value": Measured(row["value"], row["sd"], 1),
            "data": row["data"],
            "images": row["images"],
        }
        for row in rows
    ]
    return Table("floors", "Floors", columns, shown)


def start_lines(records: Records, problems: list[str]) -> list[str]:
    """One line a run that started from a checkpoint: which of its layers were loaded, which are new."""
    lines = []
    for run_id, config in records.configs.items():
        if config.train.init_from:
            document = _read(records.store.run(run_id).path / layout.START, records, problems)
            lines += [f"{code(run_id)} starts {markdown(Start.from_json(document))}."] if document else []
    return lines


def machine_lines(records: Records, problems: list[str]) -> list[str]:
    """One line a machine and code version that runs were made with, and how many runs."""
    found: dict[str, int] = {}
    for run_id in records.configs:
        path = records.store.run(run_id).path / layout.ENV
        read = records.cache.value(f"env {run_id}", [path], lambda path=path: _read_machine(path, records))
        problems += read["problems"]
        if read["line"]:
            found[read["line"]] = found.get(read["line"], 0) + 1
    return [f"{line}: {count} run{'s' if count > 1 else ''}" for line, count in found.items()]


def execution_lines(records: Records) -> list[str]:
    """One line a way in which rows were made: kernels, TF32, processes. Rows that differ in it compare all the same."""
    done = records.done
    if "execution" not in done.columns:
        return []
    counts = done.loc[done["execution"].fillna("") != "", "execution"].value_counts()
    return [f"{line}: {count} row{'s' if count > 1 else ''}" for line, count in counts.items()]


def _read_machine(path: Path, records: Records) -> dict[str, Any]:
    problems: list[str] = []
    environment = _read(path, records, problems)
    return {"line": environment and _machine(environment), "problems": problems}


def _machine(environment: dict[str, Any]) -> str:
    hardware, threads = environment.get("gpu") or environment.get("cpu"), environment.get("num_threads")
    versions = environment.get("versions", {})
    git = environment.get("git", {})
    commit = (
        f"code {git['commit'][:10]}{' with local changes' if git.get('dirty') else ''}" if git.get("commit") else ""
    )
    parts = [
        f"{hardware}, {environment.get('num_cpus')} CPUs, {threads} thread{'' if threads == 1 else 's'} a run",
        f"Python {versions.get('python')}, PyTorch {versions.get('torch')}",
        commit,
    ]
    return markdown("; ".join(part for part in parts if part))


def _distinct(records: Records, identity: Any) -> Iterator[RunConfig]:
    """One config for each identity, in the order of run ids."""
    seen = set()
    for config in records.configs.values():
        key = digest(identity(config))
        if key not in seen:
            seen.add(key)
            yield config


def _read(path: Path, records: Records, problems: list[str]) -> dict[str, Any] | None:
    try:
        return read_document(path)
    except FileNotFoundError:
        problems.append(f"{path.relative_to(records.store.root)}: not there")
    except (UserError, OSError) as error:
        problems.append(str(error))
    return None
