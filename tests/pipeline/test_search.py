"""What `millis tune` tries, in which order, and what it takes for the best."""

from __future__ import annotations

from dataclasses import replace

from millis_pipeline.configuration import Configuration, search_space, unable
from millis_pipeline.search import Search, Target, finalists
from millis_pipeline.stand import Measured
from millis_pipeline.trials import Trial

NOW = Configuration("fp32", "onnxruntime", 1, 2, 64, 0, 0, 2)
OTHER = Configuration("fp32", "openvino", 2, 1, 16, 4, 200, 3)
ALIKE = Measured(1.0, 1.0, 10.0, 1.0)


def tell(search: Search, configuration: Configuration, measured: Measured | None = ALIKE) -> None:
    search.tell(Trial(0, configuration, measured, "" if measured else "it does not run"))


def test_what_is_known_is_not_tried_again_whatever_it_was_measured_for():
    space = search_space(["fp32", "int8"])
    known = [Trial(1, NOW, ALIKE), Trial(2, replace(NOW, threads=2), None, "it does not load")]
    proposed = []
    search = Search(space, Target("throughput", 5.0), NOW, known)
    for _ in range(30):
        proposed.append(search.propose())
        tell(search, proposed[-1])
    assert len(set(proposed)) == 30
    assert not {trial.configuration for trial in known} & set(proposed)


def test_what_is_known_costs_by_the_target_of_this_search():
    known = [Trial(1, NOW, Measured(1.0, 4.0, 10.0, 1.0)), Trial(2, OTHER, Measured(2.0, 2.0, 50.0, 1.0))]
    space = {**search_space(["fp32"]), "threads": (1, 2), "workers": (1, 2), "lanes": (2, 3)}
    values = [
        [trial.value for trial in Search(space, target, NOW, known)._study.get_trials() if trial.value is not None]
        for target in (Target("latency"), Target("latency", 2.0), Target("throughput"))
    ]
    assert values == [[1.0, 2.0], [4.0, 2.0], [100.0, 20.0]]


def test_a_trial_whose_throughput_was_left_out_is_known_to_a_search_for_latency_alone():
    hopeless, broken = Trial(1, NOW, Measured(9.0, 9.0)), Trial(2, NOW, None, "it does not load")
    assert [Target("latency").judges(trial) for trial in (hopeless, broken)] == [True, True]
    assert [Target("throughput").judges(trial) for trial in (hopeless, broken)] == [False, True]


def test_a_search_begins_with_one_change_at_a_time():
    space = {**search_space(["fp32", "int8"]), "threads": (1, 2), "workers": (1, 2), "lanes": (1, 2)}
    search = Search(space, Target("latency"), NOW)
    proposed = []
    for _ in range(4):
        proposed.append(search.propose())
        tell(search, proposed[-1])
    changes = [{"threads": 2, "workers": 1}, {"variant": "int8"}, {"engine": "openvino"}, {"threads": 2}]
    assert proposed == [replace(NOW, **change) for change in changes]


def test_an_engine_that_fails_a_variant_twice_is_not_tried_with_it_again():
    space = {**search_space(["fp32", "int8"]), "max_batch": (8,), "preferred_batch": (0,), "delay_us": (0,)}
    search = Search(space, Target("latency"), OTHER)
    failures = 0
    for _ in range(12):
        configuration = search.propose()
        broken = (configuration.variant, configuration.engine) == ("int8", "openvino")
        failures += broken
        tell(search, configuration, None if broken else ALIKE)
    assert failures <= 2


def test_cuda_is_searched_where_onnx_runtime_has_it(monkeypatch):
    assert search_space(["fp32"])["device"] == ("cpu",)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    assert search_space(["fp32"])["device"] == ("cpu", "cuda")


