"""The config that Triton is told to load."""

import json

import pytest

from millis_server.triton.model_config import ConfigUnreadable, config_for

CONFIG = """
name: "intent-int8"
backend: "millis"
max_batch_size: 32
version_policy { latest { num_versions: 2 } }
parameters { key: "workers" value { string_value: "2" } }
"""


def test_a_config_asks_for_the_versions_named_and_keeps_the_rest(tmp_path):
    path = tmp_path / "config.pbtxt"
    path.write_text(CONFIG)
    assert json.loads(config_for(tmp_path, ["3", "1"])) == {
        "name": "intent-int8",
        "backend": "millis",
        "max_batch_size": 32,
        "version_policy": {"specific": {"versions": ["3", "1"]}},
        "parameters": {"workers": {"string_value": "2"}},
    }


def test_a_config_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "config.pbtxt"
    with pytest.raises(ConfigUnreadable, match=f"^{path}: No such file or directory$"):
        config_for(tmp_path, ["1"])
    path.write_text("max_batch_size: many")
    with pytest.raises(ConfigUnreadable, match=f"^{path}: 1:17 : .*Couldn't parse integer: many$"):
        config_for(tmp_path, ["1"])
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigUnreadable, match=f"^{path}: 'utf-8' codec can't decode"):
        config_for(tmp_path, ["1"])
