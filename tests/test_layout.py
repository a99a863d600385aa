"""The house rules that no linter knows: where packages lie, how long things are, what is said."""

from __future__ import annotations

import ast
import importlib.machinery
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = {"chunkcache": ROOT, "chunkcache_kernels": ROOT / "kernels",
                "chunkcache_indexes": ROOT / "indexes"}  # fmt: skip
CLIENT_ROOTS = {"chunkcache_client": ROOT / "client",
                "langchain_chunkcache": ROOT / "integrations" / "langchain",
                "llama_index": ROOT / "integrations" / "llamaindex",
                "haystack_integrations": ROOT / "integrations" / "haystack"}  # fmt: skip
FOLDERS = ["chunkcache", "kernels", "indexes", "client", "integrations", "tests", "benchmarks",
           "docs", "docker", "examples"]  # fmt: skip
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(*suffixes: str) -> list[Path]:
    """The project's own files; what tools leave behind is not ours."""
    found = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.is_file()]
    found += [p for p in ROOT.iterdir() if p.is_file()]
    found += [p for p in (ROOT / ".ci").rglob("*") if p.is_file()]
    return sorted(
        p for p in found if "__pycache__" not in p.parts and (not suffixes or p.suffix in suffixes)
    )


def modules(roots: dict[str, Path]) -> dict[str, Path]:
    """Every module of the packages under these roots, by its dotted name."""
    found = {}
    for package, root in roots.items():
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules(SOURCE_ROOTS)
PUBLIC = MODULES | modules(CLIENT_ROOTS)
PYTHON = files(".py")
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PYTHON}


def where(path: Path, node: ast.AST | None = None) -> str:
    line = getattr(node, "lineno", None)
    return str(path.relative_to(ROOT)) + (f":{line}" if line else "")


def texts() -> Iterator[tuple[Path, str]]:
    for path in files():
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image


# ------------------------------------------------------------------ where packages lie


def test_the_rules_are_held_against_the_whole_project() -> None:
    assert len(MODULES) > 80
    assert {p.relative_to(ROOT).parts[0] for p in PYTHON} >= {"chunkcache", "kernels", "indexes"}
    assert Path(__file__) in TREES


@pytest.mark.parametrize(
    "folder",
    ["kernels", "indexes", "client", "integrations", "docker", "benchmarks", "examples", "docs"],
)
def test_a_folder_that_is_no_package_has_no_init(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_hugging_faces_kernels_package_is_not_shadowed(tmp_path: Path) -> None:
    """transformers imports `kernels` if it can; an __init__.py here would make it this folder."""
    here = importlib.machinery.PathFinder.find_spec("kernels", [str(ROOT)])
    assert here is None or here.origin is None  # a namespace at most, which any package beats
    (tmp_path / "kernels").mkdir()
    theirs = tmp_path / "kernels" / "__init__.py"
    theirs.touch()
    found = importlib.machinery.PathFinder.find_spec("kernels", [str(ROOT), str(tmp_path)])
    assert found is not None and found.origin == str(theirs)


def test_a_typed_package_says_so() -> None:
    for package, root in {**SOURCE_ROOTS, **CLIENT_ROOTS}.items():
        inits = [path.parent for path in (root / package).rglob("__init__.py")]
        tops = [path for path in inits if not any(other in path.parents for other in inits)]
        assert tops and all((path / "py.typed").is_file() for path in tops)


def test_what_modules_read_beside_them_is_installed_with_them() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["*"]
    for package, root in SOURCE_ROOTS.items():
        for path in files():
            if path.is_relative_to(root / package) and path.suffix != ".py":
                assert any(path.match(pattern) for pattern in patterns), where(path)


def imported_by(path: Path, name: str) -> set[str]:
    """Dotted names a module imports; of `from a import b` both a and a.b."""
    found: set[str] = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found - {name}


def test_a_namespace_that_others_share_has_no_init() -> None:
    for package in ("llama_index", "haystack_integrations"):
        inits = list((CLIENT_ROOTS[package] / package).rglob("__init__.py"))
        assert inits and {path.parent.name for path in inits} == {"chunkcache"}


def settings_of(folder: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))


