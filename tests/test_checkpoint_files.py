"""Files that are not quite a checkpoint: what they are is said, what is in them is found, sizes are checked first."""

import argparse
import gzip
import io
import json
import pickle
import resource
import struct
import tarfile
import zipfile
from collections import OrderedDict, defaultdict
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mvar.checkpoints.checkpoint_files import read_checkpoint, split_choice
from mvar.checkpoints.published import load_generator, load_tokenizer, official_state, write_official
from mvar.checkpoints.weights import load_weights, save_weights
from mvar.config import ModelConfig, TokenizerConfig, TokenSpace
from mvar.errors import UserError
from mvar.tokenizer.model import Tokenizer
from mvar.transformer import ScaleTransformer

SIDES = (1, 2, 3, 4)


@cache
def model() -> ScaleTransformer:
    torch.manual_seed(0)
    return ScaleTransformer(ModelConfig(depth=2, width=64, num_heads=1), TokenSpace(SIDES, 32, 8, 10))


def state():
    return official_state(model())


def assert_loads(path, **options):
    found, facts = load_generator(path, **options)
    assert facts.space == model().space and facts.config.depth == 2
    for key, tensor in model().state_dict().items():
        assert torch.equal(found.state_dict()[key], tensor), key


def refusal(path, load=load_generator, **options) -> str:
    with pytest.raises(UserError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert path.name in message and "\n" not in message and len(message) < 5000
    return message.replace(str(path), "FILE")


# Texts and archives ---------------------------------------------------------------------------------------------------

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00ff\nsize 1234567890\n"
PAGE = "<!DOCTYPE html><html><title>Sign in</title></html>"
FOREIGN = {
    "lfs": (LFS.encode(), "a pointer of git-lfs to a file of 1234567890 bytes, .*git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s12--00ff.pth\n", "git annex get"),
    "page": (PAGE.encode(), r"a web page \(HTML\), .*download the file itself"),
    "bom": (b"\xef\xbb\xbf\r\n <HTML>" + b" " * 9000, "a web page"),
    "utf16": (PAGE.encode("utf-16"), "a web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML text"),
    "json": (b'{"error": "Access restricted"}', 'a JSON text that begins \'{"error"'),
    "text": ("größer als erlaubt".encode(), "a text that begins 'größer als erlaubt'"),
    "long": ("ä".encode() * 3000, "a text that begins 'ä"),
    "empty": (b"", "an empty file"),
    "zeros": (bytes(10_000), "begins with zeros, an unfinished download"),
    "gzip": (gzip.compress(b"x" * 100), "a gzip archive; unpack it"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG picture"),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin", "ckpt"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_called_what_it_is(name, suffix, tmp_path):
    import re

    content, says = FOREIGN[name]
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(content)
    for load in (load_generator, load_tokenizer):
        message = refusal(path, load)
        assert re.search(says, message) and "Python objects" not in message, message


def test_own_weights_left_as_a_pointer(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text(LFS)
    assert "is a pointer of git-lfs" in refusal(path, load_weights)


def test_other_archives(tmp_path):
    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    assert "a tar archive" in refusal(tmp_path / "a.pth")
    with (tmp_path / "b.pth").open("wb") as file:
        np.savez(file, x=np.zeros(3))
    assert "a NumPy archive" in refusal(tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
        archive.writestr("folder/var.pth", b"1")
    assert "a ZIP archive that torch.save has not written" in refusal(tmp_path / "c.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "d.pth")
    assert "a TorchScript program" in refusal(tmp_path / "d.pth")
    (tmp_path / "e.pth").mkdir()
    assert "(a directory)" in refusal(tmp_path / "e.pth")


def test_a_file_is_read_by_its_content_not_its_name(tmp_path):
    save_file(state(), tmp_path / "a.pth")
    torch.save(state(), tmp_path / "b.safetensors")
    torch.save(state(), tmp_path / "c", _use_new_zipfile_serialization=False)
    torch.save(state(), tmp_path / "d.safetensors", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        assert_loads(path)


# Prefixes, and which of several ---------------------------------------------------------------------------------------

PREFIXES = [
    *("model.", "var.", "module.", "_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module."),
    "module._orig_mod.model.",
    "model.var._orig_mod.module.",
    "_fsdp_wrapped_module.model._fsdp_wrapped_module.var._checkpoint_wrapped_module.",
    "generator.net.",
]


@pytest.mark.parametrize("inner", ["", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module._orig_mod.module."])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_in_any_combination_and_position(prefix, inner, tmp_path):
    def name(key):
        return prefix + key.replace("blocks.1.", f"blocks.1.{inner}").replace("attn.", f"attn.{inner}")

    # what a Lightning module holds beside the model; keys without any attribute in front are the model's
    beside = {"loss.weight": torch.zeros(3)} if any(part in prefix for part in ("model", "var", "net")) else {}
    torch.save({"state_dict": {name(key): t for key, t in state().items()} | beside, "global_step": 7}, tmp_path / "a")
    assert_loads(tmp_path / "a")


def test_with_and_without_a_wrapper_is_refused(tmp_path):
    torch.save(state() | {"module.pos_1LC": state()["pos_1LC"]}, tmp_path / "a.pth")
    assert "holds 'pos_1LC' twice" in refusal(tmp_path / "a.pth")


def halved():
    return {key: tensor * 0.5 if tensor.is_floating_point() else tensor for key, tensor in state().items()}


PAIRS = {
    "nested": (lambda: {"model": state(), "ema": halved(), "steps": 7}, "model", "ema", ["model", "ema"]),
    "timm": (
        lambda: {"state_dict": state(), "state_dict_ema": halved()},
        "state_dict",
        "ema",
        ["state_dict", "state_dict_ema"],
    ),
    "deep": (
        lambda: {"trainer": {"var_wo_ddp": state(), "var_ema": {"module": halved()}}},
        "var_wo_ddp",
        "var_ema",
        ["trainer.var_wo_ddp", "trainer.var_ema.module"],
    ),
    "prefixes": (
        lambda: {f"{p}.{k}": t for p, s in (("model", state()), ("model_ema", halved())) for k, t in s.items()},
        "model",
        "model_ema",
        ["model", "model_ema"],
    ),
    "beside": (lambda: state() | {f"ema.{k}": t for k, t in halved().items()}, None, "ema", ["without a name", "ema"]),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_a_model_and_its_average(kind, tmp_path):
    make, plain, ema, labels = PAIRS[kind]
    path = tmp_path / "pair.pth"
    torch.save(make(), path)
    message = refusal(path)
    assert "holds 2 generators" in message and "--weights" in message and all(label in message for label in labels)
    if plain:
        assert_loads(path, weights=plain)
    for found, _ in (load_generator(path, weights=ema), load_generator(f"{path}#{ema}")):
        assert torch.equal(found.head.weight, model().head.weight * 0.5)
    with pytest.raises(UserError, match=r"weights: 'raw' names no one generator in .*; allowed: .*ema"):
        load_generator(path, weights="raw")


def test_only_one_that_fits_needs_no_choice(tmp_path):
    torch.save({"model": state(), "ema": {"decay": torch.tensor(0.5)}, "vae": small_tokenizer()}, tmp_path / "a.pth")
    assert_loads(tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth", "tokenizer").label == "vae"


def test_a_sign_in_the_files_own_name(tmp_path):
    path = tmp_path / "run#3.pth"
    torch.save({"model": state(), "ema": halved()}, path)
    assert split_choice(path) == (path, "") and split_choice(f"{path}#ema") == (path, "ema")
    assert_loads(f"{path}#model")


def small_tokenizer(**fields):
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig(width=8, vocab_size=32, code_channels=8, **fields), 1).state_dict()


# Shards ---------------------------------------------------------------------------------------------------------------


def write_shards(folder, kind):
    keys = sorted(state())
    parts = [keys[::2], keys[1::2]]
    stem, save = ("model", save_file) if kind == "safetensors" else ("pytorch_model", torch.save)
    ending = "safetensors" if kind == "safetensors" else "bin"
    names = [f"{stem}-0000{number}-of-00002.{ending}" for number in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        save({key: state()[key] for key in part}, folder / name)
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(
        json.dumps({"weight_map": {key: name for name, part in zip(names, parts, strict=True) for key in part}})
    )
    return index, [folder / name for name in names]


@pytest.mark.parametrize("kind", ["safetensors", "pytorch"])
def test_shards_are_loaded_through_their_index(kind, tmp_path):
    index, (first, second) = write_shards(tmp_path, kind)
    assert_loads(index)
    assert "one of several shards; give their .index.json" in refusal(first)
    second.rename(tmp_path / "away")
    assert f"has 2 shards, {second.name} missing beside it" in refusal(index)
    second.write_text(LFS)
    with pytest.raises(UserError, match=rf"{second.name}.* is a pointer of git-lfs"):
        load_generator(index)
    second.unlink()
    first.rename(second)
    with pytest.raises(UserError, match="missing beside it"):
        load_generator(index)
    second.rename(first)
    torch.save({"other": torch.zeros(2)}, second)
    with pytest.raises(UserError, match=rf"{second.name} lacks '.*', which {index.name} says it holds"):
        load_generator(index)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../a.pth"}}', "[" * 5000],
)
def test_an_index_that_is_none(content, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    (tmp_path.parent / "a.pth").write_bytes(b"")
    refusal(path)


# Python objects -------------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_weights_are_named_and_never_made(zipped, tmp_path, capsys):
    objects = {
        "argparse.Namespace": argparse.Namespace(lr=1e-4),
        "multiarray.scalar": np.float64(3.5),
        "collections.defaultdict": defaultdict(int),
        "pathlib": tmp_path,
        "torch.nn.modules.linear.Linear": torch.nn.Linear(2, 2),
        "builtins.print": Evil(),
    }
    for name, value in objects.items():
        for protocol in (2, 4):
            path = tmp_path / "training.pth"
            content = {"model": state(), "extra": value}
            torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            message = refusal(path)
            assert "Python objects" in message and name in message, message
    assert capsys.readouterr().out == ""


def test_objects_of_a_plain_pickle_are_named(tmp_path):
    for protocol in (2, 4):
        (tmp_path / "a.pth").write_bytes(pickle.dumps({"w": np.zeros(3)}, protocol))
        assert "multiarray._reconstruct" in refusal(tmp_path / "a.pth")


# Sizes ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bounded_memory():
    """No more than 4 GB of addresses beyond those in use: whoever takes what a file claims fails here."""
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


def with_tensor(key, tensor):
    return OrderedDict(state() | {key: tensor})


HUGE = {
    "stride 0": lambda: with_tensor("head.weight", torch.zeros(1).expand(1_000_000, 640_000)),
    "stride 0 in width": lambda: with_tensor("word_embed.weight", torch.zeros(1).expand(1_000_000, 640_000)),
    "sparse": lambda: with_tensor(
        "head.weight", torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.int64), [1.0], (1_000_000, 640_000))
    ),
    "sparse csr": lambda: with_tensor("head.weight", torch.eye(3).to_sparse_csr()),
    "quantized": lambda: with_tensor("head.weight", torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.quint8)),
    "meta": lambda: with_tensor("head.weight", torch.empty(1_000_000, 640_000, device="meta")),
    "views of one": lambda: (
        state() | {f"blocks.{i}.x": tensor for tensor in [torch.zeros(100_000)] for i in range(100)}
    ),
    "complex": lambda: with_tensor("head.weight", state()["head.weight"].to(torch.complex64)),
    "wide": lambda: with_tensor("word_embed.weight", torch.zeros(1_000_000, 8)),
    "many codes": lambda: with_tensor("head.weight", torch.zeros(1_000_000, 1)),
    "no codes": lambda: with_tensor("head.weight", torch.zeros(0, 1_000_000_000_000)),
    "no dimensions": lambda: with_tensor("word_embed.weight", torch.tensor(1.0)),
    "levels": lambda: with_tensor("lvl_1L", torch.tensor([10**12, -5])),
    "far layer": lambda: with_tensor(f"blocks.{10**40}.attn.proj.bias", torch.zeros(1)),
    "whole numbers": lambda: with_tensor("head.weight", state()["head.weight"].to(torch.int8)),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", HUGE)
def test_what_a_file_claims_is_compared_with_its_bytes(name, zipped, tmp_path, bounded_memory):
    path = tmp_path / "a.pth"
    torch.save(HUGE[name](), path, _use_new_zipfile_serialization=zipped)
    refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_nested_and_self_containing_checkpoints(zipped, tmp_path):
    deep = {"state": state()}
    for _ in range(3000):
        deep = {"a": deep}
    own = {"model": state()}
    own["self"] = own
    many = {"x": torch.zeros(1)}
    for _ in range(60):  # 2^60 paths
        many = {"a": many, "b": many}
    for name, content in {"own": own, "many": many}.items():
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert_loads(tmp_path / "own")
    assert "holds no generator" in refusal(tmp_path / "many")
    depth = 40_000  # torch.save would recurse: written by hand
    raw = b"\x80\x02" + b"}X\x01\x00\x00\x00a" * depth + b"N" + b"s" * depth + b"."
    (tmp_path / "deep.pth").write_bytes(raw)
    refusal(tmp_path / "deep.pth")
    write_zip(tmp_path / "deeper.pth", raw)
    assert "holds no generator" in refusal(tmp_path / "deeper.pth")


def write_zip(path, data, compression=zipfile.ZIP_STORED, more=()):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", data)
        for name, content in more:
            archive.writestr(name, content)
        archive.writestr("a/version", b"3\n")


def patched(old: bytes, new: bytes) -> bytes:
    """The pickle of a one-tensor checkpoint of 1000 numbers, with one number of it replaced."""
    file = io.BytesIO()
    torch.save({"pos_1LC": torch.zeros(1000)}, file)
    with zipfile.ZipFile(file) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert old in data
    return data.replace(old, new)


def test_bombs_and_declared_storages(tmp_path, bounded_memory):
    bomb = bytes(1 << 28)
    write_zip(tmp_path / "bomb.pth", bomb, zipfile.ZIP_DEFLATED)
    assert "its parts claim 268435458 bytes, compressed" in refusal(tmp_path / "bomb.pth")
    more = [("a/data/0", bomb)]
    write_zip(tmp_path / "data.pth", pickle.dumps({}, 2), zipfile.ZIP_DEFLATED, more)
    assert "compressed or overlapping" in refusal(tmp_path / "data.pth")
    for new in (b"J\xff\xff\xff\x7f", b"\x8a\x06\x00\x00\x00\x00\x00\x10"):  # 2^31 and 2^44 numbers
        write_zip(tmp_path / "claims.pth", patched(b"M\xe8\x03", new), more=[("a/data/0", bytes(4000))])
        refusal(tmp_path / "claims.pth")


HEADER = {"pos_1LC": {"dtype": "F32", "shape": [1, 10**12, 1], "data_offsets": [0, 4 * 10**12]}}
HEADERS = {
    "elements": json.dumps(HEADER),
    "overflow": json.dumps({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}),
    "negative": json.dumps({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
    "nested": '{"__metadata__": ' + '{"a": ' * 50_000,
    "no json": "{nope",
}


@pytest.mark.parametrize("name", HEADERS)
def test_safetensors_headers_that_lie(name, tmp_path, bounded_memory):
    text = HEADERS[name].encode()
    for length in (len(text), 10**12, 2**63):
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + text + bytes(8))
        refusal(tmp_path / "a.safetensors")


def exported(path, change=lambda config: None):
    from mvar.config import RunConfig

    config = RunConfig().model_dump(mode="json")
    config["model"] |= {"depth": 2, "width": 64, "num_heads": 1}
    config["tokenizer"] |= {"vocab_size": 32, "code_channels": 8, "patch_sides": list(SIDES)}
    metadata = {"config": config}
    change(metadata)
    write_official(path, state(), metadata)
    return path


LIES = {
    "depth": lambda m: m["config"]["model"].update(depth=10**9),
    "pattern": lambda m: m["config"]["model"].update(pattern="1000000000*global"),
    "width": lambda m: m["config"]["model"].update(width=10**9),
    "mlp": lambda m: m["config"]["model"].update(mlp_ratio=1e300),
    "sides": lambda m: m["config"]["tokenizer"].update(patch_sides=[1, 2, 3, 10**6]),
    "codes": lambda m: m["config"]["tokenizer"].update(vocab_size=10**12),
    "state": lambda m: m["config"]["model"].update(pattern="mamba", mamba={"d_state": 10**12, "headdim": 64}),
    "no model": lambda m: m["config"].pop("model"),
    "a list": lambda m: m.update(config=[1, 2]),
    "a text": lambda m: m.update(config="x"),
    "unknown": lambda m: m["config"]["model"].update(colour="red"),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("name", LIES)
def test_a_configuration_that_lies_takes_no_memory(name, suffix, tmp_path, bounded_memory):
    refusal(exported(tmp_path / f"a.{suffix}", LIES[name]))


TOKENIZER_LIES = {
    "blocks": {"num_res_blocks": 10**9},
    "stages": {"channel_multipliers": [1] * 100_000},
    "phis": {"share_phi": 10**9},
    "codes": {"vocab_size": 10**12},
    "width": {"width": 10**9},
}


@pytest.mark.parametrize("name", TOKENIZER_LIES)
def test_a_tokenizers_configuration_that_lies_takes_no_memory(name, tmp_path, bounded_memory):
    path = tmp_path / "v.safetensors"
    values = TokenizerConfig(width=8, vocab_size=32).model_dump(mode="json") | TOKENIZER_LIES[name]
    write_official(path, small_tokenizer(), {"tokenizer": values})
    refusal(path, load_tokenizer)


# Export and values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_exports_tell_all_and_load_strictly(suffix, tmp_path):
    """As official code does it: a model with the official names, `load_state_dict(torch.load(...), strict=True)`."""
    path = exported(tmp_path / f"m.{suffix}", lambda m: m["config"]["model"].update(drop_path=0.1))
    found, facts = load_generator(path)
    assert facts.config == model().config.model_copy(update={"drop_path": 0.1}) and not facts.assumed
    assert facts.space == model().space and torch.equal(found.head.weight, model().head.weight)
    with pytest.raises(UserError, match=r"patch_sides: 1-2-4 .* does not fit .* allowed: the checkpoint's 1-2-3-4"):
        load_generator(path, patch_sides=(1, 2, 4))
    if suffix == "safetensors":
        return
    for restricted in (True, False):
        content = torch.load(path, map_location="cpu", weights_only=restricted)
        assert content.keys() == state().keys()

        class Official(torch.nn.Module):  # every official key a parameter or buffer of its own
            def __init__(self):
                super().__init__()
                for key, tensor in state().items():
                    *parents, leaf = key.split(".")
                    place = self
                    for parent in parents:
                        if not hasattr(place, parent):
                            place.add_module(parent, torch.nn.Module())
                        place = getattr(place, parent)
                    place.register_buffer(leaf, torch.zeros_like(tensor))

        official = Official()
        official.load_state_dict(content, strict=True)
        assert all(torch.equal(tensor, state()[key]) for key, tensor in official.state_dict().items())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_an_exported_tokenizer_tells_what_its_weights_cannot(suffix, tmp_path):
    config = TokenizerConfig(width=8, vocab_size=32, phi_ratio=0.3, beta=0.2)
    torch.manual_seed(0)
    write_official(
        tmp_path / f"v.{suffix}", Tokenizer(config, 1).state_dict(), {"tokenizer": config.model_dump(mode="json")}
    )
    assert load_tokenizer(tmp_path / f"v.{suffix}").config == config
    other = load_tokenizer(tmp_path / f"v.{suffix}", patch_sides=(1, 2, 4)).config  # the weights fit any scales
    assert (other.patch_sides, other.phi_ratio, other.beta) == ((1, 2, 4), 0.3, 0.2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_that_are_not_finite_are_named(bad, suffix, tmp_path):
    weights = state()
    weights["blocks.1.ffn.fc1.weight"][3, 5] = bad
    write_official(tmp_path / f"m.{suffix}", weights)
    message = refusal(tmp_path / f"m.{suffix}")
    assert "blocks.1.ffn.fc1.weight is not finite in 1 of its 16384 values" in message
    codes = small_tokenizer()
    codes["quantize.embedding.weight"][0, 0] = bad
    write_official(tmp_path / f"v.{suffix}", codes)
    assert "quantize.embedding.weight is not finite in 1" in refusal(tmp_path / f"v.{suffix}", load_tokenizer)


def test_large_finite_weights_are_accepted(tmp_path):
    module = torch.nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.fill_(3e38)  # their sum is not finite
    save_weights(tmp_path / "m.safetensors", module, {})
    assert load_weights(tmp_path / "m.safetensors")[0]["weight"][0, 0] == module.weight[0, 0]
    with torch.no_grad():
        module.bias[1] = float("nan")
    save_weights(tmp_path / "n.safetensors", module, {})
    assert "bias is not finite in 1 of its 2 values" in refusal(tmp_path / "n.safetensors", load_weights)
