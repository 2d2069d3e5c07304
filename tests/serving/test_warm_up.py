"""What is compiled before a service is ready covers whatever can be asked."""

import pytest
from tiny import tiny_linker_directory

from elq_jax.linking.linker import EntityLinker
from elq_jax.serving.settings import ServeSettings
from elq_jax.serving.warm_up import KNOWN_BATCH, shapes, share_programs, warm_up
from elq_jax.text.padding import cheapest_batches


@pytest.mark.parametrize(
    ("longest", "batch_size"), [(24, 64), (64, 64), (512, 48), (24, 4), (30, 1)]
)
def test_every_shape_is_compiled_for_itself(longest, batch_size):
    """The warm-up encodes B questions of T tokens for each shape."""
    compiled = shapes(longest, batch_size)
    assert len(set(compiled)) == len(compiled) <= 40
    assert max(size for size, _ in compiled) == {64: 32, 48: 16, 4: 4, 1: 1}[batch_size]
    for size, length in compiled:
        [batch] = cheapest_batches([length] * size, compiled)
        assert (batch.size, batch.length) == (size, length)
    assert {batch.size for batch in cheapest_batches([2, longest], compiled)} <= {1, 4}


def test_nothing_is_compiled_after_the_warm_up(tmp_path, caplog):
    import jax

    folder = tiny_linker_directory(tmp_path, threshold=-30.0)
    linker = EntityLinker.from_pretrained(folder, dtype="float32", devices="cpu")
    linker.settings = linker.settings.replace(max_question_tokens=16)
    share_programs(linker, 4)
    warm_up(linker, ServeSettings(batch_size=4))
    texts = ["x", "who wrote dune and when", "a b c d e f g h i j k l"]
    ids = linker.catalogue.ids(range(len(linker.catalogue)))
    for change in (
        lambda: None,
        lambda: linker.remove_entities(ids[: len(ids) // 10]),
        lambda: linker.update_entities([{"id": ids[-1], "aliases": ["another name"]}]),
        linker.compact,
    ):
        change()
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level("WARNING"):
            for count in (1, 2, 4, 7):
                linker((texts * 3)[:count], batch_size=4)
            for changes in ({"max_mentions": 3}, {"num_candidates": 2}):
                linker.with_settings(**changes)(texts, batch_size=4)
            for count in (1, 8, 9, 20):
                linker.disambiguate(texts[2], [(0, 1)] * count, batch_size=KNOWN_BATCH)
        compiled = [record.message for record in caplog.records if "ompil" in record.message]
        assert not [message for message in compiled if "score" in message or "search" in message]
