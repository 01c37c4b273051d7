"""The path of a GPU, on fake tensors: devices, waits, launches and kernels of every mixer and precision."""

import ast
import collections
import importlib
import inspect
import json
import subprocess
import sys
import types
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from fake_gpu import SIGNATURES, Kernels, Launches, signature
from kernels.test_mamba_ssm import folder_of_mamba_ssm

from mvar.config import (
    MambaConfig,
    ModelConfig,
    RuntimeConfig,
    SampleConfig,
    TokenizerConfig,
    TokenSpace,
    TrainConfig,
    override,
)
from mvar.data import online
from mvar.data.crops import to_uint8
from mvar.errors import UserError, note_once
from mvar.kernels import attention, constants
from mvar.kernels.fake_gpu import fake_gpu
from mvar.mixers import window
from mvar.mixers.scan_orders import scan_tables
from mvar.presets import PRESETS
from mvar.registries import MIXERS
from mvar.runs import environment
from mvar.sampling import generate
from mvar.sampling.graphs import Graphs
from mvar.tokenizer.model import Tokenizer
from mvar.training import generator
from mvar.transformer import ScaleTransformer

CONSTANTS = "window", "snake", "both"  # mixers with tables that are copied
NAMES = sorted(MIXERS.names())
PACKAGES = "mamba_chunk_scan_combined", "chunk_simple_gla", "causal_conv1d_fn", "flash_attn_func"
KERNELS = Path(__file__).parents[1] / "mvar" / "kernels"
TOKENIZER = TokenizerConfig(patch_sides=(1, 2, 3), width=8, channel_multipliers=(1, 2))


def build(pattern, runtime=RuntimeConfig(), head_dim=8):
    space = TokenSpace(TOKENIZER.patch_sides, TOKENIZER.vocab_size, TOKENIZER.code_channels, 3)
    model = ModelConfig(
        width=2 * head_dim, depth=2, num_heads=2, pattern=pattern, drop_path=0.1, attn_l2_norm=True,
        mamba=MambaConfig(d_state=8, headdim=8),
    )  # fmt: skip
    with torch.device("meta"):
        return ScaleTransformer(model, space, runtime), Tokenizer(TOKENIZER, 1)


def train_step(model, tokenizer):
    """The loss as the training loop has it."""
    with patch.object(generator, "INPUTS_LIMIT", -1):  # so that the inputs are made in the step, from the tokens
        cache = types.SimpleNamespace(labels=[0, 1], tokens=[None, None])
        objective = generator.GeneratorObjective(model, tokenizer.quantize, cache, TrainConfig(), 0)
    labels, tokens = (torch.zeros(2, *shape, dtype=torch.long, device="cuda") for shape in ((), (model.levels.shape)))
    with Launches() as launches:
        loss, metrics = objective.loss((labels, tokens), 0)
    return loss, metrics, launches


def draw(model, tokenizer, precision="fp32", graphs=None):
    """Pixels from labels on the host, as the stage has them, up to what is copied to the host."""
    labels = torch.zeros(2, dtype=torch.long)
    settings = SampleConfig(cfg_scale=1.5, top_k=5, top_p=0.9, precision=precision)
    with Launches() as launches:
        drawn = generate(model, tokenizer.quantize, labels, [0, 1], settings, check=False, graphs=graphs)
        pixels = to_uint8(tokenizer.decode(drawn.latent))
    return drawn, pixels, launches


@contextmanager
def kept_constants():
    """What is copied to a GPU once a process is there: it has run before."""
    with patch.object(constants, "is_rehearsal", lambda: False):
        yield
    window.seen.cache_clear(), scan_tables.cache_clear(), attention._bounds.cache_clear()


def on_fake_gpu(pattern, precision, runtime=RuntimeConfig(), head_dim=8):
    model, tokenizer = build(pattern, runtime, head_dim)
    packages = nullcontext() if Kernels.active else Kernels(*PACKAGES)  # of which the tests need one themselves
    with packages, warnings.catch_warnings(), fake_gpu(precision), kept_constants():
        warnings.simplefilter("error")  # reading a data pointer is a warning
        model.to_empty(device="cuda").train(), tokenizer.to_empty(device="cuda").eval()
        if any(text in pattern for text in CONSTANTS) or runtime.attention_backend == "flash_attn":
            train_step(model, tokenizer), draw(model, tokenizer, precision)
        loss, metrics, training = train_step(model, tokenizer)
        model.eval()
        drawn, pixels, sampling = draw(model, tokenizer, precision)
    assert loss.is_cuda and loss.dtype == torch.float32 and loss.grad_fn is not None
    assert all(value.is_cuda for value in metrics.values())
    assert drawn.tokens.is_cuda and pixels.is_cuda and pixels.dtype == torch.uint8
    assert not training.waits
    # one copy, of labels and random numbers, before the first product of the first scale
    assert [name for _, name in sampling.waits] == ["copy_"] and sampling.waits[0][0] < 10
    return training, sampling


