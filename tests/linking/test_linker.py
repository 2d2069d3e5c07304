"""EntityLinker on the fixtures' model: offsets, batches, devices, thresholds, directories."""

import dataclasses
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import unicodedata

import jax
import numpy as np
import pytest
from tiny import (
    arrays,
    tiny_config,
    tiny_linker_directory,
    tiny_model,
    tiny_params,
    write_embeddings,
)

from elq_jax import EntityLinker, LinkingSettings
from elq_jax.core.errors import ElqError
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.segments import open_segments
from elq_jax.linking import directory
from elq_jax.model import bundle
from elq_jax.model.bundle import Model, initial_params
from elq_jax.retrieval.exact import QUERY_BUCKETS, ExactIndex
from elq_jax.storage import files

# Of 12 tokens at most but for two: every other shape is compiled anew.
QUESTIONS = [
    "who is the governor of ohio 2011 ?",
    "",
    "spoken in Côte d'Ivoire?",
    "was 👩‍👩‍👧 obama 🇨🇮 born",
    "cafe\u0301, A\u030angstro\u0308m and\tnai\u0308ve\u200b words",
    "   東京 は どこ   ですか",
    "Paris is [PAD] of [SEP] [unused2]",
    "hi",
]
SHORT = [QUESTIONS[0], QUESTIONS[1], QUESTIONS[3]]
SCORE = dict(rel=0, abs=2e-5)


