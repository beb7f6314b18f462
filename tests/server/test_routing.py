import pytest

from millis_server.catalogue import Served, State, Variant
from millis_server.errors import ModelNotFound, ModelUnavailable, QualityUnavailable
from millis_server.manifest import LatencyPoint, LatencyProfile, Quality
from millis_server.routing import Choice, Wishes, choose
from tests.server.test_manifest import manifest


def variant(name: str, quality: float, milliseconds: float, *, default: bool = False, versions: str = "1") -> Variant:
    point = LatencyPoint(batch=1, tokens=16, p50_ms=milliseconds, p99_ms=milliseconds)
    described = manifest(
        variant=name,
        default_variant=default,
        quality=Quality(metric="accuracy", value=quality, low=0, high=1, examples=10, dataset="d"),
        latency=LatencyProfile(machine="m", engine="e", threads=1, points=(point,)),
    )
    current, *before = [Served(described, version, None, None) for version in versions.split()]
    return Variant(described, State.READY, current=current, standby=before[0] if before else None)


FP32, INT8 = variant("fp32", 0.95, 6.0), variant("int8", 0.93, 2.0, default=True, versions="2 1")
BOTH = [FP32, INT8]


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        (Wishes(), Choice(INT8.current, False, "default variant")),
        (Wishes(pin_variant="fp32", min_quality=0.99), Choice(FP32.current, False, "pinned by the caller")),
        (Wishes(min_quality=0.94), Choice(FP32.current, False, "best variant that meets min_quality")),
        (Wishes(latency_target=0.01), Choice(FP32.current, False, "best variant measured within 10 ms")),
        (Wishes(latency_target=0.003), Choice(INT8.current, False, "best variant measured within 3 ms")),
        (
            Wishes(latency_target=0.001),
            Choice(INT8.current, False, "fastest variant; none was measured within 1 ms"),
        ),
        (Wishes(version="1", pin_variant="int8"), Choice(INT8.standby, False, "pinned by the caller")),
    ],
)
def test_the_variant_that_fits_the_wishes_answers(wishes, expected):
    assert choose(BOTH, wishes) == expected


def test_another_variant_answers_while_the_default_recovers_and_says_so():
    best, light = variant("fp32", 0.95, 6.0, default=True), variant("int8", 0.93, 2.0)
    best.state = State.RECOVERING
    assert choose([best, light]) == Choice(light.current, True, "default variant 'fp32' is recovering")


def test_what_cannot_be_met_is_refused_with_the_reason():
    with pytest.raises(QualityUnavailable, match=r"measured at 0\.99 or better; the best has 0\.95"):
        choose(BOTH, Wishes(min_quality=0.99))
    with pytest.raises(ModelNotFound, match="has no variant 'int4'; variants are: fp32, int8"):
        choose(BOTH, Wishes(pin_variant="int4"))
    with pytest.raises(ModelNotFound, match="version '9' of 'intent' is not loaded; loaded are: 1, 2"):
        choose(BOTH, Wishes(version="9"))
    failed = Variant(manifest(), State.FAILED, reason="broken")
    with pytest.raises(ModelUnavailable, match="cannot answer now: int8 is failed: broken"):
        choose([failed])
