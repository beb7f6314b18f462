"""Every family of language models, token by token against transformers, with prefix caching and without."""

from __future__ import annotations

import pytest

import millis
from benchmarks.gateway import running_gateway
from tests import tiny_generation as tiny
from tests.gateway.test_generation import check_exact


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("prefix_caching", ["true", "false"])
def test_greedy_tokens_of_every_family_are_those_of_transformers(tmp_path, prefix_caching):
    models = {family: tiny.language_model(family) for family in tiny.FAMILIES}
    for family, model in models.items():
        tiny.publish_language_model(tmp_path, family, model, parameters={"prefix_caching": prefix_caching})
    with running_gateway(tmp_path) as running, millis.Client(running.target) as client:
        for family, model in models.items():
            check_exact(client, family, model)
