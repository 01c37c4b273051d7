"""A results directory made up for tests: the real sweeps of the digits preset, with invented metrics."""

import json
import math
import zlib

import numpy as np
import pytest
import torch
from explored import explored_runs

from mvar import load
from mvar.analysis.report import write_report
from mvar.config import override
from mvar.files import write_json
from mvar.pattern import mixers_of
from mvar.presets import PRESETS
from mvar.probes.attention_mass import AttentionStats
from mvar.probes.knockout import Effect
from mvar.runs.documents import write_document
from mvar.runs.experiment import find_experiment
from mvar.runs.request import Request, with_seeds, write_manifest
from mvar.runs.stages.evaluate import costs
from mvar.runs.store import Store
from mvar.runs.wiring import Stages

# FID and NLL by pattern; a seed adds 0.1 (seed 0 nothing), so that means and deviations are known.
FID = {"global": 1.6, "intra": 1.5, "mamba": 0.9, "intra+mamba": 1.0}
NLL = {"global": 2.3, "intra": 2.25, "mamba": 2.45, "intra+mamba": 2.4}
SEED_STEP = 0.1


class Fabricated:
    """Writes what a pipeline would have written, and breaks it on demand."""

    def __init__(self, root):
        self.store = Store(root)
        self.root = root

    def sweep(self, name, seeds=(0,), mode="steps", overrides=None, make=True, preset="digits"):
        """Ask for a sweep, and make its runs unless told otherwise; returns the manifest and the configs."""
        config = override(PRESETS[preset], overrides or {})
        request = Request(find_experiment(name), preset, config, tuple(seeds), overrides or {}, mode)
        write_manifest(self.store, request, ["run", name, "--preset", preset])
        configs = [c for cell in request.cells() for c in with_seeds(cell.config, seeds)]
        for config in configs if make else []:
            self.run(config)
        return json.loads(self.store.manifest_path(request.name).read_text()), configs

    def run(self, config, **metrics):
        """A finished run."""
        run = self.store.run(config.run_id)
        run.write_config(config)
        run.write_status("done", "evaluate", step=config.train.steps, steps=config.train.steps, train_s=30.0)
        versions = {"python": "3.11.0", "torch": "2.15.0"}
        environment = {
            "cpu": "a CPU",
            "num_cpus": 2,
            "num_threads": 1,
            "versions": versions,
            "git": {"commit": "c" * 40},
        }
        write_json(run.path / "env.json", environment)
        run.weights.write_bytes(config.run_id.encode())
        self._training_curve(run, config)
        self._samples(run, config)
        run.add_evaluation(config.evaluation_id, self.evaluation(config, **metrics))
        self._stages(config)
        if config.model.pattern == "global" and config.data.name == "digits":
            self.attention(run)
        return run

    def evaluation(self, config, **metrics):
        """An evaluation's record, with invented metrics."""
        layers = config.model.layers
        share = sum(layer == "intra+mamba" for layer in layers) / len(layers)
        pattern = config.model.pattern
        if pattern in FID:
            fid, nll = FID[pattern], NLL[pattern]
        else:
            fid, nll = ((1 - share) * v["global"] + share * v["intra+mamba"] for v in (FID, NLL))
        shift = SEED_STEP * config.seed
        values = {
            "eval/fid": fid + shift,
            "eval/is": 8.5,
            "eval/kid": 0.01,
            "eval/kid_se": 0.002,
            "eval/precision": 0.7,
            "eval/recall": 0.6,
            "eval/nll_bits_per_token": nll + shift,
            "eval/copy_rate": 0.125,
            "eval/copy_rate_heldout": 0.05,
            **{f"eval/nll_bits_scale_{k:02d}": nll + shift + 0.2 * k for k in range(len(config.tokenizer.patch_sides))},
        }
        speed = 1 + share
        return {
            "sample": config.sample.model_dump(mode="json"),
            "evaluation": config.evaluation.model_dump(mode="json"),
            "extractor_id": config.extractor_id,
            "reference": {"split": "heldout", "num_images": 450},
            "metrics": values | {f"eval/{key}": value for key, value in metrics.items()},
            "cost": costs(config),
            "timing": {"train_s": 30.0 * speed, "sample_s": 4.0 * speed, "train_step_ms": 50.0 * speed},
        }

    def _training_curve(self, run, config):
        rng = np.random.default_rng(zlib.crc32(run.name.encode()))
        lines = []
        for step in range(10, config.train.steps + 1, 10):
            loss = 1.6 + 2.9 * math.exp(-step / 120) + 0.08 * rng.standard_normal()
            row = {"step": step, "train/loss": loss}
            if step % 40 == 0:  # training images ever likelier, held-out ones until step 160
                row["train/nll_bits_per_token"] = 5 - step / 100 + 0.01 * config.seed
                row["heldout/nll_bits_per_token"] = 4 + abs(step - 160) / 100 + 0.02 * config.seed
            lines.append(json.dumps(row))
        run.metrics.write_text("\n".join(lines) + "\n")

    def _samples(self, run, config):
        """Real digits with noise, so that pictures look like something."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        count, rng = 120, np.random.default_rng(zlib.crc32(run.name.encode()))
        labels = np.arange(count) % config.data.num_classes
        rows = np.array([rng.choice(np.flatnonzero(digits.target == label % 10)) for label in labels])
        images = np.clip(digits.images[rows] * 15 + rng.normal(0, 12, (count, 8, 8)), 0, 255).astype(np.uint8)
        folder = run.samples(config.evaluation_id)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "samples.npz", arr_0=images[..., None], labels=labels)

    def _stages(self, config):
        tokenizer = self.store.stage("tokenizer", config.tokenizer_id).path
        write_document(tokenizer / "quality.json", {"psnr_db": 24.0, "codes_used": 95, "vocab_size": 96})
        extractor = self.store.stage("extractor", config.extractor_id).path
        write_document(extractor / "extractor.json", {"id": config.extractor_id, "heldout_accuracy": 0.997})
        metrics = {
            "floor/fid_reconstruction_heldout": 0.155,
            "floor/fid_real": 0.22,
            "floor/fid_halves": 0.87,
            "floor/fid_halves_sd": 0.04,
        }
        record = {"tokenizer_id": config.tokenizer_id, "metrics": metrics}
        write_document(extractor / "floors.json", {"floors": {config.floors_id: record}})

    def attention(self, run):
        """The cached measurement of a run: own scale 60 % for seed 0, one point more a seed, the rest spread evenly."""
        config = run.config()
        layers = tuple(number for number, layer in enumerate(config.model.layers) if "global" in mixers_of(layer))
        size, heads, depth = len(config.tokenizer.patch_sides), config.model.num_heads, len(layers)
        own = 0.6 + 0.01 * config.seed
        matrix = np.zeros((size, size))
        for query in range(size):
            matrix[query, :query] = (1 - own) / max(query, 1)
            matrix[query, query] = own if query else 1.0
        mean = torch.tensor(matrix).expand(depth, heads, size, size)
        by_layer, by_scale = torch.full((depth,), 0.02), torch.ones(depth, heads, size)
        stats = AttentionStats(
            layers=layers,
            sides=config.tokenizer.patch_sides,
            num_images=450,
            mean=mean,
            sd=0.01 * mean,
            entropy=by_scale,
            entropy_sd=0.1 * by_scale,
            matrix_sd=0.01 * mean[:, 0],
            intra_sd=by_layer,
            layer_entropy_sd=by_layer,
            share_sd=0.02,
        )
        values = {**stats.to_json(), "measured": Stages.of_run(self.store, run).attention.heldout().identity}
        write_json(run.path / "attention.json", values)

    def cut(self, run, own=0.4, coarser=0.02, control=0.1, alone=None, fid=None, by_scale=(), only="", images=0):
        """What `mvar knockout` keeps of a run: two whole parts, pairs of scales and heads; more mass, more effect.

        `alone` are changes of parts that have no random control; `fid` is the change of FID, its number of images and
        the changes with random cuts; `by_scale` are these of each scale's NLL, of one random cut after another. `only`:
        cuts that begin so; `images`: what `--images` keeps elsewhere.
        """
        config = run.config()
        size, shift = len(config.tokenizer.patch_sides), 0.001 * config.seed
        changes = {"own": own, "coarser": coarser}
        changes |= {f"scale:{k},queries={q}": 0.01 * (k == q) + 0.001 * k for q in range(size) for k in range(q + 1)}
        alone = alone or {}
        changes |= alone
        fid_change, fid_images, *fid_controls = fid or (None, 0)
        for layer in range(config.model.depth):
            for head in range(config.model.num_heads):
                changes |= {f"own,layer={layer},head={head}": 0.01 + 0.001 * layer}
                changes |= {f"coarser,layer={layer},head={head}": 0.001 * layer}
        effects = {
            text: Effect(
                cut=text,
                num_images=450,
                bits=2.0 + value,
                change=value + shift,
                sd=0.05,
                change_by_scale=(value,) * size,
                sd_by_scale=(0.05,) * size,
                kept=0.5,
                controls=() if text in alone else (control - 0.01, control + 0.01),
                beyond=None if text in alone else value + shift - control,
                beyond_sd=None if text in alone else 0.05,
                fid=fid_change,
                fid_change=fid_change,
                fid_images=fid_images,
                fid_controls=() if text in alone else tuple(fid_controls),
                controls_by_scale=() if text in alone else tuple(by_scale),
                beyond_sd_by_scale=() if text in alone else (0.05,) * len(by_scale and size * (0,)),
            ).to_json()
            for text, value in changes.items()
            if text.startswith(only)
        }
        measured, folder = load(run.name, results=self.root).measurable("heldout", images, kept_in="knockout")
        values = {"schema_version": 1, "measured": measured.identity}
        values |= {"sides": config.tokenizer.patch_sides, "num_images": 450, "bits": 2.0, "effects": effects}
        write_json(folder / "knockout.json", values)

    def probe(self, run, change=0.2, half=0.05, images=0):
        """What `mvar probe state` keeps of a run, with `images` what `--images` keeps elsewhere."""
        config = run.config()
        measured, folder = load(run.name, results=self.root).measurable("heldout", images, kept_in="probes")
        rows = []
        for keep, precision in ((1, "whole"), (4, "whole"), (4, "bf16")):
            values = {
                "change": change + 0.01 * config.seed,
                "change_half_width": half,
                "fid": 1.0,
                "kib": keep,
                "bits": 2.0,
            }
            case = {"keep": keep, "precision": precision, "limit": 1000, "seed": 0}
            rows.append({"case": case, "values": values})
        document = {"schema_version": 1, "probe": "state", "version": 1, "measured": measured.identity, "rows": rows}
        write_json(folder / "probes" / "state.json", document)


@pytest.fixture(scope="session")
def fabricated():
    """The class, for results that a whole module shares."""
    return Fabricated


@pytest.fixture
def results(tmp_path):
    """An empty results directory to fabricate runs in."""
    return Fabricated(tmp_path / "results")


@pytest.fixture(scope="session")
def everything(tmp_path_factory):
    """Every sweep at one seed, Table 6 with two more. Not to be changed."""
    made = Fabricated(tmp_path_factory.mktemp("everything") / "results")
    made.sweep("parameters")
    made.sweep("layers")
    made.sweep("mixers", seeds=(0, 1, 2))
    return made


@pytest.fixture(scope="session")
def whole(everything):
    """The report of everything: where it is, its text, and how its making was told. Not to be changed."""
    calls: list[tuple] = []
    path = write_report(everything.root, lambda *call: calls.append(call))
    return path, path.read_text(), calls


@pytest.fixture(scope="session")
def explored_store(tmp_path_factory):
    """Runs to explore: the store, and their names."""
    return explored_runs(tmp_path_factory.mktemp("explored"))