def test_what_makes_the_host_wait_is_seen():
    """Copies of single numbers and lists of indices too; a number that goes along with a launch is none."""
    waiting = {
        "sum().cpu()": lambda x: x.sum().cpu(),
        "to memory of the host": lambda x: torch.empty(2, 3).copy_(x),
        "tensor(3.).to()": lambda x: torch.tensor(3.0).to("cuda"),
        "tensor(3., device)": lambda x: torch.tensor(3.0, device="cuda"),
        "copy_(tensor(1.))": lambda x: x[0].copy_(torch.tensor(1.0)),
        "indices of the host": lambda x: x[torch.tensor([1, 0])],
        "a list of indices": lambda x: x[[0]],
        "written to indices of the host": lambda x: x.index_put_((torch.tensor([0]),), x[:1]),
    }
    free = {
        "numbers": lambda x: x.mul(2.0).masked_fill_(x > 0, 1).sum(),
        "a number in a tensor": lambda x: x * torch.tensor(2.0),
        "indices on the device": lambda x: x[torch.zeros(2, dtype=torch.long, device="cuda")],
    }
    with fake_gpu():
        for name, act in (waiting | free).items():
            x = torch.zeros(2, 3, device="cuda")
            with Launches() as launches:
                act(x)
            assert len(launches.waits) == (name in waiting), name


@pytest.mark.parametrize("name", NAMES)
def test_training_and_sampling_stay_on_the_gpu_and_wait_for_nothing(name):
    on_fake_gpu(name, "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", [*NAMES, "intra+mamba", "mamba:scan_order=both"])
def test_so_do_other_precisions(name, precision):
    on_fake_gpu(name, precision)


def test_so_does_training_on_images_that_are_encoded_on_the_gpu():
    """`train.tokens=online`: in fp32, whatever the generator's precision is, and a few images at once."""
    model, tokenizer = build("global")
    images, side, dtypes = online.CHUNK + 2, TOKENIZER.patch_sides[-1] * TOKENIZER.downsample, []
    tokenizer.encoder.register_forward_hook(lambda module, given, out: dtypes.append((len(out), out.dtype)))
    with fake_gpu("bf16"), kept_constants():
        model.to_empty(device="cuda").train(), tokenizer.to_empty(device="cuda").eval()
        crops = online.FreshCrops(types.SimpleNamespace(labels=[0, 1]), tokenizer, 0)
        objective = generator.OnlineObjective(model, crops, TrainConfig(tokens="online"), 0)
        labels = torch.zeros(images, dtype=torch.long, device="cuda")
        pixels = torch.zeros(images, 1, side, side, dtype=torch.uint8, device="cuda")
        with Launches() as launches:
            loss, metrics = objective.loss((labels, pixels), 0)
    assert loss.is_cuda and loss.grad_fn is not None and all(value.is_cuda for value in metrics.values())
    assert dtypes == [(online.CHUNK, torch.float32), (2, torch.float32)]
    assert not launches.waits
    assert launches.counts["_scaled_dot_product_flash_attention"] == 2 * 2  # of the generator alone: it is in bf16


