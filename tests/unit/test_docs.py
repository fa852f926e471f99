"""Relative links in the README and docs/ lead to files, and to headings in them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page):
    links = LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [
        p.name for p in PAGES if p.parent.name == "docs" and f"docs/{p.name}" not in readme
    ] == []


def _rows() -> dict[str, int]:
    """The row of each module in the table of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (.*) \|$", text, re.MULTILINE)
    return {name.strip("` "): int(number) for number, names in rows for name in names.split(",")}


def _imports(tree: ast.Module) -> set[str]:
    """What a module imports of vfioflow, save for type checkers only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "vfioflow":
            found |= {f"vfioflow.{a.name}" for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    parts = {name.split(".")[1] for name in found if name.startswith("vfioflow.")}
    return {"extensions" if part.startswith("_") else part for part in parts}


def test_modules_import_only_from_their_row_and_below():
    rows = _rows()
    package = ROOT / "vfioflow"
    wrong = []
    seen = set()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).with_suffix("").parts[0]
        if name.startswith("__"):
            continue
        seen.add(name)
        for other in _imports(ast.parse(path.read_text(encoding="utf-8"))):
            if rows[other] < rows[name]:
                wrong.append(f"{name} imports {other}")
    assert wrong == []
    assert seen | {"extensions"} == rows.keys()
