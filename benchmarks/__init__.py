"""Benchmarks that print tables; RESULTS.md records runs of them."""
