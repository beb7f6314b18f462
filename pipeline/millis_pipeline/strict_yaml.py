"""YAML in which no mapping has a key twice: PyYAML takes the last one and says nothing of the others."""

from __future__ import annotations

from typing import Any

import yaml


class RepeatedKey(yaml.YAMLError):
    """A key that a mapping has already; the message is one line and names it with both lines."""


class _Loader(yaml.SafeLoader):
    """Looks at the keys as they are written: later a merge (`<<`) may put others beside them, which is no fault."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    raise RepeatedKey(f"{key.value}: it stands in line {lines[name]} and again in line {line}")
                lines[name] = line
        return node


def read_yaml(content: bytes) -> Any:
    """Reads a document as `yaml.safe_load` does.

    Raises:
        RepeatedKey: a mapping has a key twice.
        YAMLError: it is no YAML.
    """
    loader = _Loader(content)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
