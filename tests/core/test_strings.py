"""Halves of surrogate pairs, against what the UTF-8 codec says."""

import pytest

from elq_jax.core import strings
from elq_jax.core.errors import ElqError


@pytest.mark.parametrize("text", ["", "a", "é", "😀", "\ud83d", "a\udc00b", "\ud83d\ude00"])
def test_what_utf8_can_hold(text):
    try:
        text.encode()
        fits = True
    except UnicodeEncodeError:
        fits = False
    assert strings.is_whole(text) == fits
    whole = strings.made_whole(text)
    assert len(whole) == len(text)
    whole.encode()
    if fits:
        assert whole == text
        strings.check_whole("title", "x", text)
    else:
        with pytest.raises(ElqError, match="title: half of a surrogate pair"):
            strings.check_whole("title", "x", text)
