"""The policy is checked when it is made."""

import dataclasses

import pytest

from vfioflow import ConfigError, Policy


def test_defaults_are_valid_and_frozen():
    policy = Policy()
    assert policy.downtime_limit == 0.3
    assert policy.on_no_convergence == "abort"
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.downtime_limit = 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("downtime_limit", 0),
        ("downtime_limit", -1.0),
        ("max_bandwidth", 0),
        ("compression", "lz4"),
        ("compression", "zstd"),
        ("compression", "zstd:"),
        ("compression", "zstd:23"),
        ("compression", "zstd:-101"),
        ("channels", -1),
        ("channels", 65),
        ("chunk_size", 4095),
        ("chunk_size", 64 * 1024 * 1024 + 1),
        ("max_iterations", 0),
        ("precopy_timeout", 0),
        ("on_no_convergence", "hope"),
        ("connect_timeout", 0),
        ("stall_timeout", -5),
    ],
)
def test_a_wrong_value_is_named(field, value):
    with pytest.raises(ConfigError, match=rf"{field}={value!r}: must be") as caught:
        Policy(**{field: value})
    assert isinstance(caught.value, ValueError)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "level"), [("none", None), ("auto", None), ("zstd:3", 3), ("zstd:-5", -5)]
)
def test_zstd_level(text, level):
    assert Policy(compression=text).zstd_level == level


@pytest.mark.parametrize(
    ("channels", "devices", "count"), [(0, 1, 1), (0, 4, 4), (0, 64, 8), (3, 1, 3), (2, 9, 2)]
)
def test_channel_count(channels, devices, count):
    assert Policy(channels=channels).channel_count(devices) == count


def test_every_field_is_documented():
    import ast
    import inspect

    from vfioflow import policy

    tree = ast.parse(inspect.getsource(policy))
    [cls] = [n for n in tree.body if isinstance(n, ast.ClassDef)]
    documented = {
        node.target.id
        for node, after in zip(cls.body, cls.body[1:], strict=False)
        if isinstance(node, ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
    assert documented == {field.name for field in dataclasses.fields(Policy)}
