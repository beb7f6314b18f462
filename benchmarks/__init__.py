"""Benchmarks that print tables; RESULTS.md records runs of them."""

import millis_pipeline  # noqa: F401  # first: what it keeps from reporting over the network would also take time here