@pytest.mark.parametrize("pattern", ["global", "intra+mamba"])
def test_replays_of_graphs_are_all_that_a_batch_launches_beside_a_few_copies(pattern):
    """Recorded steps launch nothing of their own: a call for each scale, and the same few operators for any depth."""
    replayed = []

    def record(steps):
        for step in steps:
            step()  # as a capture does: what is launched goes into the graph
        return [partial(replayed.append, scale) for scale in range(len(steps))]

    model, tokenizer = build(pattern, RuntimeConfig(scan_backend="torch"))
    with fake_gpu("fp32"), kept_constants():
        model.to_empty(device="cuda").eval(), tokenizer.to_empty(device="cuda").eval()
        with patch.object(tokenizer, "decode", lambda latent: latent):
            graphs = Graphs(record)
            eager, recording, replaying = (draw(model, tokenizer, "bf16", graphs)[2] for _ in range(3))
    scales = len(TOKENIZER.patch_sides)
    assert replayed == [*range(scales)] * 2
    assert [name for _, name in replaying.waits] == ["copy_"]
    assert recording.total > eager.total - 10 and replaying.total < 12 < eager.total / 10


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_optional_kernels_are_called_as_their_sources_say(precision):
    """Every call is bound against the signature of its package's source; fp32 never reaches flash-attn."""
    flash, layers, scales = RuntimeConfig(attention_backend="flash_attn"), 2, len(TOKENIZER.patch_sides)
    with Kernels() as kernels:
        training, sampling = on_fake_gpu("intra+mamba", precision, flash)
        with Kernels(*PACKAGES):
            plain = on_fake_gpu("intra+mamba", precision)
    half = precision != "fp32"
    # all is done twice, the first time for what is kept
    calls = {name: count / 2 for name, count in kernels.calls.items()}
    assert calls.pop("mamba_chunk_scan_combined") == calls.pop("causal_conv1d_fn") == layers * (1 + scales)
    # training: all scales in one call; sampling: a scale a call, the first is one token and needs no kernel
    assert calls.pop("flash_attn_varlen_func", 0) == layers * half
    assert calls.pop("flash_attn_func", 0) == layers * (scales - 1) * half
    assert not calls
    assert training.total < plain[0].total and sampling.total < plain[1].total
    with Kernels("mamba_chunk_scan_combined", "causal_conv1d_fn") as kernels:
        on_fake_gpu("mamba", precision)
    assert kernels.calls == {"chunk_simple_gla": layers * (1 + scales)}


@pytest.mark.parametrize(
    ("backend", "precision", "calls"), [("auto", "bf16", 2), ("auto", "fp32", 0), ("torch", "bf16", 0)]
)
def test_scales_of_intra_are_one_call_of_flash_attn_where_that_is_there(backend, precision, calls):
    """In training: a scale that is drawn is torch's, as all other attention is."""
    runtime = RuntimeConfig(attention_backend=backend)
    model, tokenizer = build("intra", runtime)
    with Kernels(*PACKAGES[:3]) as kernels, fake_gpu(precision):
        model.to_empty(device="cuda").train(), tokenizer.to_empty(device="cuda").eval()
        train_step(model, tokenizer), draw(model.eval(), tokenizer, precision)
        told = environment.kernels_of(runtime, torch.device("cuda"))["attention"]
    assert kernels.calls == collections.Counter(flash_attn_varlen_func=calls)
    assert told == {"auto": "torch (intra in half precision: flash_attn)", "torch": "torch"}[backend]


def test_auto_takes_flash_attn_on_its_own_gpus_alone(monkeypatch):
    with Kernels(*PACKAGES[:3]):
        for capability, device, taken in (((7, 5), "cuda", False), ((8, 0), "cuda", True), ((9, 0), "cpu", False)):
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
            assert attention.takes_runs("auto", torch.device(device)) is taken
    with Kernels(*PACKAGES):
        assert not attention.takes_runs("auto", torch.device("cuda"))


