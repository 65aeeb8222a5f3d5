"""Every node has a help page that names its inputs and outputs, and stands in the README."""

from pathlib import Path

import pytest
from framepack_pack.nodes import NODES, register_folders

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "js" / "docs"  # below WEB_DIRECTORY, where ComfyUI looks for <node id>.md

register_folders()
SCHEMAS = {schema.node_id: schema for schema in (node.define_schema() for node in NODES)}

each_node = pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)


def read_page(schema) -> str:
    return (PAGES / f"{schema.node_id}.md").read_text(encoding="utf-8")


@each_node
def test_help_page_has_the_nodes_name(schema):
    assert read_page(schema).startswith(f"# {schema.display_name}\n")


@each_node
def test_help_page_names_every_input_and_output(schema):
    rows = [line for line in read_page(schema).splitlines() if line.startswith("| `")]
    for item in (*schema.inputs, *schema.outputs):
        assert any(f"`{item.id}`" in row.split("|")[1] for row in rows), f"no row for {item.id}"


@each_node
def test_help_page_names_no_input_that_is_gone(schema):
    known = {item.id for item in (*schema.inputs, *schema.outputs)} | {item.display_name for item in schema.outputs}
    head = "| input |", "| output |"
    named, in_table = [], False
    for line in read_page(schema).splitlines():
        in_table = line.startswith(head) or (in_table and line.startswith("|"))
        if in_table and line.startswith("| `"):
            named += line.split("|")[1].split("`")[1::2]
    assert set(named) <= known


@each_node
def test_help_page_has_the_widgets_default(schema):
    for item in schema.inputs:
        default = getattr(item, "default", None)
        if isinstance(default, int | float) or (getattr(item, "options", None) and default):
            (row,) = (line for line in read_page(schema).splitlines() if line.startswith(f"| `{item.id}` |"))
            shown = row.split("|")[3].strip(" `")
            assert shown == (default if isinstance(default, str) else f"{default:g}"), item.id


def test_there_is_no_page_of_a_node_that_is_gone():
    assert {page.stem for page in PAGES.glob("*.md")} == SCHEMAS.keys()


def test_readme_lists_every_node():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"| {schema.display_name} |" in readme for schema in SCHEMAS.values())
