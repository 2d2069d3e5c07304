"""The service as a process, started as in the Dockerfile: limits of HTTP, signals, workers."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

pytest.importorskip("fastapi", reason="needs pip install 'elq_jax[serve]'")
pytest.importorskip("uvicorn", reason="needs pip install 'elq_jax[serve]'")

from serving_tools import QUESTIONS, places
from tiny import tiny_linker_directory

from elq_jax.core.errors import ElqError
from elq_jax.linking.linker import EntityLinker
from elq_jax.serving.server import serve
from elq_jax.serving.settings import ServeSettings

ROOT = pathlib.Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PATIENCE = 300  # seconds, on a busy machine that compiles


def step(name):
    """The list of words of a step such as ENTRYPOINT ["python", ...]."""
    [text] = re.findall(rf"^{name} (\[.*\])$", DOCKERFILE, re.MULTILINE)
    return json.loads(text)


class Running:
    """A service that runs.

    Attributes:
      process: its process.
      port: its port.
      log: file of what it writes on stderr.
    """

    def __init__(self, folder, log, *arguments):
        python, *entry = step("ENTRYPOINT")
        [linker] = step("CMD")
        assert (python, linker) == ("python", "--linker=/linker")
        changed = {"--host=0.0.0.0": "--host=127.0.0.1", "--port=8000": "--port=0"}
        entry = [changed.get(word, word) for word in entry]
        self.log = log
        with open(log, "w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *entry, f"--linker={folder}", "--dtype=float32", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=ROOT,
            )
        self.port = int(
            self.wait_for(lambda: re.findall(r"http://127.0.0.1:(\d+) ", self.text()))[0]
        )

    def text(self):
        return self.log.read_text()

    def wait_for(self, condition):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process.poll() is None, self.text()
            with contextlib.suppress(OSError, http.client.HTTPException):
                if value := condition():
                    return value
            time.sleep(0.1)
        raise AssertionError(self.text())

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return answer.read().decode()

    def is_healthy(self):
        """What HEALTHCHECK of the Dockerfile says."""
        [words] = re.findall(r"^ +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
        _, *words = json.loads(words)
        words = [word.replace(":8000/", f":{self.port}/") for word in words]
        return subprocess.run([sys.executable, *words], stderr=subprocess.DEVNULL).returncode == 0

    def post(self, body, timeout=PATIENCE):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request("POST", "/link", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def raw(self, *parts):
        """Sends bytes as they are; returns all that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            for part in parts:
                connection.sendall(part)
            received = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while chunk := connection.recv(65536):
                    received += chunk
                    if b'"error"' in received:
                        break
            return received

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    settings = {"threshold": -30.0, "max_question_tokens": 32}  # few programs
    return tiny_linker_directory(tmp_path_factory.mktemp("served"), **settings)


@contextlib.contextmanager
def running(folder, tmp_path, *arguments):
    service = Running(folder, tmp_path / "log", "--batch_size=4", *arguments)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()


HEAD = b"POST /link HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_one_process(folder, tmp_path):
    wanted = EntityLinker.from_pretrained(folder, dtype="float32", devices="cpu")(QUESTIONS)
    limits = ("--max_body=10000", "--timeout=300", "--shutdown_seconds=300")
    with running(folder, tmp_path, *limits) as service:
        assert json.loads(service.get("/health")) == {"status": "ok"}
        service.wait_for(service.is_healthy)
        status, answer = service.post(json.dumps({"texts": QUESTIONS}))
        assert status == 200
        assert [places(result["links"]) for result in answer] == [places(own) for own in wanted]

        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"  # No Content-Length says how many will come.
        answer = service.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 4)
        assert b" 413 " in answer
        answer = service.raw(HEAD + b"Content-Length: 99999999\r\n\r\n")
        assert b" 413 " in answer
        assert b" 400 " in service.raw(b"\x00\x01\x02 nonsense\r\n\r\n")
        for _ in range(5):  # Clients that go away in the middle of their body.
            with socket.create_connection(("127.0.0.1", service.port)) as connection:
                connection.sendall(HEAD + b"Content-Length: 50\r\n\r\n{")
        assert service.post('{"text": "x"}')[0] == 200

        # Texts of clients that went away are not linked.
        body = json.dumps({"texts": QUESTIONS * 20}).encode()
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", service.port)) as connection:
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        gone = r'^elq_requests_total{path="/link",status="499"} (\S+)'
        service.wait_for(lambda: re.search(gone, service.get("/metrics"), re.M))
        service.wait_for(lambda: not waiting(service))  # else the next ones may be told to wait

        # Requests that are there are answered after SIGTERM, and no more are taken.
        answers = []
        body = json.dumps({"texts": QUESTIONS * 10})  # All together fit in the queue.
        threads = [
            threading.Thread(target=lambda: answers.append(service.post(body)[0])) for _ in range(8)
        ]
        before = asked(service)
        for thread in threads:
            thread.start()
        accepted = before + 8 * 10 * len(QUESTIONS)
        service.wait_for(lambda: asked(service) + waiting(service) == accepted)
        assert service.stop() == 0
        for thread in threads:
            thread.join()
        assert answers == [200] * 8
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", service.port))
    assert "Traceback" not in service.text()


