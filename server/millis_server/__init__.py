"""The Millis gateway: text in, typed answers out, in front of Triton.

The path of a request: service.py, requests.py, infer.py, tasks/, triton/lane.py, triton/client.py, and back.
"""
