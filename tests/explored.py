"""Runs to explore, whose models are only initialised, and what a page of them holds."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from untrained_runs import finish_tokenizer, save_untrained

from mvar.checkpoints.weights import save_weights
from mvar.config import override
from mvar.presets import PRESETS
from mvar.runs.store import Store
from mvar.runs.wiring import Stages

NASTY = "</script><script>alert(1)</script>"
PATTERNS = {"maps": "global intra markov window", "mamba": "2*global 2*intra+mamba"}


def explored_runs(root: Path) -> tuple[Store, dict[str, str]]:
    """Two runs of the same data, their gates open: of all mixers with maps, and with Mamba; their names."""
    store, found = Store(root / "results"), {}
    for name, pattern in PATTERNS.items():
        settings = {"model.pattern": pattern, "model.width": 32, "data.heldout_fraction": 0.05, "model.depth": 4}
        config = override(PRESETS["smoke"], settings)
        run, model = save_untrained(store, config)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.2)
        save_weights(run.weights, model, {"class_names": [NASTY, *"123456789"]})
        finish_tokenizer(store, config)
        Stages(config, store).tokens.run()
        found[name] = run.name
    return store, found


def data_of(page: Path) -> dict[str, Any]:
    """What a page holds."""
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(found)