def asked(service):
    """Number of questions that batches have begun with."""
    return float(re.search(r"^elq_batch_questions_sum (\S+)", service.get("/metrics"), re.M)[1])


def waiting(service):
    """Number of questions that wait for a batch."""
    return float(re.search(r"^elq_queue_questions (\S+)", service.get("/metrics"), re.M)[1])


def test_slow_client(folder, tmp_path):
    with running(folder, tmp_path, "--timeout=2") as service:
        service.wait_for(service.is_healthy)
        assert b" 408 " in service.raw(HEAD + b"Content-Length: 50\r\n\r\n{")
        assert service.stop() == 0


def test_two_workers(folder, tmp_path):
    with running(folder, tmp_path, "--workers=2") as service:
        service.wait_for(service.is_healthy)
        pid = service.process.pid
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
        first = set(children.read_text().split())
        assert len(first) == 2
        for _ in range(20):
            assert service.post('{"texts": ["x", "who wrote dune?"]}')[0] == 200
        # Each has linked some; either names the sum.
        assert asked(service) == 40
        os.kill(int(min(first)), signal.SIGKILL)
        service.wait_for(lambda: len(set(children.read_text().split()) - first) == 1)
        for _ in range(10):  # The other one serves.
            assert service.post('{"text": "x"}')[0] == 200
        service.wait_for(service.is_healthy)
        assert "starting another" in service.text()
        assert service.stop() == 0
        assert not children.exists()


def serve_in_vain(*arguments):
    """The finished process of a service that cannot start."""
    return subprocess.run(
        [sys.executable, "-m", "elq_jax.serve", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE,
    )


def test_a_worker_that_cannot_start_ends_the_service(tmp_path):
    done = serve_in_vain(f"--linker={tmp_path}", "--port=0", "--workers=2")
    assert done.returncode == 2
    assert f"error: {tmp_path}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve_in_vain(f"--linker={tmp_path}", f"--port={port}")
    assert done.returncode == 2
    assert f"--port={port}: Address already in use; give another --port" in done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token_file": "none.txt"}, "--token_file: none.txt: no such file"),
        ({"host": "192.0.2.1"}, "--host=192.0.2.1 --port=0: .*; give an address of this machine"),
    ],
)
def test_what_is_wrong_is_said_before_the_linker_is_opened(monkeypatch, settings, message):
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    with pytest.raises(ElqError, match=message):
        serve(pytest.fail, ServeSettings(port=0, **settings), [])


def test_the_image_has_what_its_steps_need():
    """Everything that COPY names is there and is not left out by .dockerignore."""
    sources = [
        source
        for words in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.M)
        for source in words.split()
    ]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored
    assert "USER elq" in DOCKERFILE
    compose = (ROOT / "compose.yaml").read_text()
    assert "./runs/demo/linker:/linker:ro" in compose
    assert "127.0.0.1:8000:8000" in compose


@pytest.mark.skipif(
    not os.environ.get("ELQ_JAX_TEST_INSTALL"),
    reason="installs packages from the network; ELQ_JAX_TEST_INSTALL=1 runs it, as .ci/run does",
)
def test_the_steps_of_the_dockerfile_in_an_empty_environment(folder, tmp_path):
    """COPY, RUN pip install and ENTRYPOINT, in a new virtual environment instead of an image."""
    import shutil

    source = tmp_path / "source"
    source.mkdir()
    for words in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.M):
        for name in words.split():
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    [install] = re.findall(r"^RUN (python -m pip .*?) &&", DOCKERFILE, re.M)
    python = str(tmp_path / "venv" / "bin" / "python")
    words = [python, *shlex.split(install)[1:]]
    subprocess.run(words, cwd=source, check=True)
    entry = [python, *step("ENTRYPOINT")[1:], f"--linker={folder}", "--host=127.0.0.1", "--port=0"]
    # Leaving the context closes stderr and waits for the process.
    with subprocess.Popen(entry, cwd="/", stderr=subprocess.PIPE, text=True) as service:
        try:
            while not (found := re.search(r":(\d+) serves", service.stderr.readline())):
                assert service.poll() is None
            with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/health") as answer:
                assert answer.status == 200
        finally:
            service.send_signal(signal.SIGTERM)
            service.stderr.read()
    assert service.returncode == 0
