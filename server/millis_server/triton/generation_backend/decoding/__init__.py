"""What the backend is made of: all of it but the entry that Triton looks for, model.py.

In Triton's process this package is `decoding`, because its folder is on the path there; the pipeline and the
benchmarks import it as part of `millis_server`. So its modules import each other by relative names.
"""