def one_device():
    return jax.devices()[:1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_linker_directory(tmp_path_factory.mktemp("linker"), threshold=-4.5)


@pytest.fixture(scope="module")
def linker(folder):
    return EntityLinker.from_pretrained(folder, devices=one_device())


@pytest.fixture
def copy(folder, tmp_path):
    """A linker directory to be damaged."""
    return shutil.copytree(folder, tmp_path / "copy")


def assert_same(found, expected):
    """Equal links, their scores to float tolerance."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert [(x.start, x.end, x.title) for x in one] == [
            (x.start, x.end, x.title) for x in other
        ]
        for x, y in zip(one, other, strict=True):
            assert x.score == pytest.approx(y.score, **SCORE)
            assert x.mention_score == pytest.approx(y.mention_score, **SCORE)
            for a, b in zip(x.candidates, y.candidates, strict=True):
                assert a.score == pytest.approx(b.score, **SCORE)


def slow_normalize(text):
    """Lower case without accents, marks, control characters and white space."""
    kept = []
    for character in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(character)
        if category != "Mn" and category[0] not in "CZ":
            kept.append(character)
    return "".join(kept)


def test_offsets_index_the_original_string(linker):
    scored = linker.score_batch(QUESTIONS, -np.inf)
    tokens = linker.settings.decoding.decode(scored, -np.inf)
    links = linker.decode(scored, -np.inf)
    assert sum(map(len, links)) > 15
    assert links[1] == []  # the empty question
    for number, (text, found) in enumerate(zip(QUESTIONS, links, strict=True)):
        assert [link.start for link in found] == sorted(link.start for link in found)
        last = 0
        for (first, final), link in zip(
            sorted(tokens.bounds[tokens.of(number)].tolist()), found, strict=True
        ):
            assert last <= link.start < link.end <= len(text)
            last = link.end
            assert text[link.start : link.end] == link.mention == link.mention.strip()
            ids = scored.encoded[number].ids[first : final + 1]
            pieces = " ".join(linker.tokenizer.tokens(ids)).replace(" ##", "").removeprefix("##")
            if "[UNK]" not in pieces:
                assert slow_normalize(link.mention) == slow_normalize(pieces)


def test_a_link_holds_what_the_catalogue_says(linker):
    [link, *_] = linker(QUESTIONS[0], threshold=-np.inf)
    entity = linker.catalogue[link.row]
    assert (link.title, link.wikidata_id) == (entity.title, entity.wikidata_id)
    assert link.candidates[0].row == link.row
    assert link.candidates[0].score == link.score < link.mention_score < 0
    assert len(link.candidates) == 10
    scores = [candidate.score for candidate in link.candidates]
    assert scores == sorted(scores, reverse=True)
    # The softmax runs over the candidates retrieved.
    assert np.exp(np.array(scores) - link.mention_score).sum() == pytest.approx(1)


def test_batches_give_what_single_questions_give(linker):
    together = linker(QUESTIONS, -np.inf)
    assert_same(together, [linker(text, -np.inf) for text in QUESTIONS])
    assert_same(together, linker(QUESTIONS, -np.inf, batch_size=4))
    assert linker([]) == []


def test_more_questions_than_are_held_at_once(linker, monkeypatch):
    expected = linker(QUESTIONS, -np.inf)
    monkeypatch.setattr("elq_jax.linking.scoring.BATCHES_IN_FLIGHT", 2)
    assert_same(linker(QUESTIONS * 3, -np.inf, batch_size=1), expected * 3)


@pytest.mark.parametrize("count", [2, 8])
def test_devices_give_the_same_links(folder, linker, count):
    several = EntityLinker.from_pretrained(folder, devices=jax.devices()[:count])
    found = several(SHORT, -np.inf)  # no device count divides them
    assert_same(found, linker(SHORT, -np.inf))


@pytest.mark.parametrize("threshold", [-3.0, -4.2, -np.inf])
def test_scored_once_decoded_at_any_threshold(linker, threshold):
    scored = linker.score_batch(QUESTIONS, -np.inf)
    found = linker.decode(scored, threshold)
    assert_same(found, linker(QUESTIONS, threshold))
    assert all(link.score > threshold for links in found for link in links)


def test_threshold_below_that_of_scoring(linker):
    scored = linker.score_batch(QUESTIONS, -3.0)
    with pytest.raises(ElqError, match=r"threshold -3\.5 is below -3.*score them again"):
        linker.decode(scored, -3.5)


def test_the_original_decoder_cuts_long_questions_with_a_warning(linker):
    linker = linker.with_settings(decoder="elq_jax.original.decoding:original")
    text = "what did obama say? " * 500  # 10,000 characters
    with pytest.warns(UserWarning, match="only the first 5.. of 10000 characters"):
        [links] = linker([text], -np.inf)
    [encoded] = linker.encode([text])
    assert len(encoded.ids) == 128
    assert links
    assert max(link.end for link in links) <= encoded.truncated_at
    # 5 tokens a sentence, 126 to be had.
    assert encoded.truncated_at == 25 * 20 + len("what ")


def test_literal_special_tokens_are_text(linker):
    texts = ["is [SEP] it [PAD]", "is sep it pad", "[unused2]", "unused2"]
    with_them, without, tag, no_tag = linker.encode(texts)
    tokenizer = linker.tokenizer
    special = {tokenizer.sep_id, tokenizer.pad_id, tokenizer.entity_tag_id}
    assert not special & {*with_them.ids[1:-1].tolist(), *tag.ids.tolist()[1:-1]}
    assert len(with_them.ids) == len(without.ids) + 4  # four brackets
    assert tag.ids.tolist()[2:-2] == no_tag.ids.tolist()[1:-1]


def test_one_string_is_not_a_list_of_questions(linker):
    with pytest.raises(ElqError, match="give a list"):
        linker.score_batch("who wrote dune?")
    with pytest.raises(ElqError, match=r"texts\[1\]: found NoneType"):
        linker(["who", None])


def count_compilations(function):
    """How many programs XLA compiles during a call."""
    count = 0

    def listen(event, duration, **_):
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    function()
    found, count = count, -(10**9)
    return found


def test_a_stream_of_questions_compiles_a_handful_of_programs(folder):
    opened = EntityLinker.from_pretrained(folder)
    linker = EntityLinker(
        tiny_model(max_question_tokens=16),
        opened.catalogue,
        opened.index,
        devices=one_device(),
    )
    rng = random.Random(0)
    words = ["who", "wrote", "the", "book", "about", "obama", "and", "paris", "in", "ohio"]
    questions = [" ".join(rng.choices(words, k=rng.randint(0, 14))) for _ in range(300)]

    def stream():
        rest = list(questions)
        while rest:
            size = rng.randint(1, 70)
            linker(rest[:size], -np.inf, batch_size=4)
            rest = rest[size:]

    programs = 2 * 2  # lengths 12 and 16, batches of 1 and 4
    assert 0 < count_compilations(stream) <= programs + len(QUERY_BUCKETS) + 5  # and small ones
    for _ in range(3):
        assert count_compilations(stream) <= 3  # a size that had not come up


def test_other_parameters_compile_nothing(linker):
    question = QUESTIONS[0]
    before = linker([question][0], -np.inf)
    params = jax.tree.map(lambda x: 0.9 * x, tiny_params()["question"])
    changed = linker.with_params(params)
    links = None

    def link():
        nonlocal links
        links = changed(question, -np.inf)

    assert count_compilations(link) == 0
    assert [link.score for link in links] != [link.score for link in before]
    rebuilt = EntityLinker(
        tiny_model().replace(params={"question": params}),
        linker.catalogue,
        linker.index,
        linker.settings,
        devices=one_device(),
    )
    assert_same([links], [rebuilt(question, -np.inf)])
    assert_same([linker(question, -np.inf)], [before])


def test_settings_of_the_directory_and_of_the_caller(folder):
    opened = EntityLinker.from_pretrained(
        folder, threshold=-2.0, num_candidates=3, max_mentions=2, devices=one_device()
    )
    assert opened.settings == LinkingSettings(threshold=-2.0, num_candidates=3, max_mentions=2)
    links = opened(SHORT, -np.inf)
    assert max(map(len, links)) == 2
    assert {len(link.candidates) for found in links for link in found} == {3}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"treshold": -1}, "setting 'treshold': unknown; expected one of threshold, max_mentions"),
        ({"max_mentions": 0}, "max_mentions: 0; expected an integer, at least 1"),
        ({"max_mentions": 2.5}, "max_mentions: 2.5; expected an integer"),
        ({"num_candidates": "3"}, "num_candidates: '3'; expected an integer"),
        ({"threshold": float("nan")}, "threshold: nan; expected a number"),
        ({"threshold": None}, "threshold: None; expected a number"),
        ({"threshold": "high"}, "threshold: 'high'; expected a number"),
        ({"decoder": "best"}, "decoder: 'best'; expected one of .*joint"),
        ({"threshold": 0.5}, "threshold: 0.5; scores are log-probabilities, below 0"),
        ({"max_question_tokens": 2}, "max_question_tokens: 2; expected an integer, at least 3"),
        ({"overlap_tokens": -1}, "overlap_tokens: -1; expected an integer, at least 0"),
    ],
)
def test_settings_that_cannot_be(folder, linker, copy, settings, message):
    """Given when a linker is opened, later, and in the directory."""
    with pytest.raises(ElqError, match=message):
        EntityLinker.from_pretrained(folder, **settings)
    with pytest.raises(ElqError, match=message):
        linker.with_settings(**settings)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"linking": settings}))
    message = f'("linking": {message}|not JSON .*malformed)'  # NaN is not JSON
    with pytest.raises(ElqError, match=rf"config\.json: {message}"):
        EntityLinker.from_pretrained(copy)


def test_arguments_that_cannot_be(folder, linker):
    for texts, message in (
        (None, "texts: found NoneType"),
        ([None], r"texts\[0\]: found NoneType, expected a string"),
    ):
        with pytest.raises(ElqError, match=message):
            linker(texts)
    for size in (0, None, "8", 2.5, True):
        with pytest.raises(ElqError, match=f"batch_size: {size!r}; expected an integer"):
            linker(SHORT, batch_size=size)
    with pytest.raises(ElqError, match="threshold: 'high'; expected a number"):
        linker(SHORT[0], "high")
    with pytest.raises(ElqError, match="dtype: 'fp16'; expected one of"):
        EntityLinker.from_pretrained(folder, dtype="fp16")
    encoded = ["who is obama"], linker.encode(["who is obama"])
    with pytest.raises(
        ElqError, match=r"bounds\[0\]: \[1, 200\]; expected the first and the last token"
    ):
        linker.score_encoded(*encoded, bounds=[np.array([[1, 200]])])
    with pytest.raises(ElqError, match="bounds: found 0, expected one array for each"):
        linker.score_encoded(*encoded, bounds=[])


def test_texts_of_any_iterable(linker):
    expected = linker(SHORT, -np.inf)
    assert_same(linker(iter(SHORT), -np.inf), expected)
    assert_same(linker(dict.fromkeys(SHORT).keys(), -np.inf), expected)
    assert_same(linker(np.array(SHORT), -np.inf), expected)


def test_questions_cut_shorter_than_the_directory_says(folder, linker):
    linker = linker.with_settings(decoder="elq_jax.original.decoding:original")
    words = "who is obama in ohio and paris and dune"
    shorter = EntityLinker.from_pretrained(
        folder,
        max_question_tokens=5,
        decoder="elq_jax.original.decoding:original",
        devices=one_device(),
    )
    [cut], [whole] = shorter.encode([words]), linker.encode([words])
    assert cut.ids.tolist() == [*whole.ids[:4], whole.ids[-1]]
    [back] = shorter.with_settings(max_question_tokens=None).encode([words])
    assert back.ids.tolist() == whole.ids.tolist()
    with pytest.raises(ElqError, match="max_question_tokens: 1000; expected 3 to 512"):
        EntityLinker.from_pretrained(folder, max_question_tokens=1000)


def test_save_pretrained_and_open_again(linker, tmp_path):
    target = tmp_path / "saved"
    linker.with_settings(threshold=-4.4).save_pretrained(target)
    again = EntityLinker.from_pretrained(target, devices=one_device())
    assert again.settings == dataclasses.replace(linker.settings, threshold=-4.4)
    assert_same(again(SHORT), linker(SHORT, -4.4))
    # Into itself: only the settings change.
    again.with_settings(threshold=-3.0).save_pretrained(target)
    assert EntityLinker.from_pretrained(target).settings.threshold == -3.0
    assert linker.settings.threshold == -4.5
    again.with_settings(threshold=-np.inf, max_question_tokens=9).save_pretrained(target)
    json.loads((target / "config.json").read_text(), parse_constant=pytest.fail)
    everything = EntityLinker.from_pretrained(target)
    assert everything.settings.threshold == -np.inf
    assert everything.max_question_tokens == 9


def test_save_pretrained_spares_other_folders(linker, tmp_path):
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(ElqError, match="not a linker directory; give another name"):
        linker.save_pretrained(tmp_path)
    with pytest.raises(ElqError, match="not a linker directory; give another name"):
        linker.save_pretrained(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_save_pretrained_from_and_to_relative_paths(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(copy.parent)
    linker = EntityLinker.from_pretrained(copy.name, devices=one_device())
    with pytest.raises(ElqError, match="lies inside the directory that is copied"):
        linker.save_pretrained(copy / "sub")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    linker.save_pretrained(".")
    assert bundle.is_linker_directory(tmp_path / "empty")


def test_a_copy_that_does_not_fit_on_the_disk(linker, tmp_path, monkeypatch):
    """Linking is not possible (another disk), copying not either: what was there stays."""
    target = tmp_path / "saved"
    linker.save_pretrained(target)

    def fail(number):
        def function(*_):
            raise OSError(number, "")

        return function

    monkeypatch.setattr(files.os, "link", fail(errno.EXDEV))
    linker.with_settings(threshold=-1.0).save_pretrained(target)
    assert EntityLinker.from_pretrained(target).settings.threshold == -1.0
    monkeypatch.setattr(files.shutil, "copyfileobj", fail(errno.ENOSPC))
    with pytest.raises(ElqError, match="not written, the disk is full"):
        linker.save_pretrained(target)
    assert EntityLinker.from_pretrained(target).settings.threshold == -1.0
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_folders_that_are_no_linker(tmp_path, copy):
    with pytest.raises(ElqError, match=r"no config\.json here; expected a linker directory"):
        EntityLinker.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 384}')
    with pytest.raises(ElqError, match=r'config\.json: "format" is None; expected'):
        EntityLinker.from_pretrained(tmp_path)
    (copy / "config.json").write_text("{")
    with pytest.raises(ElqError, match=r"config\.json: .*; not the configuration of a linker"):
        EntityLinker.from_pretrained(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_bert": {"num_layers": 10**7}}, r"<= 1024 - at `question_bert.num_layers`"),
        ({"question_bert": {"num_layers": True}}, "Expected `int`, got `bool`"),
        ({"entity_bert": {"hidden_size": 2**40}}, r"at `entity_bert.hidden_size`"),
        ({"entity_bert": {"num_heads": 7}}, "num_heads: 7; expected a divisor of hidden_size, 64"),
        ({"question_bert": {"dropout_rate": "0.1"}}, r"at `question_bert.dropout_rate`"),
        ({"entity_bert": {"leyers": 1}}, r"entity_bert.leyers: no such setting"),
        ({"question_bert": []}, "Expected `object`, got `array` - at `question_bert`"),
        ({"normalize_mentions": "no"}, "Expected `bool`, got `str` - at `normalize_mentions`"),
        ({"normalize_mentions": 1}, "Expected `bool`, got `int`"),
        ({"score_scale": 0}, "at `score_scale`"),
        ({"max_mention_widht": 3}, "max_mention_widht: no such setting; expected one of"),
        ({"max_question_tokens": 10**9}, "max_question_tokens: 1000000000; expected 3 to"),
    ],
)
def test_a_model_that_cannot_be(copy, change, message):
    config = json.loads((copy / "config.json").read_text())
    for name, value in change.items():
        config["model"][name] = config["model"][name] | value if isinstance(value, dict) else value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ElqError, match=message):
        Model.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": {}}, '"sha256" is of nothing; expected model.safetensors and tokenizer.json'),
        ({"sha256": None}, r"Expected `object`, got `null` - at `\$.sha256`"),
        ({"sha256": {"model.safetensors": "0" * 64}}, '"sha256" is of model.safetensors; expected'),
        ({"sha256": {"tokenizer.json": "", "model.safetensors": ""}}, r"at `\$.sha256\[...\]`"),
        ({"linking": []}, r"Expected `object`, got `array` - at `\$.linking`"),
        ({"entity_encoder": 3}, r"Expected `str`, got `int` - at `\$.entity_encoder`"),
    ],
)
def test_a_config_file_that_cannot_be(copy, change, message):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ElqError, match=message):
        Model.open(copy)


def test_a_byte_order_mark_and_a_workdir(copy):
    content = (copy / "config.json").read_bytes()
    (copy / "config.json").write_bytes(b"\xef\xbb\xbf" + content)
    Model.open(copy)
    shutil.copytree(copy, copy / "linker")
    (copy / "config.json").write_text('{"stages": []}')
    with pytest.raises(
        ElqError, match=rf"a training run; give the linker in it, {copy / 'linker'}"
    ):
        Model.open(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_one_changed_byte(copy, name):
    path = copy / name
    content = bytearray(path.read_bytes())
    place = content.rindex(b"paris") if name == "tokenizer.json" else len(content) - 4
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ElqError, match=rf"{name}: damaged: its SHA-256 is"):
        Model.open(copy)
    config = json.loads((copy / "config.json").read_text())
    for field in ("sha256", "entity_encoder"):
        less = {key: value for key, value in config.items() if key != field}
        (copy / "config.json").write_text(json.dumps(less))
        with pytest.raises(ElqError, match=f"missing required field `{field}`"):
            Model.open(copy)
    del config["sha256"]  # as in directories of older versions
    config["format"] = "elq_jax linker, version 1"
    (copy / "config.json").write_text(json.dumps(config))
    Model.open(copy)
    assert directory.verify(copy)["model.safetensors, tokenizer.json"].endswith("no checksums")


def test_files_behind_symbolic_links(folder, tmp_path):
    """As the hub's cache, DVC and git-annex keep them; the copy has files of its own."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            link = tmp_path / "links" / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(path, link.parent))
    linker = EntityLinker.from_pretrained(tmp_path / "links", devices=one_device())
    linker.save_pretrained(tmp_path / "copy")
    copied = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert len(copied) == len([path for path in folder.rglob("*") if path.is_file()])
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    directory.write_linker(
        tmp_path / "written",
        linker.model,
        {},
        tmp_path / "links" / "catalogue.arrow",
        tmp_path / "links" / "embeddings",
    )
    shutil.rmtree(tmp_path / "links")
    for name in ("copy", "written"):
        assert EntityLinker.from_pretrained(tmp_path / name, devices=one_device())


def test_a_folder_whose_name_is_not_utf8(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "caf\udce9")
    linker = EntityLinker.from_pretrained(tmp_path / "caf\udce9", devices=one_device())
    assert len(linker.catalogue) == 500


def test_verify(folder, copy):
    report = directory.verify(folder)
    assert report == {
        "model.safetensors, tokenizer.json": "checksums agree",
        "catalogue.arrow": "500 entities, checksum and fingerprint agree",
        "embeddings": "500 x 64 float32, checksums agree",
    }
    for name in ("model.safetensors", "catalogue.arrow", "embeddings/shard-00000-of-00001.npy"):
        path = copy / name
        whole = path.read_bytes()
        path.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
        with pytest.raises(ElqError, match=rf"{path.name}: damaged"):
            directory.verify(copy)
        path.write_bytes(whole)
    for path in (copy / "embeddings").glob("digest-*"):
        path.unlink()
    with pytest.raises(ElqError, match=r"digest-00000-of-00001\.sha256: missing"):
        directory.verify(copy)
    path = copy / "embeddings" / "embeddings.json"  # of an older version
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1}))
    found = directory.verify(copy)["embeddings"]
    assert found == "500 x 64 float32, no checksums for 1 of 1 shards"
    with pytest.raises(ElqError, match="nothing to verify"):
        directory.verify(copy.parent)


