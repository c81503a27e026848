"""Reading and showing of values."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.config import values
from forkserve.config.spec import Spec
from forkserve.config.table import TABLE
from forkserve.config.values import Kind


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("30", 30.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        (30, 30.0),
        (0.25, 0.25),
        ("0", 0.0),
    ],
)
def test_durations_are_read_in_seconds(written: object, expected: float) -> None:
    assert expected == values.seconds.read(written)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("65536", 65536),
        ("512k", 524288),
        ("10m", 10 << 20),
        ("1g", 1 << 30),
        ("1G", 1 << 30),
        ("16KiB", 16384),
        ("10MB", 10 << 20),
        (4096, 4096),
    ],
)
def test_sizes_are_read_in_bytes(written: object, expected: int) -> None:
    assert expected == values.size.read(written)


@pytest.mark.parametrize(("written", "expected"), [("1%", 0.01), ("0.2%", 0.002), ("0%", 0.0), ("100%", 1.0)])
def test_percentages_are_read_as_parts(written: str, expected: float) -> None:
    assert expected == values.percentage.read(written)
    assert values.percentage.show(expected) == written


@pytest.mark.parametrize(("written", "expected"), [("2x", 2.0), ("1.5", 1.5), (1, 1.0), (2.5, 2.5)])
def test_factors_are_read(written: object, expected: float) -> None:
    assert expected == values.factor.read(written)
    assert expected == values.factor.read(values.factor.show(expected))


@pytest.mark.parametrize(
    "written",
    ["", "-1", "1_0", "٣", "1e3", "inf", "nan", "5 m", "5x", True, -1, float("nan"), float("inf"), 1e300, None, [1], "9" * 30],
)
@pytest.mark.parametrize("kind", [values.seconds, values.size], ids=["seconds", "size"])
def test_a_bad_duration_or_size_is_refused(kind: Kind[Any], written: object) -> None:
    with pytest.raises(ValueError, match=r"is not a (duration|size)"):
        kind.read(written)


@pytest.mark.parametrize("written", ["", "-1", "+1", "1_0", "٣", " 1", "1.0", True, 1.0, None])
def test_a_bad_count_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="is not a whole number of at least 0"):
        values.count().read(written)


@pytest.mark.parametrize(("written", "expected"), [("0660", 0o660), ("660", 0o660), (0o600, 0o600)])
def test_permissions_are_octal(written: object, expected: int) -> None:
    assert expected == values.mode.read(written)


@pytest.mark.parametrize("written", ["888", 660, "abc", -1])
def test_bad_permissions_are_refused(written: object) -> None:
    """A decimal 660 is refused too: it is a TOML number without 0o."""
    with pytest.raises(ValueError, match="octal"):
        values.mode.read(written)


@pytest.mark.parametrize("written", ["true", "YES", "on", "1", True])
def test_true_values_are_read(written: object) -> None:
    assert values.switch.read(written) is True


@pytest.mark.parametrize("written", ["false", "no", "OFF", "0", False])
def test_false_values_are_read(written: object) -> None:
    assert values.switch.read(written) is False


@pytest.mark.parametrize("written", ["10.0.0.0/8", "::1", "127.0.0.1", "unix", "*"])
def test_trusted_peers_are_read(written: str) -> None:
    assert (written,) == TABLE["forwarded_allow_ips"].kind.read(written)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("forwarded_allow_ips", "localhost"),
        ("forwarded_allow_ips", "10.0.0.0/99"),
        ("header", "no colon"),
        ("header", "Bad Name: x"),
        ("header", "X: €"),
        ("header", "X: a\x1bb"),
        ("env", "=x"),
        ("env", "x"),
        ("root_path", "api"),
        ("http", "nginx"),
        ("bind", 8000),
        ("error_logfile", "syslog:"),
        ("request_id_header", "Content-Length"),
        ("request_id_header", "a b"),
        ("cert_reqs", "3"),
        ("switch", "maybe"),
        ("canary_max_errors", "1"),
        ("canary_max_errors", 0.01),
        ("canary_max_errors", "101%"),
        ("canary_max_errors", "-1%"),
        ("canary_max_latency", "0.9"),
        ("canary_max_latency", 0.9),
        ("canary_max_latency", "2 x"),
        ("canary_max_latency", True),
        ("canary_max_latency", float("inf")),
    ],
)
def test_bad_values_are_refused(name: str, written: object) -> None:
    kind: Kind[Any] = values.switch if name == "switch" else TABLE[name].kind

    with pytest.raises(ValueError, match="is not "):
        kind.read(written)


@pytest.mark.parametrize("spec", TABLE.values(), ids=lambda spec: spec.name)
def test_every_default_survives_showing_and_reading(spec: Spec) -> None:
    if spec.default is not None:
        assert spec.default == spec.kind.read(spec.show(spec.default))


@given(st.floats(0, 10**8))
def test_durations_survive_showing_and_reading(value: float) -> None:
    once = values.seconds.read(value)

    assert once == values.seconds.read(values.seconds.show(once))


@given(st.integers(0, 2**40))
def test_sizes_survive_showing_and_reading(value: int) -> None:
    assert value == values.size.read(values.size.show(value))


@given(
    st.sampled_from(sorted(TABLE)),
    st.text()
    | st.integers()
    | st.floats()
    | st.lists(st.text())
    | st.dictionaries(st.text(), st.integers())
    | st.booleans()
    | st.none(),
)
def test_reading_raises_only_value_error(name: str, value: object) -> None:
    kind = TABLE[name].kind
    try:
        read = kind.read(value)
    except ValueError:
        return

    assert read == kind.read(kind.show(read))


def test_a_value_that_cannot_be_shown_is_named_by_its_type() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise OSError

    assert values.shown(Broken()) == "this Broken"
    assert values.shown("a\nb  c") == r"'a\nb c'"


def test_a_command_with_an_open_quote_is_refused() -> None:
    with pytest.raises(ValueError, match="a command line"):
        values.read_command("nginx 'a")
