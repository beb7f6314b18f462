import pytest

from millis_server.offsets import converter

TEXT = "aé北😀z"


@pytest.mark.parametrize(
    ("unit", "positions"),
    [
        ("code_point", [0, 1, 2, 3, 4, 5]),
        ("utf8_byte", [0, 1, 3, 6, 10, 11]),
        ("utf16_code_unit", [0, 1, 2, 3, 5, 6]),
    ],
)
def test_positions_are_converted_to_the_unit(unit, positions):
    convert = converter(TEXT, unit)
    assert [convert(position) for position in range(len(TEXT) + 1)] == positions


def test_ascii_needs_no_conversion():
    assert converter("plain", "utf16_code_unit")(3) == 3
