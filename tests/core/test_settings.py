"""Settings dataclasses: documented fields, checked values, and names in registries."""

import dataclasses
import sys
from typing import Annotated, Literal

import msgspec
import pytest

from elq_jax.cli.flags import on_command_line
from elq_jax.core.errors import ElqError
from elq_jax.core.registry import Registry
from elq_jax.core.settings import check_settings, fields_of, make_settings


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a thing is made.

    Attributes:
      size: number of parts, which may be
        many; none: chosen.
      kind: way of making it.
      share: part of the whole.

    More that is not about fields:
      other: nothing.
    """

    size: Annotated[int, msgspec.Meta(ge=1)] | None = None
    kind: Literal["a", "b"] = "a"
    share: float = 0.5
    names: list[str] = dataclasses.field(default_factory=list)


def test_fields_are_read_from_annotations_and_docstring():
    fields = fields_of(Settings)
    assert list(fields) == ["size", "kind", "share", "names"]
    assert fields["size"].help == "number of parts, which may be many; none: chosen."
    assert (fields["kind"].choices, fields["size"].choices) == (("a", "b"), ())
    assert (fields["share"].default, fields["share"].help) == (0.5, "part of the whole.")
    assert (fields["names"].default, fields["names"].help) == ([], "")

    @dataclasses.dataclass
    class Required:
        size: int

    with pytest.raises(TypeError, match=r"Required\.size: a setting needs a default"):
        fields_of(Required)


def test_values_are_checked():
    assert make_settings(Settings, {"size": 3, "share": 1}) == Settings(3, share=1.0)
    for values, message in (
        ({"size": 0}, "size: 0; expected `int` >= 1"),
        ({"size": True}, "size: True; expected `int | null`, got `bool`"),
        ({"size": 2.5}, "got `float`"),
        ({"kind": "c"}, "kind: 'c'; expected one of a, b"),
        ({"share": "0.5"}, "share: '0.5'; expected `float`"),
        ({"shares": 0.5}, "shares: no such setting; did you mean share?"),
        ({"x": 0.5}, "x: no such setting; expected one of size, kind, share, names"),
    ):
        with pytest.raises(ElqError) as caught:
            make_settings(Settings, values)
        assert message in str(caught.value)
    check_settings(Settings(5))
    with pytest.raises(ElqError, match="size: -1"):
        check_settings(Settings(-1))


def test_names_of_guests_say_where_they_are(monkeypatch):
    registry = Registry("thing", "tests_of_registries", imports="json")
    own = type("Own", (), {"__module__": "tests_of_registries.own"})
    guest = type("Guest", (), {"__module__": "json.decoder"})
    registry.register("own")(own)
    registry.register("guest")(guest)
    assert (registry.name_of(own), registry.name_of(guest)) == ("own", "json.decoder:guest")
    assert registry.get("json.decoder:guest") is guest
    assert registry.get("own") is own
    assert registry.is_known("json.decoder:guest")
    assert not registry.is_known("guest")
    assert not registry.is_known("no_such_module:guest")
    with pytest.raises(ElqError, match=r"thing: 'x'; expected one of json\.decoder:guest, own"):
        registry.get("x")
    with pytest.raises(ElqError, match="has no name; register it"):
        registry.name_of(Settings)
    with pytest.raises(ElqError, match="registered twice"):
        registry.register("own")(guest)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], "scann"),
        (["--index=exact", "--linker", "x"], "exact"),
        (["--linker", "x", "--index", "m:n"], "m:n"),
        (["-index=exact"], "exact"),
        (["--index=a", "--index=b"], "b"),
        (["--index_seed=5", "index"], "scann"),
        (["--", "--index=exact"], "scann"),
    ],
)
def test_a_flag_is_seen_before_flags_are_parsed(monkeypatch, arguments, value):
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    assert on_command_line("index", "scann") == value