@pytest.mark.parametrize("part", ["config.json", "catalogue.arrow"])
@pytest.mark.parametrize("dangling", [False, True])
def test_verify_finds_what_is_missing(copy, part, dangling):
    (copy / part).unlink()
    if dangling:
        (copy / part).symlink_to("nowhere")
    with pytest.raises(ElqError, match=part):
        directory.verify(copy)


def test_verify_looks_at_the_settings_of_linking(copy):
    config = json.loads((copy / "config.json").read_text())
    config["linking"]["treshold"] = -1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ElqError, match=r"config.json: .linking.: setting 'treshold': unk"):
        directory.verify(copy)


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link"])
def test_checksums_that_are_no_file(copy, kind):
    """A pipe that nobody writes to was waited for."""
    [path] = (copy / "embeddings").glob("digest-*")
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(ElqError, match=f"{path.name}: not a file, expected checksums"):
        open_segments(copy)


def test_parameters_of_another_model(copy):
    """config.json and model.safetensors say different things; or there are NaNs."""
    config = json.loads((copy / "config.json").read_text())
    for layers, message in (
        (3, r"question/bert/layers_2/.*: found nothing, config\.json says \(64,\)"),
        (1, r"question/bert/layers_1/.*: found \(64,\), config\.json says nothing"),
    ):
        config["model"]["question_bert"]["num_layers"] = layers
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(ElqError, match=message):
            EntityLinker.from_pretrained(copy)
    config["model"]["question_bert"]["num_layers"] = 2
    config["model"]["max_mention_width"] = 0
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ElqError, match="max_mention_width: 0; expected at least 1"):
        EntityLinker.from_pretrained(copy)


