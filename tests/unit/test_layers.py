"""Which room imports which: arrows go one way, in imports inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

NAME = "score_openrlhf"
PACKAGE = Path(__file__).parents[2] / NAME
FILES = sorted(PACKAGE.rglob("*.py"))

# Room (a folder, or a file beside the folders) -> what it may import, besides EVERYWHERE (docs/architecture.md).
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "journal": {"files"},
    "platform": set(),
    "config": set(),
    "objective": {"config"},
    "tasks": {"config"},
    "rollout": {"config", "tasks"},
    "experience": {"config", "objective", "rollout", "tasks"},
    "cluster": {"config", "ray_cluster"},
    "memory_plan": {"config", "cluster"},
    "policies": {"config", "cluster", "experience", "rollout", "tasks"},
    "preflight": {"config", "files", "policies", "rollout", "tasks"},
    "console": {"config", "rollout"},
    "report": {"config", "console", "evaluation", "rollout"},  # and a run's files
    "ray_cluster": set(),
    "evaluation": {"config", "cluster", "files", "journal", "policies", "preflight", "rollout", "tasks"},
    "trainer": {"config", "cluster", "console", "evaluation", "files", "policies", "preflight", "rollout", "tasks"},
    "doctor": {"config", "memory_plan", "ray_cluster", "tasks"},
    "cli": {
        "config", "cluster", "console", "doctor", "evaluation", "files", "journal", "memory_plan", "preflight",
        "report", "rollout", "tasks", "trainer",
    },
    "launch": {"cli", "cluster", "config", "ray_cluster", "trainer"},
    "main": {"cli"},
    "__init__": set(),
}  # fmt: skip
EVERYWHERE = {"errors", "platform", "__init__", "__version__"}
HEAVY = ("torch", "ray", "vllm", "openrlhf", "transformers", "deepspeed")
WITHOUT_HEAVY = ("config", "memory_plan", "report", "console")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[tuple[int, str]]:
    """(line, module) of the imports among `nodes`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == NAME:
            yield from ((node.lineno, f"{NAME}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def test_every_room_is_drawn():
    assert {room_of(path) for path in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_is_below_it(room):
    allowed = MAY_IMPORT[room] | EVERYWHERE | {room}
    found = [
        f"{path.relative_to(PACKAGE)}:{line} imports {module}"
        for path in FILES
        if room_of(path) == room
        for line, module in imports(ast.walk(ast.parse(path.read_text())))
        if module.split(".")[0] == NAME and (module.split(".")[1:] or ["__init__"])[0] not in allowed
    ]
    assert found == []


def test_the_drawing_has_no_circle():
    above = {room: set(below) for room, below in MAY_IMPORT.items()}
    while ends := {room for room, below in above.items() if not below}:
        above = {room: below - ends for room, below in above.items() if room not in ends}
    assert above == {}


@pytest.mark.parametrize("room", WITHOUT_HEAVY)
def test_what_is_read_without_a_gpu_stack_imports_none_of_it(room):
    """At the top of a module; a function may look into a package when it is asked to."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line} imports {module}"
        for path in FILES
        if room_of(path) == room
        for line, module in imports(ast.parse(path.read_text()).body)
        if module.split(".")[0] in HEAVY
    ]
    assert found == []


def test_no_policy_is_told_apart_by_its_name():
    """Outside config/ nothing compares with a policy's name: what differs stands in its `PolicySpec`."""

    def is_name(node: ast.expr) -> bool:
        return (isinstance(node, ast.Constant) and node.value in ("solver", "guidance")) or (
            isinstance(node, ast.Name) and node.id in ("SOLVER", "GUIDANCE")
        )

    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in FILES
        if room_of(path) != "config"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        and any(isinstance(op, ast.Eq | ast.NotEq | ast.Is | ast.IsNot) for op in node.ops)
        and any(is_name(side) for side in (node.left, *node.comparators))
    ]
    assert found == []
