"""The direction of imports between the rooms, and the budgets that keep each file readable.

The rooms and their direction: `pipeline` (Beam, Arrow), `models` (TensorFlow), `streaming`
(TensorFlow, sources) know nothing of each other but contracts; `jobs` is where they meet.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pipeline", "models", "streaming", "jobs")
CONTRACTS = {"pipeline.schema", "pipeline.specification"}

# What a room may import of the other rooms; itself is always allowed, and `jobs` may import all.
ALLOWED: dict[str, set[str]] = {
    "pipeline": set(),
    "models": CONTRACTS | {"pipeline.durable"},
    "streaming": CONTRACTS
    | {"pipeline.durable", "pipeline.manifest", "pipeline.topics"}
    | {"models.contract", "models.features"},
}
# Third parties have homes: a room, or single modules.
HOMES = {
    "apache_beam": {"pipeline", "jobs"},
    "tensorflow": {"models", "streaming", "jobs"},
    "tensorflow_recommenders": {"models", "jobs"},
    "tf_keras": {"models", "streaming", "jobs"},
    "kafka": {
        "pipeline.publish",
        "pipeline.topics.transactions",
        "streaming.joining.kafka_input",
        "streaming.joining.kafka_output",
        "streaming.joining.kafka_topics",
        "streaming.sources.kafka",
        "streaming.sources.kafka_client",
        "streaming.sources.kafka_dead_letters",
        "jobs.bench.join.topics",
        "jobs.bench.stream.consumer",
    },
    "tfx_bsl": {"pipeline.topics.example"},
    "tensorflow_metadata": {"pipeline.topics.example"},
    "dask": {"pipeline", "jobs"},
    "distributed": {"pipeline", "jobs"},
    "duckdb": {"jobs.bench"},
    "rich": {"jobs"},
    "prometheus_client": {"streaming.watch.endpoints"},
    "matplotlib": {"jobs"},
    "jinja2": {"jobs"},
}
MAX_MODULE_LINES = 400
MAX_FOLDER_MODULES = 12
MAX_FUNCTION_LINES = 50
MAX_POSITIONAL = 6
MAX_ARGUMENTS = 8
MAX_CONFIG_FIELDS = 12
BANNED_NAMES = {"utils", "common", "helpers", "base", "manager"}
# On a sharded variable this returns rows in shard order, silently. Two modules read shard by shard.
SHARD_ORDER = {"sparse_read"}
SHARD_READERS = {"streaming.servers.state", "streaming.servers.push"}
MACHINE_PATH = re.compile(r"(?:^|[\s'\"=:(])/(?:home|root|work|Users|mnt|opt)/")


def modules(root: Path) -> list[Path]:
    return [path for room in ROOMS for path in sorted((root / room).rglob("*.py"))]


def module_name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) of each import, wherever it stands; `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [part.value for part in node.args if isinstance(part, ast.Constant)]
            yield from ((node.lineno, str(name)) for name in names[:1])


def within(name: str, homes: set[str]) -> bool:
    return any(name == home or name.startswith(f"{home}.") for home in homes)


def import_problems(root: Path) -> Iterator[str]:
    for path in modules(root):
        name = module_name(path, root)
        room = name.split(".")[0]
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        for line, target in imported(ast.parse(path.read_text()), package):
            top = target.split(".")[0]
            where = f"{path.relative_to(root)}:{line}"
            if top == "tests":
                yield f"{where}: imports {target}; tests are not shipped"
            elif top in ROOMS and top != room and room != "jobs":
                if not within(target, ALLOWED[room]):
                    yield f"{where}: {room} imports {target}; it may import {sorted(ALLOWED[room])}"
            elif top in HOMES and not within(name, HOMES[top]):
                yield f"{where}: imports {target}; its home is {sorted(HOMES[top])}"


def budget_problems(root: Path) -> Iterator[str]:
    for path in modules(root):
        where = str(path.relative_to(root))
        text = path.read_text()
        if (lines := text.count("\n")) > MAX_MODULE_LINES:
            yield f"{where}: {lines} lines; at most {MAX_MODULE_LINES}"
        if path.stem in BANNED_NAMES:
            yield f"{where}: a name that says nothing; name the module by what it knows"
        for node in ast.walk(ast.parse(text)):
            yield from (f"{where}:{problem}" for problem in node_problems(node))
    for folder in {path.parent for path in modules(root)}:
        count = sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        if count > MAX_FOLDER_MODULES:
            yield f"{folder.relative_to(root)}: {count} modules; at most {MAX_FOLDER_MODULES}"


def node_problems(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from function_problems(node)
    elif isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Spec", "Section")):
        fields = sum(isinstance(part, ast.AnnAssign) for part in node.body)
        if fields > MAX_CONFIG_FIELDS:
            yield f"{node.lineno}: {node.name} has {fields} fields; at most {MAX_CONFIG_FIELDS}"


def function_problems(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if lines > MAX_FUNCTION_LINES:
        yield f"{node.lineno}: {node.name} has {lines} lines; at most {MAX_FUNCTION_LINES}"
    positional = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
    positional = [name for name in positional if name not in ("self", "cls")]
    if len(positional) > MAX_POSITIONAL:
        yield f"{node.lineno}: {node.name} has {len(positional)} positional arguments"
    if (count := len(positional) + len(node.args.kwonlyargs)) > MAX_ARGUMENTS:
        yield f"{node.lineno}: {node.name} has {count} arguments; at most {MAX_ARGUMENTS}"


def banned_problems(root: Path) -> Iterator[str]:
    for path in modules(root):
        where = path.relative_to(root)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert):
                yield f"{where}:{node.lineno}: assert is stripped by -O; raise an error"
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "hash":
                yield f"{where}:{node.lineno}: hash() differs from process to process"
            elif is_shard_order_read(node) and module_name(path, root) not in SHARD_READERS:
                yield f"{where}:{node.lineno}: {ast.unparse(node)} returns rows in shard order"
            elif isinstance(node, ast.Constant) and MACHINE_PATH.search(str(node.value)):
                yield f"{where}:{node.lineno}: a path of one machine"


def is_shard_order_read(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in SHARD_ORDER


def test_rooms_import_in_the_agreed_direction() -> None:
    assert list(import_problems(ROOT)) == []


def test_files_stay_within_their_budgets() -> None:
    assert list(budget_problems(ROOT)) == []


def test_code_avoids_what_goes_wrong_silently() -> None:
    assert list(banned_problems(ROOT)) == []


def test_every_room_says_its_reading_order() -> None:
    for room in ROOMS:
        assert ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())), room


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("pipeline/a.py", "import tensorflow as tf"),
        ("pipeline/a.py", "from streaming import ledger"),
        ("pipeline/a.py", "def f():\n    from models.towers import tower"),
        ("pipeline/read.py", "import kafka"),
        ("models/a.py", "import apache_beam"),
        ("models/a.py", "from pipeline.read import read"),
        ("models/a.py", "from kafka import KafkaConsumer"),
        ("models/a.py", "from streaming import source"),
        ("streaming/a.py", "from models import two_tower"),
        ("streaming/a.py", "import models.two_tower"),
        ("streaming/worker/reader.py", "from kafka.consumer import KafkaConsumer"),
        ("streaming/a.py", "import importlib\nimportlib.import_module('jobs.train')"),
        ("streaming/sub/a.py", "from ...models import two_tower"),
        ("jobs/train.py", "import kafka"),
        ("jobs/train.py", "from tests.kafka import broker"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, source: str) -> None:
    plant(tmp_path, file, source)
    assert len(list(import_problems(tmp_path))) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("streaming/a.py", "from pipeline.schema import USER_ID\nfrom models import contract"),
        ("streaming/a.py", "from pipeline import schema as s"),
        ("streaming/sources/kafka.py", "from kafka import KafkaConsumer"),
        ("pipeline/publish.py", "import kafka"),
        ("models/a.py", "from pipeline.specification import Specification\nimport tensorflow"),
        ("jobs/a.py", "from pipeline import read\nfrom models import two_tower"),
        ("streaming/a.py", "from . import ledger"),
    ],
)
def test_an_allowed_import_passes(tmp_path: Path, file: str, source: str) -> None:
    plant(tmp_path, file, source)
    assert list(import_problems(tmp_path)) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("jobs/a.py", "\n" * 401),
        ("jobs/utils.py", ""),
        ("jobs/a.py", "def f():\n" + "    x = 1\n" * 50),
        ("jobs/a.py", "def f(a, b, c, d, e, f, g): ..."),
        ("jobs/a.py", "def f(a, *, b, c, d, e, f, g, h, i): ..."),
        ("jobs/a.py", "class TrainConfig:\n" + "".join(f"    a{n}: int\n" for n in range(13))),
    ],
)
def test_a_broken_budget_is_found(tmp_path: Path, file: str, source: str) -> None:
    plant(tmp_path, file, source)
    assert len(list(budget_problems(tmp_path))) == 1


def test_a_crowded_folder_is_found(tmp_path: Path) -> None:
    for number in range(13):
        plant(tmp_path, f"models/m{number}.py", "")
    assert list(budget_problems(tmp_path)) == ["models: 13 modules; at most 12"]


@pytest.mark.parametrize(
    "source",
    [
        "assert True",
        "bucket = hash('a') % 7",
        "table.sparse_read([1])",
        "PATH = '/" + "home/someone/data'",
        "def f():\n    '''Reads /" + "root/data.'''",
    ],
)
def test_planted_bad_code_is_found(tmp_path: Path, source: str) -> None:
    plant(tmp_path, "streaming/a.py", source)
    assert len(list(banned_problems(tmp_path))) == 1


def plant(root: Path, file: str, source: str) -> None:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
