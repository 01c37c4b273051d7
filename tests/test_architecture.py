"""The house: rooms stand in one order and imports go down, files and functions stay small, importing needs nothing."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import mvar
import mvar.analysis
from mvar import layout, shipped

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "mvar").rglob("*.py"))
USERS = sorted(path for kind in ("experiments", "analysis") for path in (ROOT / kind).rglob("*.py"))

# Floor by floor, low to high, and in each floor room by room: a room imports rooms before it, and itself.
ROOMS = (
    *("escaping", "errors", "registry", "registries"),
    *("lazy", "layout", "place", "shipped", "memory", "progress", "files", "artefacts", "rows"),
    *("scales", "pattern", "config", "presets", "plugins", "plugin_records"),
    "kernels",
    "mixers",
    *("tokenizer", "transformer", "cost", "checking"),
    *("checkpoints", "sampling", "data"),
    "training",
    *("evaluation", "probes"),
    "runs",
    *("cluster", "analysis"),
    "api",
    *("commands", "cli"),
)
NAMES = {value: name for name, value in vars(layout).items() if name.isupper()}  # of a results directory
# Literals that only look like one of these names: what else they are, and where.
LOOK_ALIKES = {
    ("analysis", "a folder, in a message"): ("analysis.report",),
    ("analysis", "a folder of the code"): ("shipped", "analysis.contract", "cluster.snapshot"),
    ("analysis", "what a file sets"): ("registries",),
    ("attention", "a part of the model, in words or as a key"): (
        *("analysis.records", "checkpoints.published", "cluster.doctor", "runs.environment"),
        "training.profiling",
    ),
    ("attention", "what is made, as it is shown"): ("api.trained", "commands.attention", "runs.stages.attention"),
    ("attention", "an analysis, or its table's row"): ("attention_cost.py",),
    ("attention", "a kind of map"): ("probes.single_maps",),
    ("code", "a public name"): ("analysis",),
    ("tensorboard", "a package, and who asks for it"): ("config.sections", "training.tracking"),
    ("code", "a field, of a message or a document"): ("cluster.snapshot", "cluster.submission"),
    ("grid.png", "a file of the user's own"): ("commands.sample",),
    ("knockout", "an analysis"): ("knockout.py",),
    ("probes", "an analysis"): ("probes.py",),
    ("report", "what is made, as it is shown"): ("analysis.report", "commands.report"),
    ("runs", "a word of a message or a heading"): ("analysis.render", "cluster.executor", "cluster.scripts"),
    ("runs", "a public name"): ("mvar",),
    ("runs", "a key of an answer"): ("commands.run", "commands.run_tables", "commands.status"),
    ("samples", "images, in messages"): ("commands.export", "evaluation.copies", "evaluation.measure"),
    ("samples", "what a metric needs"): (
        *("evaluation.metrics.contract", "evaluation.metrics.inputs", "evaluation.metrics.copies", "runs.measured"),
    ),
    ("samples", "an analysis, or its figure"): ("samples.py", "runs.grid"),
    ("samples", "where data sets of torchvision keep theirs"): ("data.sources.torchvision",),
    ("stages", "a word of a message"): ("cluster.executor",),
    ("tokens.bin", "a type, which takes literals alone"): ("data.tokens",),
    ("labels.bin", "a type, which takes literals alone"): ("data.tokens",),
}
PUBLIC = {"mvar": set(mvar.__all__), "mvar.analysis": set(mvar.analysis.__all__)}  # names, loaded when they are used


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in LIBRARY}


def for_type_checkers(tree: ast.AST) -> set[ast.AST]:
    guarded = (n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    return {inner for node in guarded for inner in ast.walk(node)}


@cache
def imports_of(path: Path, also_of_types: bool = True) -> frozenset[str]:
    """Modules of the library that a file imports anywhere, in functions too."""
    tree = ast.parse(path.read_text())
    left_out = set() if also_of_types else for_type_checkers(tree)
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else str(node.module))
    return frozenset(name for name in found if name.split(".")[0] == "mvar")


def room_of(module: str) -> int:
    return ROOMS.index(module.split(".")[1])


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    module = module_of(path)
    if module == "mvar":  # the public names: of everything, for type checkers
        assert imports_of(path, also_of_types=False) == {"mvar.lazy"}
        return
    for name in imports_of(path):
        assert name != "mvar" or module in ("mvar.cli",), f"{module} imports the public names"
        assert name == "mvar" or room_of(name) <= room_of(module), f"{module} imports {name} from above"


def circles() -> Iterator[list[str]]:
    """Sets of modules that import each other, in functions or not (Tarjan's strongly connected components)."""
    edges = {module_of(path): imports_of(path, also_of_types=False) - {"mvar"} for path in LIBRARY}
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> Iterator[list[str]]:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in edges[module] & edges.keys():
            if other not in number:
                yield from visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            found = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(found) > 1:
                yield sorted(found)

    for module in edges:
        if module not in number:
            yield from visit(module)


def test_no_modules_import_each_other():
    assert list(circles()) == []


@pytest.mark.parametrize("path", USERS, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_users_edit_stands_on_public_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "mvar":
            assert node.module in PUBLIC, f"{path}: {node.module}"
            assert {alias.name for alias in node.names} <= PUBLIC[str(node.module)] | {"analysis"}
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("mvar") for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_stand_on_public_names(path):
    cells = (cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")
    tree = ast.parse("\n".join("".join(line for line in cell if not line.startswith("%")) for cell in cells))
    imported = [n for n in ast.walk(tree) if isinstance(n, ast.Import) and any("mvar" in a.name for a in n.names)]
    assert [ast.unparse(node) for node in imported] == ["import mvar"], "one import"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "mvar":
            assert {alias.name for alias in node.names} <= PUBLIC[str(node.module)], ast.unparse(node)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mvar":
            assert node.attr in PUBLIC["mvar"], ast.unparse(node)


@pytest.mark.parametrize("package", [mvar, mvar.analysis], ids=lambda p: p.__name__)
def test_public_names_are_there_and_known_to_type_checkers(package):
    tree = ast.parse(Path(str(package.__file__)).read_text())
    typed = {a.asname or a.name for n in for_type_checkers(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert typed == set(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


@pytest.mark.parametrize("path", [*LIBRARY, *USERS], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_small_and_say_what_they_are(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 400
    assert path.name not in ("utils.py", "helpers.py", "misc.py")
    assert ast.get_docstring(tree), "says nothing of itself"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"


@pytest.mark.parametrize("path", sorted((ROOT / "mvar").rglob("*.js")), ids=lambda path: path.name)
def test_scripts_of_pages_are_small_too(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.slow
def test_importing_the_library_needs_nothing_optional():
    heavy = [
        "mamba_ssm",
        "flash_attn",
        "causal_conv1d",
        "torch_fidelity",
        "sklearn",
        "tensorboard",
        "submitit",
        "anywidget",
    ]
    code = f"""
import importlib, pkgutil, sys
for name in {heavy!r}: sys.modules[name] = None  # any import of it now fails
import mvar
for module in pkgutil.walk_packages(mvar.__path__, 'mvar.'): importlib.import_module(module.name)
from mvar import shipped
for kind in ("experiments", "analysis"):
    for name in shipped.names(kind): shipped.load(shipped.find(kind, name))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_public_names_cost_nothing_until_they_are_used():
    code = "import sys, mvar; assert not {'torch', 'numpy', 'pandas', 'pydantic'} & sys.modules.keys(); mvar.RunConfig"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_all_that_users_edit_is_loaded():
    assert {path.parent.name for path in USERS} == {"experiments", "analysis"}
    assert shipped.folder("analysis") == ROOT / "analysis"


def literals(path: Path) -> Iterator[str]:
    """Every string of a file, parts of f-strings too; not what says what something is."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and not isinstance(node, ast.Expr):
                yield inner.value


def named_anew(path: Path) -> set[str]:
    """Names of a results directory that a file has as a string, or as a part of a path in one."""
    return {part for text in literals(path) for part in text.split("/") if part in NAMES}


def test_names_of_a_results_directory_stand_in_one_module():
    assert len(NAMES) == sum(name.isupper() for name in vars(layout)), "two names for one file"
    found = set()
    for path in (*LIBRARY, *USERS):
        if path.is_relative_to(ROOT / "experiments") or module_of(path) == "mvar.layout":
            continue
        where = module_of(path).removeprefix("mvar.") if path in LIBRARY else path.name
        found |= {(where, name) for name in named_anew(path)}
    known = {(where, name) for (name, _), places in LOOK_ALIKES.items() for where in places}
    for where, name in sorted(found - known):
        pytest.fail(f"{where}: {name!r}; allowed: layout.{NAMES[name]}")
    assert known - found == set(), "look-alikes that are gone"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('path / "status.json"', {"status.json"}),
        ('glob("stages/*/status.json")', {"stages", "status.json"}),
        ('f"{where}/eval.json"', {"eval.json"}),
        ('f"runs/{name}"', {"runs"}),
        ('row["train/loss"]', set()),
        ('say("status.json is damaged")', set()),
        ('"""status.json"""', set()),
    ],
)
def test_a_name_is_found_wherever_it_is_a_part_of_a_path(tmp_path, code, found):
    (tmp_path / "a.py").write_text(code)
    assert named_anew(tmp_path / "a.py") == found


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_a_results_directory_is_documented(name):
    text = (ROOT / "results" / "README.md").read_text()
    end = r"(?![\w-]|[.]\w)" if "." in name else "/"  # of a file's name, of a folder's
    assert re.search(rf"(?<![\w.-]){re.escape(name)}{end}", text)


def test_no_name_is_documented_that_the_code_does_not_have():
    tree = (ROOT / "results" / "README.md").read_text().split("```")[1]
    endings = "jsonl?|npz|npy|bin|pt|safetensors|txt|sha256|partial|csv|html|md|png|patch|damaged|tex"
    files = set(re.findall(rf"(?<![\w/<*.{{}}-])\.?[a-z][\w-]*\.(?:{endings})\b(?![.\w])", tree))
    folders = set(re.findall(r"(?<![\w/<>-])([a-z_]+)/", tree))
    assert len(files) > 40 and files - NAMES.keys() == {".dark.png"}  # an ending
    assert folders - NAMES.keys() == {"heldout", "train"}  # the two kinds of images