@pytest.mark.parametrize("pattern", ["intra", "global"])
def test_flash_attn_where_it_has_no_kernel_is_one_line(monkeypatch, pattern):
    """Forced, in half precision: heads that are too wide, a CPU, an older GPU. What is fp32 is torch's everywhere."""
    inputs = torch.zeros(1, dtype=torch.long), torch.zeros(1, 13, TOKENIZER.code_channels)

    def said(precision="bf16", **sizes):
        model, _ = build(pattern, RuntimeConfig(attention_backend="flash_attn"), **sizes)
        with fake_gpu(precision):
            model.to_empty(device="cuda")(*(t.to("cuda") for t in inputs))

    def refused(why):
        return pytest.raises(
            UserError, match=rf"^runtime\.attention_backend: 'flash_attn' {why}; allowed here: auto, torch$"
        )

    with Kernels(*PACKAGES[:3]):
        said(head_dim=attention.WIDEST), said("fp32", head_dim=attention.WIDEST + 8)
        with refused("has no kernel for heads of 264 channels, 256 at most"):
            said(head_dim=attention.WIDEST + 8)
        model, _ = build(pattern, RuntimeConfig(attention_backend="flash_attn"))
        model.to_empty(device="cpu").levels.zero_()
        model(*inputs)
        with refused("runs on GPUs from Ampere on alone, which cpu is not"), torch.autocast("cpu", torch.bfloat16):
            model(*inputs)
        monkeypatch.setattr(attention, "is_rehearsal", lambda: False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        with refused("runs on GPUs from Ampere on alone, which cuda:0 is not"):
            said()


def test_without_packages_a_gpu_takes_torchs_kernels():
    model, tokenizer = build("global")
    with fake_gpu("bf16"):
        model.to_empty(device="cuda").train(), tokenizer.to_empty(device="cuda")
        _, _, launches = train_step(model, tokenizer)
    assert launches.counts["_scaled_dot_product_flash_attention"] == 2 * 2 and launches.counts["gelu"] == 2


def test_a_kernel_that_is_forced_and_missing_is_one_line(monkeypatch):
    """Or one that cannot run here: it is never another one."""
    space = TokenSpace((1, 2), vocab_size=5, code_channels=2, num_classes=2)
    for package, fields in (
        ("flash_attn", {"attention_backend": "flash_attn"}),
        ("mamba_ssm", {"scan_backend": "mamba_ssm"}),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        sizes = {"depth": 1, "width": 16, "num_heads": 2, "mamba": MambaConfig(d_state=8, headdim=8)}
        with pytest.raises(
            UserError, match=f"_backend: '{package}' (is not installed|cannot run .*); allowed"
        ) as error:
            model = ScaleTransformer(ModelConfig(pattern="intra+mamba", **sizes), space, RuntimeConfig(**fields))
            model(torch.zeros(1, dtype=torch.long), torch.zeros(1, 4, 2))
        assert "\n" not in str(error.value)


def test_every_optional_package_that_a_kernel_imports_has_a_stored_signature():
    stored = json.loads(SIGNATURES.read_text())
    modules = {found["module"]: found["functions"] for found in stored.values()}
    packages = {module.split(".")[0] for module in modules}
    for path in KERNELS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in packages:
                assert {alias.name for alias in node.names} <= modules[node.module].keys(), f"{path}: {node.module}"


def folder_of_fla() -> Path:
    found = find_spec("fla")
    assert found and found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


@pytest.mark.parametrize(
    ("package", "name", "source"),
    [
        ("mamba-ssm", "mamba_chunk_scan_combined", "mamba_ssm/ops/triton/ssd_combined.py"),
        ("fla-core", "chunk_simple_gla", "ops/simple_gla/chunk.py"),
    ],
)
def test_the_stored_signature_is_that_of_the_source(package, name, source):
    folder = folder_of_mamba_ssm() if package == "mamba-ssm" else folder_of_fla()
    found = next(n for n in ast.parse((folder / source).read_text()).body if getattr(n, "name", "") == name)
    for argument in (*found.args.args, *found.args.kwonlyargs, found.args.kwarg):
        if argument:
            argument.annotation = None
    parameters = eval(f"lambda {ast.unparse(found.args)}: None")
    assert inspect.signature(parameters) == signature(package, name)


def test_stored_signatures_say_where_they_were_read():
    """Two packages are built by nvcc alone: where one is installed, it is compared."""
    for package, stored in json.loads(SIGNATURES.read_text()).items():
        where = stored["source"]
        assert stored["version"] in where or "a test compares them" in where, package
        if find_spec(stored["module"].split(".")[0]) and "a test compares" not in where:
            module = importlib.import_module(stored["module"])
            for name in stored["functions"]:
                names = inspect.signature(getattr(module, name)).parameters
                assert names.keys() == signature(package, name).parameters.keys()


def test_a_run_says_once_which_scan_it_takes_and_why(capsys):
    config = override(PRESETS["smoke"], {"model.pattern": "intra+mamba"})
    with Kernels("mamba_chunk_scan_combined"), fake_gpu():
        for _ in range(2):
            note_once(environment.scan_in_words(config, torch.device("cuda")) or "")
    assert capsys.readouterr().err == "mvar: runtime.scan_backend: fla (mamba_ssm not installed)\n"
    assert environment.scan_in_words(config, torch.device("cpu")) is None


FORKED = """
import os
import torch
from mvar.kernels.fake_gpu import fake_gpu

def train():
    torch.ones(1, requires_grad=True).square().sum().backward()

with fake_gpu():
    torch.zeros(1, device="cuda")
train()
if child := os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
train()
"""


@pytest.mark.slow
def test_a_process_that_has_counted_on_a_fake_gpu_may_be_forked():
    subprocess.run([sys.executable, "-c", FORKED], check=True)