def test_parameters_that_are_no_numbers(tmp_path):
    params = jax.tree.map(np.array, tiny_params())
    params["question"]["bert"]["layers_1"]["output"]["bias"][3] = np.nan
    tiny_model().replace(params=params).save(tmp_path)
    Model.open(tmp_path, ("entity",))
    with pytest.raises(ElqError, match="question/bert/layers_1/output/bias: holds NaN"):
        Model.open(tmp_path)


def test_a_tokenizer_of_more_tokens_than_the_encoder_knows(linker):
    config = linker.model.config
    bert = dataclasses.replace(config.question_bert, vocab_size=1000)
    config = dataclasses.replace(config, question_bert=bert)
    with pytest.raises(ElqError, match="tokenizer has 30,522 tokens, the question encoder 1,000"):
        EntityLinker(linker.model.replace(config=config), linker.catalogue, linker.index)


COMPILES = """
import json, sys, jax
from elq_jax import EntityLinker
jax.jit(lambda x: x + 1)(1.0)  # The caller has compiled something before.
linker = EntityLinker.from_pretrained(sys.argv[1], threshold=-100.0, devices=jax.devices()[:1])
links = [link.to_dict() for link in linker("who wrote it?")]
print(json.dumps([links, "flax" in sys.modules]))
"""


