"""Starting and stopping: the command, a second server on the port, a signal while requests run, a missing extra."""

from __future__ import annotations

import builtins
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

from chainwright._errors import BadInput
from chainwright.cli.serve import named_repairs
from chainwright.integrations.server.config import ServeConfig
from chainwright.repair import DoLa
from command_line import call
from serving import Running, running


def test_a_second_server_on_the_port_is_refused_before_a_model_is_loaded(server: Running) -> None:
    code, printed = call("serve", "--port", server.port, "--model", "no-such-model")
    assert code == 2
    assert f"Cannot listen on 127.0.0.1 port {server.port}" in printed and "Choose another --port" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--host", "no.such.host.invalid"), "Cannot listen on no.such.host.invalid"),
        (("--port", "70000"), "port must be a whole number from 0 to 65535; got 70000."),
        (("--max-batch", "0"), "max_batch must be a whole number from 1; got 0."),
        (("--timeout", "0"), "timeout must be a positive number of seconds; got 0"),
        (
            ("--repair", "no-such"),
            "Unknown repair 'no-such'; known: back-smollm2, back-world, tcr-reasoner",
        ),
        (("--repair", "tcr-reasoner", "--repair", "tcr-reasoner"), "Two repairs would be served as 'tcr-reasoner'"),
        (("--repair", "a+b=tcr-reasoner"), "A repair cannot be served as 'a+b'; name it: --repair NAME=tcr-reasoner."),
        (("--repair", "back-world"), "was made for world"),
        (("--model", "no-such-model"), "no-such-model"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(options: tuple[str, ...], words: str) -> None:
    code, printed = call("serve", *(("--port", "0") if "--port" not in options else ()), *options)
    assert code == 2 and words in printed, printed
    assert printed.startswith("error:")


def test_an_extra_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return real(name, *rest, **named)

    monkeypatch.delitem(sys.modules, "chainwright.integrations.server.app", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    code, printed = call("serve", "--port", "0")
    assert code == 2
    assert "needs uvicorn, which is not installed: pip install 'chainwright[serve]'." in printed


def test_repairs_are_named_after_their_folders_or_as_asked(tmp_path: Path) -> None:
    DoLa(4).save_pretrained(tmp_path / "contrast")
    folder = str(tmp_path / "contrast")
    assert list(named_repairs([folder, f"other={folder}", "tcr-reasoner"])) == ["contrast", "other", "tcr-reasoner"]
    with pytest.raises(BadInput, match="Two repairs would be served as 'contrast'"):
        named_repairs([folder, folder])


def _asking(it: Running, answers: list[Any], **options: Any) -> threading.Thread:
    def ask() -> None:
        try:
            answers.append(it.client().completions.create(model="reasoner", prompt="parity parity", **options))
        except openai.APIError as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until = time.monotonic() + 10
    while not it.engine.load.n_rows and not answers:
        assert time.monotonic() < until
        time.sleep(0.002)
    return thread


def test_running_requests_finish_when_the_server_is_stopped() -> None:
    answers: list[Any] = []
    with running(config=ServeConfig(port=0, grace=30)) as it:
        thread = _asking(it, answers, max_tokens=100, stop=["no such text"])
        it.server.should_exit = True
        thread.join()
    assert answers[0].choices[0].finish_reason in ("stop", "length"), answers
    assert it.engine.load.n_rows == 0


def test_requests_that_outlast_the_grace_end_with_a_sentence() -> None:
    answers: list[Any] = []
    with running(config=ServeConfig(port=0, grace=0)) as it:
        thread = _asking(it, answers, max_tokens=1500)
        it.server.should_exit = True
        thread.join()
    assert isinstance(answers[0], openai.APIStatusError), answers
    assert answers[0].status_code == 503 and "The server is stopping" in str(answers[0])


@pytest.mark.slow
def test_the_command_serves_until_a_signal_and_ends_well() -> None:
    command = [sys.executable, "-m", "chainwright", "serve", "--port", "0", "--repair", "tcr-reasoner"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "Serving reasoner, reasoner+tcr-reasoner\n"
    line = process.stdout.readline()
    (url,) = re.findall(r"http://127\.0\.0\.1:\d+/v1", line)
    client = openai.OpenAI(base_url=url, api_key="none")
    until = time.monotonic() + 20
    while True:
        try:
            assert [model.id for model in client.models.list()] == ["reasoner", "reasoner+tcr-reasoner"]
            break
        except openai.APIConnectionError:
            assert time.monotonic() < until
    answer = client.completions.create(model="reasoner+tcr-reasoner", prompt="parity", max_tokens=5)
    assert answer.usage.completion_tokens == 5
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert process.stdout.read() == "Stopped.\n"


def test_an_engine_that_has_stopped_is_not_healthy() -> None:
    with running(config=ServeConfig(port=0, grace=0)) as it:
        with urllib.request.urlopen(f"{it.url}/health") as response:
            assert json.load(response) == {"status": "ok", "rows": 0, "waiting": 0}
        it.engine.stop()
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{it.url}/health")
        assert caught.value.code == 503 and json.load(caught.value)["status"] == "stopped"
        with pytest.raises(openai.InternalServerError, match="The server is stopping"):
            it.client().completions.create(model="reasoner", prompt="x")