def test_a_device_that_cannot_be_used_is_left_after_two_failures_and_the_search_goes_on(monkeypatch):
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    monkeypatch.setattr("millis_pipeline.search.MAX_REPEATS", 2)
    space = {**search_space(["fp32"]), "max_batch": (8,), "preferred_batch": (0,), "delay_us": (0,), "lanes": (1, 2)}
    space |= {"threads": (1, 2), "workers": (1, 2)}
    search = Search(space, Target("latency"), OTHER)
    tried = []
    while (configuration := search.propose()) is not None:
        tried.append((configuration.engine, configuration.device))
        works = configuration.device == "cpu"
        tell(search, configuration, ALIKE if works else None)
    assert sorted(tried) == ([("onnxruntime", "cpu")] * 8 + [("onnxruntime", "cuda")] * 2 + [("openvino", "cpu")] * 8)


def test_a_variant_is_never_tried_with_an_engine_that_does_not_compute_in_its_precision(monkeypatch):
    monkeypatch.setattr("millis_pipeline.search.MAX_REPEATS", 2)
    space = {**search_space(["fp32", "bf16"]), "max_batch": (8,), "preferred_batch": (0,), "delay_us": (0,)}
    space |= {"threads": (1,), "workers": (1,), "lanes": (1, 2)}
    never = unable({"fp32": "f32", "bf16": "bf16"}, space["engine"])
    assert never == {("bf16", "onnxruntime")}
    search = Search(space, Target("latency"), OTHER, unable=never)
    tried = []
    while (configuration := search.propose()) is not None:
        tried.append((configuration.variant, configuration.engine))
        tell(search, configuration)
    assert sorted(tried) == [("bf16", "openvino")] * 2 + [("fp32", "onnxruntime")] * 2 + [("fp32", "openvino")] * 2


def test_a_search_ends_when_everything_was_tried():
    space = {**search_space(["fp32"]), "engine": ("onnxruntime",), "threads": (1,), "workers": (1, 2)}
    space |= {"max_batch": (8,), "preferred_batch": (0,), "delay_us": (0,), "lanes": (1,)}
    search = Search(space, Target("throughput"), OTHER)
    tried = 0
    while (configuration := search.propose()) is not None:
        tell(search, configuration)
        tried += 1
    assert tried == 2


def test_a_search_whose_proposals_repeat_draws_what_was_not_tried(monkeypatch):
    space = {**search_space(["fp32"]), "engine": ("onnxruntime",), "threads": (1, 2), "workers": (1, 2)}
    space |= {"max_batch": (8,), "preferred_batch": (0, 4), "delay_us": (0,), "lanes": (1,)}
    now = Configuration("fp32", "onnxruntime", 1, 1, 8, 0, 0, 1)
    search = Search(space, Target("latency"), now, [Trial(1, now, ALIKE)])
    monkeypatch.setattr("millis_pipeline.search.MAX_REPEATS", 3)
    # A sampler that has found what it takes for the best proposes nothing else.
    first = {name: values[0] for name, values in space.items()}
    monkeypatch.setattr(search._study.sampler, "sample_independent", lambda _study, _trial, name, _: first[name])
    tried = set()
    while (configuration := search.propose()) is not None:
        assert configuration not in tried
        tried.add(configuration)
        tell(search, configuration)
    assert tried == {replace(now, threads=t, workers=w) for t, w in ((2, 1), (1, 2), (2, 2))}


def trial(number: int, p50: float, p99: float, per_second: float) -> Trial:
    return Trial(number, OTHER, Measured(p50, p99, per_second, 10.0))


def test_among_equals_the_other_objective_decides_and_the_limit_comes_first():
    trials = [trial(1, 2.00, 3.0, 100), trial(2, 2.01, 3.0, 200), trial(3, 1.0, 9.0, 300), trial(4, 2.5, 3.0, 300)]
    names = [each.number for each in finalists([*trials, Trial(5, OTHER, None, "broken")], Target("latency", 4.0), 3)]
    assert names == [2, 1, 4]
    assert [each.number for each in finalists(trials, Target("throughput"), 2)] == [3, 4]
    assert [each.number for each in finalists(trials, Target("latency", 0.5), 2)] == [1, 2]
