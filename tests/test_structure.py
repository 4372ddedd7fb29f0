"""The structure of the code: which modules may import which, and where libraries are imported."""

import ast
import json
import pkgutil
import re
import subprocess
import sys

import jax
import pytest
from conftest import REPOSITORY, make_experiment

import jaxcpt
from jaxcpt import sharding
from jaxcpt.model import make_encoder, name_axes

# A module may only import modules above it. This is also a good order to read them.
ORDER = """
errors quantities hang_watch pair objects files object_cache lines beir chips sources config
prefixes checks smoke experiments run_lock run_folder mining tokenizer pairs packing order sharding
processes profiling interruption normalise operations attention rotary model calls adapter batches
loss_terms loss_streaming loss next_token likelihood optimizer update budget manifest checkpoint
bad_steps fingerprints data_cards interop start terminal rows live metrics top_k vectors documents
text_folder repository embed export search evals provenance report suite_tables scoring side_by_side
evaluate planning train replay init_experiment inspect_pairs import_model plan mine_text mine_code
clean_pairs nli_pairs mine_negatives train_tokenizer tokenize_pairs cli __main__
""".split()  # noqa: SIM905

HOMES = {
    "etils": {"objects"},
    "fsspec": {"objects"},
    "tensorstore": {"objects"},
    "flax": {"model"},
    "optax": {"optimizer"},
    "orbax": {"checkpoint"},
    "sentencepiece": {"tokenizer"},
    "tokenizers": {"tokenizer"},
    "tensorflow_datasets": {"pairs", "mining"},
    "array_record": {"mining", "pairs"},
    "pyarrow": {"mining", "pairs"},
    "datasets": {"pairs"},
    "tree_sitter": {"mining"},
    "apache_beam": {"mining"},
    "rich": {"terminal"},
    "tensorboardX": {"metrics"},
    "wandb": {"live"},
    "mlflow": {"live"},
    "matplotlib": {"report"},
    "bm25s": {"evals"},
    "mteb": {"evals"},
    "pytrec_eval": {"evals"},
    "sklearn": {"evals"},
    "scipy": {"evals"},
    "sentence_transformers": {"evals"},
    "safetensors": {"interop"},
    "libtpu": {"planning"},
}
# Parts of JAX that are easy to use wrongly are called in one place only.
CALLS = {
    "jax.shard_map": {"attention", "loss", "next_token"},
    "jax.distributed.initialize": {"processes"},
    "jax.make_mesh": {"sharding"},
    "jax.sharding.Mesh": {"sharding"},
    "jax.lax.with_sharding_constraint": {"sharding"},
}
FORBIDDEN = {"tensorflow", "torch", "utils", "common", "helpers", "tools", "experiments"}

PACKAGE = REPOSITORY / "jaxcpt"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def part_of(path):
    """The row of ORDER that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def find_imports(tree):
    """The full names of everything that a file imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node):
    """The dotted name `a.b.c` of an expression; empty if it is not one."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_only_what_stands_above(path):
    own = part_of(path)
    assert own in ORDER, f"give {own} its place in ORDER"
    for name in find_imports(parse(path)):
        if name.startswith("jaxcpt."):
            other = name.split(".")[1]
            if other in ORDER:
                assert ORDER.index(other) <= ORDER.index(own), f"{own} imports {other}"
            else:
                assert name in ("jaxcpt.Embedder", "jaxcpt.__version__"), (
                    f"{name} has no place in ORDER"
                )


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_one_home_for_each_library(path):
    tree, own = parse(path), part_of(path)
    for name in find_imports(tree):
        top = name.split(".")[0]
        assert own in HOMES.get(top, {own}), f"{top} lives in {HOMES[top]}, not in {own}"
        assert top not in FORBIDDEN, f"{own} imports {top}"
    called = {dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for name in called & set(CALLS):
        assert own in CALLS[name], f"{name} lives in {CALLS[name]}, not in {own}"


def test_every_library_is_a_dependency():
    """pyproject.toml requires every library that a file imports, for the package or an extra."""
    asked = (REPOSITORY / "pyproject.toml").read_text().lower().replace("-", "_")
    distributions = {
        "libtpu": "jax",
        "orbax": "orbax_checkpoint",
        "sklearn": "scikit_learn",
        "pytrec_eval": "pytrec_eval_terrier",
        "mlflow": "mlflow_skinny",
    }
    missing = {
        f"{top} of {path.relative_to(PACKAGE)}"
        for path in FILES
        for top in {name.split(".")[0] for name in find_imports(parse(path))}
        if top not in sys.stdlib_module_names
        and top != "jaxcpt"
        and not re.search(rf'"{distributions.get(top, top).lower()}["\[<>=]', asked)
    }
    assert not missing


def test_tools_may_know_the_package_and_never_the_reverse():
    for path in (REPOSITORY / "experiments").glob("*.py"):
        for name in find_imports(parse(path)):
            top = name.split(".")[0]
            fine = name.startswith("jaxcpt.config.") or top == "dataclasses"
            assert fine or (path.parent / f"{top}.py").is_file(), f"{path.name} imports {name}"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "model__layers": 0,
            "model__pooling": "mean",
            "model__weighted_mean__token_weights": True,
            "model__weighted_mean__position_weights": True,
        },
        {"model__norm": "rmsnorm", "model__mlp": "swiglu", "model__qk_norm": True},
        {"model__positions": "rotary", "model__biases": False, "model__kv_heads": 2},
    ],
)
def test_every_axis_of_the_parameters_has_a_rule(changes):
    # flax silently treats an unknown letter as "replicated".
    experiment = make_experiment(**changes)
    axes = name_axes(make_encoder(experiment))
    for letters in jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)):
        assert set(letters) <= set(sharding.RULES), letters


def test_letters_are_explained():
    explained = set(re.findall(r"(?:^|\s)([a-z]) [a-zA-Z]{2}", jaxcpt.__doc__))
    assert set(sharding.RULES) <= explained


def test_nothing_touches_a_device_when_imported():
    """Otherwise a command could neither choose its devices nor join other processes.

    Modules that need a missing optional library are skipped and named.
    """
    names = [module.name for module in pkgutil.walk_packages(jaxcpt.__path__, "jaxcpt.")]
    code = f"""