def test_compiled_programs_are_kept_on_disk(folder, tmp_path):
    """The second process finds what the first one compiled, and traces no module."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment |= {"ELQ_JAX_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}

    def link():
        command = [sys.executable, "-c", COMPILES, folder]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(result.stdout)

    links, is_traced = link()
    assert links
    assert is_traced
    assert link() == [links, False]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("model.safetensors", "model.safetensors: no such file"),
        ("catalogue.arrow", "catalogue.arrow: no such file"),
        ("embeddings", "embeddings: found no entity embeddings"),
        ("tokenizer.json", "neither tokenizer.json nor vocab.txt"),
    ],
)
def test_missing_parts(copy, part, message):
    path = copy / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ElqError, match=message):
        EntityLinker.from_pretrained(copy)


def test_damaged_parts(copy):
    model = copy / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ElqError, match="not a whole safetensors file"):
        EntityLinker.from_pretrained(copy)
    model.write_bytes(whole)
    [shard, *_] = sorted((copy / "embeddings").glob("shard-*"))
    values = np.load(shard)
    values[17, 3] = np.nan
    np.save(shard, values)
    with pytest.raises(ElqError, match=r"shard-00000-of-00001\.npy: damaged: its SHA-256"):
        EntityLinker.from_pretrained(copy)
    for path in (copy / "embeddings").glob("digest-*"):
        path.unlink()
    description = copy / "embeddings" / "embeddings.json"  # of an older version
    description.write_text(json.dumps(json.loads(description.read_text()) | {"format_version": 1}))
    with pytest.raises(ElqError, match="row 17 holds NaN or infinity"):
        EntityLinker.from_pretrained(copy)


def test_embeddings_of_another_catalogue(copy, tmp_path):
    lines = [json.dumps({"title": f"entity {i}", "text": ""}) for i in range(500)]
    (tmp_path / "other.jsonl").write_text("\n".join(lines))
    build_catalogue(tmp_path / "other.jsonl", copy / "catalogue.arrow")
    with pytest.raises(ElqError, match="embeddings of another catalogue"):
        EntityLinker.from_pretrained(copy)


def test_embeddings_of_another_entity_encoder(copy, tmp_path):
    """Right catalogue, right width; they differ in one number of one parameter."""
    model, catalogue = Model.open(copy), Catalogue.open(copy / "catalogue.arrow")
    vectors = arrays("kb")["entity_encodings"]
    other = jax.tree.map(np.array, tiny_params()["entity"])
    other["bert"]["layers_1"]["output"]["bias"][3] += 1e-3
    names = {}
    for name, params in (("own", tiny_params()["entity"]), ("other", other), ("unknown", None)):
        names[name] = params and model.replace(params={"entity": params}).entity_fingerprint
        write_embeddings(tmp_path / name, catalogue, vectors, names[name] or "")

    def with_embeddings(name):
        shutil.rmtree(copy / "embeddings")
        shutil.copytree(tmp_path / name, copy / "embeddings")
        return EntityLinker.from_pretrained(copy, devices=one_device())

    with_embeddings("unknown")
    with_embeddings("own").save_pretrained(tmp_path / "saved")
    with pytest.raises(ElqError, match="embeddings of another entity encoder") as refused:
        with_embeddings("other")
    assert names["other"] in str(refused.value)
    assert names["own"] in str(refused.value)
    # A saved copy still knows its encoder; a directory from before this was kept knows none.
    shutil.rmtree(tmp_path / "saved" / "embeddings")
    shutil.copytree(tmp_path / "other", tmp_path / "saved" / "embeddings")
    with pytest.raises(ElqError, match="embeddings of another entity encoder"):
        EntityLinker.from_pretrained(tmp_path / "saved")
    settings = json.loads((copy / "config.json").read_text())
    assert settings.pop("entity_encoder") == names["own"]
    settings["format"] = "elq_jax linker, version 1"
    (copy / "config.json").write_text(json.dumps(settings))
    EntityLinker.from_pretrained(copy, devices=one_device())


def test_parts_that_do_not_fit(linker, copy):
    vectors = arrays("kb")["entity_encodings"]
    for table, message in ((vectors[:100], "index has 100 rows"), (vectors[:, :32], "width 32")):
        with pytest.raises(ElqError, match=message):
            EntityLinker(linker.model, linker.catalogue, ExactIndex(table))
    # The same in a directory.
    shutil.rmtree(copy / "embeddings")
    catalogue = Catalogue.open(copy / "catalogue.arrow")
    write_embeddings(copy / "embeddings", catalogue, vectors[:, :32])
    with pytest.raises(ElqError, match="width 32, the model of 64"):
        EntityLinker.from_pretrained(copy)


def test_catalogue_of_one_entity(tmp_path):
    folder = tiny_linker_directory(tmp_path, entities=1)
    linker = EntityLinker.from_pretrained(folder, devices=one_device())
    links = linker(QUESTIONS[0], -np.inf)
    assert links
    for link in links:
        assert [candidate.row for candidate in link.candidates] == [0]
        assert link.score == link.mention_score  # log softmax over one candidate is 0


class ShortIndex:
    """Finds two entities, whatever it is asked for."""

    kind = "short"
    shape = (500, 64)

    def search(self, queries, k):
        rows = np.full((len(queries), k), -1, np.int32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows[:, :2], scores[:, :2] = [7, 3], [2.0, 1.0]
        return scores, rows


def test_an_index_may_find_fewer_candidates(linker):
    short = EntityLinker(linker.model, linker.catalogue, ShortIndex(), devices=one_device())
    links = short(QUESTIONS[0], -np.inf)
    assert links
    for link in links:
        assert [candidate.row for candidate in link.candidates] == [7, 3]
        share = np.exp(link.score - link.mention_score)
        assert share == pytest.approx(1 / (1 + np.exp(-1)))


def test_scalars_keep_their_shape_on_disk(tmp_path):
    """A learned scale has shape (); a saved and opened model must compute with it as before."""
    config = tiny_config(score_scale=20.0, mention_aggregation="all_avg_linear")
    params = initial_params(config)
    tiny_model().replace(config=config, params=params).save(tmp_path / "model")
    found = Model.open(tmp_path / "model").params
    expected = jax.tree.map(np.shape, params)
    assert jax.tree.map(np.shape, found) == expected
    np.testing.assert_allclose(found["question"]["log_scale"], np.log(20.0), rtol=1e-6)
