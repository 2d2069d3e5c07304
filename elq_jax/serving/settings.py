"""Defines the settings of the service, which are the flags of `python -m elq_jax.serve`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import msgspec

from elq_jax.core.errors import ElqError
from elq_jax.serving.nif import EntityUris
from elq_jax.storage.files import user_path

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]
_LEAST_LETTERS = 16  # of a token


@dataclasses.dataclass(frozen=True)
class ServeSettings:
    """Holds addresses, limits and habits of the service.

    Attributes:
      host: address that is listened on; 127.0.0.1 is reached from this machine only, 0.0.0.0 from
        everywhere.
      port: port that is listened on; 0 takes a free one, which the first line of the log names.
      workers: number of processes that share the port, each with a linker of its own. They share
        the memory of mapped files, such as the catalogue and the vectors.
      batch_size: largest number of questions that are encoded together.
      batch_wait_ms: milliseconds without a request after which a batch begins that is smaller than
        the one before; others begin as soon as the worker is idle.
      max_queue: number of questions that may wait; a request beyond it is answered with 429.
      timeout: seconds after which a request that is not answered gets 504.
      shutdown_seconds: seconds that requests have to finish after SIGTERM.
      max_body: largest number of bytes of a request's body; a longer one is answered with 413.
      max_texts: largest number of texts of a request.
      max_text_length: largest number of characters of a text.
      max_spans: largest number of mentions of a request to disambiguate.
      entity_uris: knowledge base whose URIs name entities in the answers of /nif: dbpedia,
        wikipedia or wikidata.
      cors: origins of other web pages that may use the service, such as https://example.org;
        several as a,b. By default none may.
      token_file: path of a file with the token of those who may change the catalogue by POST, PATCH
        and DELETE /entities, one line; by default nobody may.
      access_log: whether a line of JSON is written to stdout for every request, without its texts.
      log_texts: whether these lines have the texts too.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8000
    workers: _Count = 1
    batch_size: _Count = 64
    batch_wait_ms: _Seconds = 3.0
    max_queue: _Count = 1024
    timeout: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    shutdown_seconds: _Count = 20
    max_body: _Count = 2 << 20
    max_texts: _Count = 256
    max_text_length: _Count = 50_000
    max_spans: _Count = 64
    entity_uris: EntityUris = "dbpedia"
    cors: str = ""
    token_file: str = ""
    access_log: bool = True
    log_texts: bool = False

    def __post_init__(self):
        for origin in self.origins:
            if "://" not in origin or origin.rstrip("/").count("/") > 2:
                raise ElqError(
                    f"cors: {origin!r}; expected an origin such as https://example.org, which is a "
                    "scheme and a host without a path"
                )

    @property
    def origins(self) -> list[str]:
        """Returns the origins of `cors`."""
        return [origin.strip() for origin in self.cors.split(",") if origin.strip()]

    def token(self) -> str | None:
        """Reads the token of `token_file`; None where none is given, so nobody may change anything.

        Raises:
          ElqError: there is no such file, or it holds no token of at least 16 ASCII letters or
            digits.
        """
        if not self.token_file:
            return None
        path = user_path(self.token_file)
        if not path.is_file():
            raise ElqError(f"--token_file: {path}: no such file")
        token = path.read_text(encoding="utf-8", errors="replace").strip()
        if len(token) < _LEAST_LETTERS or not token.isascii() or not token.isprintable():
            raise ElqError(
                f"--token_file: {path}: expected one line of {_LEAST_LETTERS} ASCII letters or "
                "digits at least, as `openssl rand -hex 32` prints"
            )
        return token
