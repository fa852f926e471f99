"""docs/model.md names the transitions, properties and mistakes of the model, and no others."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "model.md").read_text(encoding="utf-8")
MODEL = (DOCS / "model" / "handover.pml").read_text(encoding="utf-8")
CHECK = (DOCS / "model" / "check").read_text(encoding="utf-8")


def first_cells(title: str) -> list[str]:
    """The first cell of each row of the tables under a heading."""
    section = re.split(r"^#+ ", PAGE.partition(f"\n{title}\n")[2], maxsplit=1, flags=re.M)[0]
    return re.findall(r"^\| ([^|]*?) \|", section, re.M)


def test_each_transition_is_in_the_table():
    taken = set(re.findall(r"(?:NAME|MOVE)\(([SDW]_\w+)", MODEL)) - {"D_ALONE"}
    rows = [c for side in ("Source", "Destination", "World") for c in first_cells(f"### {side}")]
    named = [name for row in rows if row != "name" for name in row.split(", ")]
    assert sorted(named) == sorted(taken)


def test_each_property_is_in_the_table():
    named = [cell.strip("`") for cell in first_cells("## Properties") if cell != "name"]
    assert sorted(named) == sorted(re.findall(r"assert\((\w+)\)", MODEL))


def test_each_mistake_is_in_the_table_with_the_property_that_finds_it():
    wanted = dict(re.findall(r"^([A-Z_]+) +\d+ +(\w+)", CHECK, re.M))
    rows = re.findall(r"^\| ([A-Z_]+[A-Z_, ]*): .* \| (.*) \|$", PAGE, re.M)
    named = {}
    for mistakes, properties in rows:
        named |= zip(mistakes.split(", "), re.findall(r"`(\w+)`", properties), strict=True)
    assert named == wanted
