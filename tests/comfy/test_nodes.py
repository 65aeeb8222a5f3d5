"""What every node must have, whatever it does."""

import inspect

import pytest
from framepack_pack.nodes import NODES, register_folders
from framepack_pack.nodes.history import FramePackStartHistory
from framepack_pack.nodes.schema import CATEGORY, check_choice

register_folders()
SCHEMAS = {node: node.define_schema() for node in NODES}
IDS = [schema.node_id for schema in SCHEMAS.values()]

each_node = pytest.mark.parametrize(("node", "schema"), SCHEMAS.items(), ids=IDS)


def test_ids_are_ours_and_distinct():
    assert len(set(IDS)) == len(IDS)
    assert all(node_id.startswith("FramePackNative") for node_id in IDS)


@each_node
def test_inputs_are_the_parameters_of_execute(node, schema):
    parameters = inspect.signature(node.execute).parameters
    assert {widget.id for widget in schema.inputs} == set(parameters)
    for widget in schema.inputs:
        has_default = parameters[widget.id].default is not inspect.Parameter.empty
        assert has_default == widget.optional, f"{widget.id}: optional inputs, and only those, have a default"


@each_node
def test_inputs_and_outputs_have_distinct_ids(node, schema):
    """Equal ids make the whole pack fail to load on ComfyUI up to 0.3.75."""
    ids = [item.id for item in (*schema.inputs, *schema.outputs)]
    assert len(set(ids)) == len(ids)


@each_node
def test_everything_is_explained(node, schema):
    assert schema.description
    assert schema.category == CATEGORY
    assert schema.display_name
    for widget in schema.inputs:
        assert widget.tooltip, f"{widget.id} has no tooltip"
        assert widget.tooltip.endswith("."), widget.id


@each_node
def test_every_input_is_read(node, schema):
    """A widget that nothing reads is a defect."""
    body = inspect.getsource(node.execute).split("io.NodeOutput:", 1)[1]
    for widget in schema.inputs:
        assert widget.id in body, f"{widget.id} is not read"


def test_defaults_are_the_values_users_know():
    defaults = {
        widget.id: widget.default
        for schema in SCHEMAS.values()
        for widget in schema.inputs
        if hasattr(widget, "default")
    }
    known = {"steps": 25, "guidance": 10.0, "cfg": 1.0, "latent_window_size": 9, "total_second_length": 5.0}
    assert {name: defaults[name] for name in known} == known


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "sideways"}, "mode is 'sideways', which is not in its list: backward"),
        ({"total_second_length": 0.0}, "length above 0 seconds"),
        ({"total_second_length": -2.0}, "length above 0 seconds"),
        ({"latent_window_size": 0}, "at least 1 latent frame"),
        ({"width": 648}, "648x640 pixels; both sides must be a multiple of 16"),
        ({"latent_paddings": "1, 0"}, "2 entries, but the film has 4 sections"),
    ],
)
def test_films_that_make_no_sense_are_refused(changes, message):
    widgets = {
        "mode": "backward (FramePack)",
        "total_second_length": 5.0,
        "latent_window_size": 9,
        "latent_paddings": "",
        "seed": 0,
        "width": 640,
        "height": 640,
    }
    assert FramePackStartHistory.execute(**widgets).args[0].draws == 0
    with pytest.raises(ValueError, match=message):
        FramePackStartHistory.execute(**{**widgets, **changes})


def test_choices_name_their_list():
    check_choice("solver", "bh1", ["bh1", "bh2"])
    with pytest.raises(ValueError, match="solver is 'bh3', which is not in its list: bh1, bh2"):
        check_choice("solver", "bh3", ["bh1", "bh2"])
