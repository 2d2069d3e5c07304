"""Encoding a catalogue: the original's vectors; interrupted, on several devices, refused."""

import jax
import numpy as np
import pytest
from reference import arrays, tiny_config, tiny_params

from elq_jax.data.catalogue import Catalogue, build_catalogue
from elq_jax.data.tokenization import Tokenizer
from elq_jax.errors import ElqError
from elq_jax.training.encoding import CatalogueEncoder, encode_catalogue

ENTITIES = 64


@pytest.fixture(scope="module")
def catalogue(fixtures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalogue")
    lines = (fixtures / "entity.jsonl").read_text().splitlines(keepends=True)
    (folder / "entity.jsonl").write_text("".join(lines[:ENTITIES]))
    build_catalogue(folder / "entity.jsonl", folder / "catalogue.arrow")
    return Catalogue.open(folder / "catalogue.arrow")


def make_encoder(num_devices=1, **changes):
    return CatalogueEncoder(
        tiny_config(**changes),
        tiny_params()["entity"],
        Tokenizer.from_pretrained("minilm"),
        batch_size=16,
        devices=jax.local_devices()[:num_devices],
    )


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_vectors_are_the_originals(encoder, catalogue, tmp_path):
    embeddings = encode_catalogue(encoder, catalogue, tmp_path / "embeddings", shard_rows=20)
    np.testing.assert_allclose(embeddings[:], arrays("kb")["encoded_first64"], rtol=0, atol=2e-5)


def test_interrupted_encoding_goes_on_to_the_same_files(encoder, catalogue, tmp_path):
    encode_catalogue(encoder, catalogue, tmp_path / "whole", shard_rows=20)
    shards = []

    def interrupt(count):
        shards.append(count)
        if len(shards) == 3:  # Found on disk, and two shards.
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_catalogue(encoder, catalogue, tmp_path / "broken", shard_rows=20, progress=interrupt)
    written = files(tmp_path / "broken")
    done = []
    encode_catalogue(encoder, catalogue, tmp_path / "broken", shard_rows=20, progress=done.append)
    assert done == [40, 20, 4]  # Finished shards are not done again.
    assert written.items() <= files(tmp_path / "broken").items()
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_three_devices_give_the_same_vectors(encoder, catalogue):
    rows = range(30)
    texts = catalogue.titles(rows), catalogue.texts(rows)
    found = make_encoder(num_devices=3).encode(*texts)
    np.testing.assert_allclose(found, encoder.encode(*texts), rtol=0, atol=2e-5)


def test_vectors_of_another_encoder_are_not_continued(encoder, catalogue, tmp_path):
    encode_catalogue(encoder, catalogue, tmp_path / "embeddings", shard_rows=20)
    with pytest.raises(ElqError, match="encoder_fingerprint"):
        encode_catalogue(
            make_encoder(max_entity_tokens=20), catalogue, tmp_path / "embeddings", shard_rows=20
        )
