"""The service adds, changes and removes entities, and sees what other processes change."""

import asyncio
import shutil

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs pip install 'elq_jax[serve]'")
pytest.importorskip("httpx", reason="needs requirements-extras.txt")

from serving_tools import in_process
from tiny import tiny_linker_directory

from elq_jax.core.errors import ElqError
from elq_jax.linking.changes import CatalogueEditor
from elq_jax.linking.linker import EntityLinker
from elq_jax.serving.app import make_app
from elq_jax.serving.settings import ServeSettings
from elq_jax.storage.files import folder_lock

TOKEN = "0123456789abcdef"
DUNE = {"title": "Dune: Part Two", "text": "Film.", "aliases": ["Dune 2"], "id": "dune-2"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_linker_directory(tmp_path_factory.mktemp("changed"), entities=40)


@pytest.fixture
def folder(plain, tmp_path, monkeypatch):
    """What is encoded gets a vector of ones."""
    shutil.copytree(plain, tmp_path / "linker")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setattr(
        CatalogueEditor, "_encode", lambda editor, entities: np.ones((len(entities), 64))
    )
    return tmp_path / "linker"


def served(folder, **settings):
    linker = EntityLinker.from_pretrained(folder, dtype="float32", devices="cpu")
    return make_app(linker, ServeSettings(access_log=False, **settings))


def test_entities_are_added_changed_and_removed(folder):
    app = served(folder, token_file=str(folder.parent / "token"))
    headers = {"authorization": f"Bearer {TOKEN}"}

    async def scenario(client):
        async def change(method, **options):
            return await client.request(method, "/entities", headers=headers, **options)

        async def titled(title):
            answer = (await client.get("/entities", params={"title": title})).json()
            return [entity["id"] for entity in answer["entities"]]

        answer = await change("POST", json={"entities": [DUNE]})
        assert answer.json() == {"added": ["dune-2"], "updated": [], "removed": [], "unchanged": 0}
        assert await titled("dune") == ["dune-2"]
        row = app.state.service.linker.catalogue.find_titles([DUNE["title"]]).rows[0]
        found = await client.get(f"/entities/{row}")
        assert found.json() == {"row": 40, "wikidata_id": None, **DUNE}
        answer = await change("PATCH", json={"entities": [{"id": "dune-2", "title": "Arrakis"}]})
        assert answer.json()["updated"] == ["dune-2"]
        assert (await client.get(f"/entities/{row}")).status_code == 404
        assert await titled("arrakis") == ["dune-2"]
        answer = await change("DELETE", params={"id": ["dune-2"]})
        assert answer.json()["removed"] == ["dune-2"]
        assert await titled("arrakis") == []

        for status, message, answer in (
            (422, "no entity has the id", await change("DELETE", params={"id": ["dune-2"]})),
            (422, "title", await change("POST", json={"entities": [{"title": " "}]})),
            (422, "entities", await change("POST", json={"entities": []})),
            (422, "txt", await change("POST", json={"entities": [{"title": "a", "txt": ""}]})),
            (422, "id: missing", await change("DELETE")),
        ):
            assert answer.status_code == status
            assert message in answer.json()["error"]
        with folder_lock(folder):
            answer = await change("POST", json={"entities": [DUNE]})
        assert answer.status_code == 409
        headers["authorization"] = f"Bearer {TOKEN[:-1]}"
        answer = await change("POST", json={"entities": [DUNE]})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert await titled("dune") == []

    in_process(app, scenario)


def test_what_another_process_changes(folder):
    app = served(folder)

    async def scenario(client):
        answer = await client.post("/entities", json={"entities": [DUNE]})
        assert answer.status_code == 403
        assert "--token_file" in answer.json()["error"]
        await asyncio.to_thread(CatalogueEditor(folder).add, [DUNE])
        async with asyncio.timeout(60):
            while (await client.get("/entities/40")).status_code == 404:
                await asyncio.sleep(0.01)
        (folder / "catalogue.json").write_text("{")
        async with asyncio.timeout(60):
            while not app.state.service.refused:
                await asyncio.sleep(0.01)
        assert (await client.get("/entities/40")).json()["id"] == "dune-2"

    in_process(app, scenario)


@pytest.mark.parametrize("content", ["", "short\n", "0123456789 äöü xyz"])
def test_a_file_without_a_token(tmp_path, content):
    path = tmp_path / "token"
    settings = ServeSettings(token_file=str(path))
    with pytest.raises(ElqError, match="token: no such file"):
        settings.token()
    path.write_text(content)
    with pytest.raises(ElqError, match="expected one line of 16 ASCII letters"):
        settings.token()
