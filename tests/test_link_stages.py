"""benchmarks/link_stages.py: a stage is timed without the stages it calls, and all stages exist."""

import time
import types

import pytest

from benchmarks import link_stages
from elq_jax.entities.name_index import NameIndex
from elq_jax.linking.candidates import CandidateScorer
from elq_jax.linking.confidence import LinkScorer
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.scoring import Scorer
from elq_jax.retrieval.exact import ExactIndex
from elq_jax.text.tokenization import Tokenizer


def test_a_stage_is_timed_without_those_it_calls(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    class Owner:
        @staticmethod
        def inner(seconds):
            nonlocal now
            now += seconds
            return -seconds

    stages = link_stages.Stages()
    now += 64  # before the first stage
    with stages.running("outer"), stages.timed(Owner, "inner", "inner"):
        now += 1
        assert Owner.inner(2) == -2
        now += 4
        with pytest.raises(TypeError):
            Owner.inner("no number")
        assert Owner.inner(8) == -8
    Owner.inner(16)  # No longer timed.
    assert stages.seconds == {"outer": 5, "inner": 10}


def test_all_timed_functions_exist():
    """Each function is looked up where it is defined, as the benchmark does."""

    def without_init(kind, **attributes):
        made = object.__new__(kind)
        for name, value in attributes.items():
            object.__setattr__(made, name, value)
        return made

    known = types.SimpleNamespace(
        index=without_init(ExactIndex),
        candidate_scorer=without_init(CandidateScorer, names=without_init(NameIndex)),
    )
    linker = without_init(
        EntityLinker,
        tokenizer=without_init(Tokenizer),
        scorer=without_init(Scorer),
        link_scorer=without_init(LinkScorer),
        _entities=types.SimpleNamespace(known=known),
    )
    assert len(list(link_stages.patches(link_stages.Stages(), linker))) == 12