import importlib, json
missing, early = [], []
from jax._src import xla_bridge
for name in {names}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing.append(error.name)
    if xla_bridge.backends_are_initialized():
        early.append(name)
print(json.dumps([missing, early]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    missing, early = json.loads(done.stdout)
    assert early == []
    optional = {"apache_beam", "tree_sitter", "fastwarc", "resiliparse", "rensa", "py3langid"}
    assert {name.split(".")[0] for name in missing} <= optional | {"pyarrow", "libtpu", "zstandard"}


def test_evaluations_load_no_model():
    """They only know `embed_fn` and not the model, so they need none of its libraries."""
    code = """
import importlib, pkgutil, sys
import jaxcpt.evals
for module in pkgutil.walk_packages(jaxcpt.evals.__path__, "jaxcpt.evals."):
    importlib.import_module(module.name)
print(*{name.partition(".")[0] for name in sys.modules} & {"flax", "orbax", "optax"})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout == "\n"


def test_configuration_needs_no_jax():
    code = "import sys, jaxcpt.config, jaxcpt.mining; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


OPENED_FOR_WRITING = {
    "files.py": "it holds write_file",
    "objects.py": "it is what write_file writes objects with, and it opens /dev/null",
    "object_cache.py": "opens its lock files, which stay empty",
    "rows.py": "appends lines to metrics.jsonl while a run goes on",
    "mining/grouping.py": "appends records to the buckets that Beam's workers share",
    "mining/pipeline.py": "opens a lock file, which stays empty",
    "mining/progress.py": "opens /dev/null",
}
"""Modules that open files for writing, and why they do not call `write_file`."""


def writes_a_file(call):
    """Whether the call is `write_text`, `write_bytes`, or `open` with a mode that writes."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    texts = [node.value for node in arguments if isinstance(node, ast.Constant)]
    modes = [text for text in texts if re.fullmatch(r"[rbt]*[wax+][bt+]*", str(text))]
    return name in ("write_text", "write_bytes") or (name in ("open", "fdopen") and bool(modes))


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_are_written_by_write_file(path):
    """With other ways of writing, a killed process could leave half a file."""
    writing = [n for n in ast.walk(parse(path)) if isinstance(n, ast.Call) and writes_a_file(n)]
    named = path.relative_to(PACKAGE).as_posix() in OPENED_FOR_WRITING
    assert bool(writing) == named, [node.lineno for node in writing]


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_module_says_what_it_is(path):
    tree = parse(path)
    assert ast.get_docstring(tree), "a module says what comes in, what goes out"
    forbidden = ("util", "common", "helper", "lib", "base", "manager")
    assert not path.stem.startswith(forbidden)


MAINTAINED = [*FILES, *sorted((REPOSITORY / "tools").glob("*.py"))]
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}
"""Files and functions that may be longer, each with the reason. There are none."""


@pytest.mark.parametrize("path", MAINTAINED, ids=[p.name for p in MAINTAINED])
def test_files_and_functions_are_short(path):
    lines = len(path.read_text().splitlines())
    name = str(path.relative_to(REPOSITORY))
    assert lines <= LONG_FILES.get(name, 400), f"{name} has {lines} lines"
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            own = f"{name}:{node.name}"
            assert lines <= LONG_FUNCTIONS.get(own, 60), f"{own} has {lines} lines"


def test_at_most_eleven_floors_of_imports():
    """The longest chain of imports between modules and folders directly under jaxcpt/."""
    imports: dict[str, set[str]] = {}
    for path in FILES:
        names = (name.split(".") for name in find_imports(parse(path)))
        parts = {name[1] for name in names if name[0] == "jaxcpt" and name[1] in ORDER}
        imports.setdefault(part_of(path), set()).update(parts - {part_of(path)})
    chains: dict[str, list[str]] = {}
    for part in ORDER:  # a part comes after everything that it imports
        below = max((chains[other] for other in imports.get(part, ())), key=len, default=[])
        chains[part] = [part, *below]
    longest = max(chains.values(), key=len)
    print(len(longest), "floors:", " > ".join(longest))
    assert len(longest) <= 11, " > ".join(longest)