def imports_when_run(path: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports of a module, but for those that only type checkers see."""
    for node in TREES[path].body:
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from (n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom))


def test_the_clients_modules_import_only_each_other() -> None:
    """They are shipped under another name too: an absolute import would lead back to this one."""
    settings = settings_of("client")
    allowed = {re.split(r"[^\w-]", text)[0] for text in settings["project"]["dependencies"]}
    listed = settings["tool"]["chunkcache-client"]["modules"]
    names = {f"chunkcache.{module.removesuffix('.py')}" for module in listed}
    for name, path in MODULES.items():
        if ".".join(name.split(".")[:2]) not in names:
            continue
        for node in imports_when_run(path):
            if isinstance(node, ast.Import) or not node.level:
                found = [alias.name for alias in node.names]
                tops = {str(getattr(node, "module", None) or one).split(".")[0] for one in found}
                assert tops <= allowed | sys.stdlib_module_names, where(path, node)
        reached = {".".join(found.split(".")[:2]) for found in imported_by(path, name)}
        assert reached & {".".join(one.split(".")[:2]) for one in MODULES} <= names | {
            "chunkcache"
        }, where(path)
    assert names <= set(MODULES)


def test_an_integration_depends_on_its_core_and_the_client_alone() -> None:
    cores = {"langchain": "langchain-core", "llamaindex": "llama-index-core",
             "haystack": "haystack-ai"}  # fmt: skip
    assert {path.parent.name for path in (ROOT / "integrations").glob("*/pyproject.toml")} == set(
        cores
    )
    version = settings_of("client")["project"]["version"]
    for folder, core in cores.items():
        project = settings_of(f"integrations/{folder}")["project"]
        asked = {re.split(r"[^\w-]", text)[0]: text for text in project["dependencies"]}
        assert set(asked) == {core, "chunkcache-client"}
        assert asked["chunkcache-client"] == f"chunkcache-client=={version}"
        assert project["version"] == version


# what decision 30's figures are of; tests hold them, nothing that runs needs them
STUDIES = {"chunkcache.evaluate.hitrate.cascade", "chunkcache.evaluate.hitrate.learnt"}
# kernels that the benchmarks measure and no model calls yet
KERNELS = {"chunkcache_kernels.triton_heads"}


def test_every_module_is_imported_by_another() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    used = {target.partition(":")[0] for target in scripts.values()} | {"chunkcache.__main__"}
    for name, path in MODULES.items():
        used |= imported_by(path, name)
    used |= {name.rpartition(".")[0] for name in used}  # importing a module imports its package
    assert set(MODULES) - used == STUDIES | KERNELS


def loaded_first(path: Path, seen: frozenset[Path] = frozenset()) -> str | None:
    """Which of the product and torch a benchmark loads first, itself or by a module beside it."""
    for node in TREES[path].body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [alias.name for alias in node.names]
            for name in named if isinstance(node, ast.Import) else [str(node.module)]:
                top = name.partition(".")[0]
                if top in {"chunkcache", "chunkcache_kernels", "torch", "transformers"}:
                    return top
                beside = path.with_name(f"{top}.py")
                if beside in TREES and beside not in seen:
                    found = loaded_first(beside, seen | {path})
                    if found is not None:
                        return found
    return None


def test_benchmarks_load_the_product_before_torch() -> None:
    """As every user does: it tells OpenMP's threads not to spin, and OpenMP reads that once."""
    first = {p.name: loaded_first(p) for p in (ROOT / "benchmarks").glob("bench_*.py")}
    assert "chunkcache" in first.values()
    assert {name for name, top in first.items() if top not in (None, "chunkcache")} == set()


# ------------------------------------------------------------------ how long things are


def test_no_file_is_too_long_to_read_at_once() -> None:
    lengths = {where(p): len(p.read_text(encoding="utf-8").splitlines()) for p in PYTHON}
    assert {name: n for name, n in lengths.items() if n > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    lengths = {
        where(path, node): node.end_lineno - node.lineno + 1
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, Function) and node.end_lineno
    }
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES} == {}


# ------------------------------------------------------------------ what is said


def public_definitions(body: list[ast.stmt]) -> Iterator[ast.ClassDef | Function]:
    """Classes and functions a reader may use, and the methods of such classes."""
    for node in body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body)


def test_every_module_and_every_public_name_is_explained() -> None:
    silent = []
    for path in PUBLIC.values():
        tree = TREES[path]
        if tree.body and not ast.get_docstring(tree):
            silent.append(where(path))
        silent += [
            f"{where(path, node)} {node.name}"
            for node in public_definitions(tree.body)
            if not ast.get_docstring(node)
        ]
    assert silent == []


def word(*parts: str) -> str:
    """A word this file must not contain itself."""
    return "".join(parts)


UNFINISHED = [word("TO", "DO"), word("FIX", "ME"), word("X", "XX"), word("HA", "CK")]
REGISTRIES = [word("py", "pi.org"), word("python", "hosted.org"), word("npm", "js.com"),
              word("crates", ".io"), word("ana", "conda.org"), word("go", "lang.org")]  # fmt: skip
MACHINE = [word("/wo", "rk/"), word("/ro", "ot/")]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        pytest.param(UNFINISHED, "notes of unfinished work", id="unfinished"),
        pytest.param(REGISTRIES, "hosts of package registries", id="registries"),
        pytest.param(MACHINE, "paths of one machine", id="paths"),
    ],
)
def test_no_file_holds(words: list[str], what: str) -> None:
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(w)}(?!\w)" if w.isalpha() else re.escape(w)
                                  for w in words))  # fmt: skip
    found = [
        f"{where(path)}:{number}: {line.strip()[:80]}"
        for path, text in texts()
        if words is not UNFINISHED or path.suffix != ".md"  # a rule may name what it forbids
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == [], f"the project holds {what}"


def test_names_say_what_a_thing_is() -> None:
    stems = re.compile(r"(^|_)(utils?|common|helpers?|misc|v\d+)$")
    assert [where(p) for p in PYTHON if stems.search(p.stem)] == []
    classes = [
        f"{where(path, node)} {node.name}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        if re.search(r"(Manager|Helper|Utils?|V\d+)$", node.name)
    ]
    assert classes == []


def is_everything(kind: ast.expr | None) -> bool:
    return kind is None or (
        isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"}
    )


def test_no_error_is_swallowed_in_silence() -> None:
    silent = [
        where(path, node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and is_everything(node.type)
        if all(isinstance(s, ast.Pass | ast.Continue) for s in node.body)
    ]
    silent += [
        where(path, node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress")
        if any(is_everything(kind) for kind in node.args)
    ]
    assert silent == []


def test_annotations_are_never_evaluated_by_accident() -> None:
    late = [
        where(path)
        for path in MODULES.values()
        if TREES[path].body
        and not any(
            isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in TREES[path].body
        )
    ]
    assert late == []
