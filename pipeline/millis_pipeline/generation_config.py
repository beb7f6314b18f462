"""Writes the config.pbtxt of a model that generates text: for our own backend, for vLLM's and for TensorRT-LLM's."""

from __future__ import annotations

from tritonclient.grpc import model_config_pb2 as triton

from millis_server.manifest import Generation, Manifest

BACKENDS = {"millis": "millis_generation", "vllm": "vllm", "tensorrt-llm": "python"}
"""Triton backend of each protocol."""

THREADS = 2
"""That work on one step."""

BATCHED_TOKENS = 256
"""Tokens in one step of the engine: long prompts are read in parts of this size, between the tokens of other texts."""

VLLM_INPUTS = {
    "text_input": triton.TYPE_STRING,
    "stream": triton.TYPE_BOOL,
    "sampling_parameters": triton.TYPE_STRING,
    "exclude_input_in_output": triton.TYPE_BOOL,
    "return_finish_reason": triton.TYPE_BOOL,
    "return_logprobs": triton.TYPE_BOOL,
    "return_num_input_tokens": triton.TYPE_BOOL,
    "return_num_output_tokens": triton.TYPE_BOOL,
}
OUTPUTS = {
    "text_output": triton.TYPE_STRING,
    "finish_reason": triton.TYPE_STRING,
    "logprobs": triton.TYPE_STRING,
    "num_input_tokens": triton.TYPE_UINT32,
    "num_output_tokens": triton.TYPE_UINT32,
}
TENSORRT_INPUTS = {
    "text_input": triton.TYPE_STRING,
    "streaming": triton.TYPE_BOOL,
    "sampling_param_max_tokens": triton.TYPE_INT32,
    "sampling_param_temperature": triton.TYPE_FP32,
    "sampling_param_top_p": triton.TYPE_FP32,
    "sampling_param_top_k": triton.TYPE_INT32,
    "sampling_param_seed": triton.TYPE_UINT64,
    "sampling_param_frequency_penalty": triton.TYPE_FP32,
    "sampling_param_presence_penalty": triton.TYPE_FP32,
    "sampling_param_stop": triton.TYPE_STRING,
    "sampling_param_exclude_input_from_output": triton.TYPE_BOOL,
    "return_finish_reason": triton.TYPE_BOOL,
}


def generation_config(manifest: Manifest, generation: Generation) -> triton.ModelConfig:
    """The config of a variant that generates.

    It is decoupled: one request has many responses. Triton batches nothing, because the engine does so itself, token
    by token. One version is loaded at a time more than answers, as for every model.
    """
    config = triton.ModelConfig(name=manifest.triton_model, backend=BACKENDS[generation.protocol], max_batch_size=0)
    config.version_policy.latest.num_versions = 2
    config.model_transaction_policy.decoupled = True
    kinds = TENSORRT_INPUTS if generation.protocol == "tensorrt-llm" else VLLM_INPUTS
    for name, kind in kinds.items():
        dims = -1 if name == "sampling_param_stop" else 1
        config.input.add(
            name=name, data_type=kind, dims=[dims], optional=generation.protocol == "millis" or name != "text_input"
        )
    outputs = dict(OUTPUTS)
    if generation.protocol == "tensorrt-llm":
        outputs = {name: OUTPUTS[name] for name in ("text_output", "finish_reason")}
    for name, kind in outputs.items():
        config.output.add(name=name, data_type=kind, dims=[-1])
    if generation.protocol == "millis":
        _add_millis(config, generation)
    else:
        # These engines take the devices that their own arguments name.
        config.instance_group.add(kind=triton.ModelInstanceGroup.KIND_MODEL, count=1)
    return config


def _add_millis(config: triton.ModelConfig, generation: Generation) -> None:
    """What our backend has beside vLLM's tensors, and its parameters."""
    inputs = {"prompt_token_ids": (triton.TYPE_INT32, -1), "session": (triton.TYPE_STRING, 1)}
    inputs |= dict.fromkeys(("number", "cancel"), (triton.TYPE_INT32, 1))
    for name, (kind, dims) in inputs.items():
        config.input.add(name=name, data_type=kind, dims=[dims], optional=True)
    outputs = {"token_ids": triton.TYPE_INT32, "pieces": triton.TYPE_UINT8}
    for name, kind in outputs.items():
        config.output.add(name=name, data_type=kind, dims=[-1])
    config.instance_group.add(kind=triton.ModelInstanceGroup.KIND_CPU, count=1)
    parameters = {
        "engine": generation.engine,
        "device": generation.device,
        "threads": str(THREADS),
        "max_streams": str(generation.max_streams),
        "cache_tokens": str(generation.cache_tokens),
        "max_batched_tokens": str(BATCHED_TOKENS),
        "kv_cache_precision": generation.kv_cache_precision,
        "prefix_caching": "true",
        "prompt_lookup": "0",
        "draft": generation.draft,
    }
    for name, value in parameters.items():
        config.parameters[name].string_value = value
