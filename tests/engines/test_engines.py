"""Traces by an engine: texts and ids of local generation, and what is refused, with our own server as the endpoint."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

pytest.importorskip("openai")
pytest.importorskip("fastapi")

from chainwright import BadInput, generate, load_model, tasks
from chainwright.decode.sampling import Sampling
from chainwright.engines.check import EngineCheck, checked
from chainwright.engines.endpoint import OpenAIEngine
from chainwright.engines.kinds import engine_of
from chainwright.engines.writing import seed_of, written_by
from chainwright.integrations.server.engine import Engine as ServerEngine
from chainwright.studies import Study
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.studies.diagnosis.run import open_diagnosis, run_study
from chainwright.studies.diagnosis.toml import read_study_file
from command_line import call
from serving import running

GREEDY = Sampling()


@pytest.fixture(scope="module")
def local():
    return load_model("reasoner")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as it:
        yield f"{it.url}/v1"


@contextmanager
def fake(answer, models=("reasoner",)) -> Iterator[str]:
    """Run a server that answers every completion with what `answer(body)` returns: a status and a body."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self, status: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            entries = [{"id": m, "object": "model", "created": 0, "owned_by": ""} for m in models]
            self.reply(200, {"object": "list", "data": entries})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(*answer(asked))

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    finally:
        httpd.shutdown()
        thread.join(10)


def completion(**choice: object) -> tuple[int, dict]:
    entry = {"index": 0, "finish_reason": "stop", "text": "", "logprobs": None, **choice}
    return 200, {"id": "x", "object": "text_completion", "created": 0, "model": "reasoner", "choices": [entry]}


def test_greedy_traces_equal_local_generation(local, server: str) -> None:
    model, tokenizer = local
    problems = tasks.sample("parity", 5, 4, 0) + tasks.sample("clf", 12, 3, 1)
    engine = OpenAIEngine(server, "reasoner", tokenizer)
    n_done: list[int] = []
    found = written_by(engine, model, tokenizer, problems, sampling=GREEDY, done=n_done.append)
    own = generate(model, tokenizer, problems, progress=False)
    assert [t.input_ids.tolist() for t in found.traces] == [t.input_ids.tolist() for t in own]
    assert [(t.response, t.is_correct, t.stopped) for t in found.traces] == [
        (t.response, t.is_correct, t.stopped) for t in own
    ]
    assert sum(n_done) == 7 and found.n_text == 0
    more = {"engine": engine.name, "engine_seed": seed_of(0, 3)}
    assert dict(found.traces[3].info) == {**own[3].info, **more}
    row = checked(model, found.traces, found.logprobs, engine.name, 0.001)
    assert row["n_checked"] == 7 and row["difference"] < 1e-4
    assert row["n_tokens"] == sum(len(t.response_ids) for t in own)  # the end tokens too


def test_stop_strings_and_limits_end_traces_as_locally(local, server: str) -> None:
    model, tokenizer = local
    problems = tasks.sample("parity", 6, 3, 0)
    engine = OpenAIEngine(server, "reasoner", tokenizer)
    sampling = Sampling(stop=["\n"])
    for options in ({"sampling": sampling}, {"sampling": GREEDY, "max_new_tokens": 7}):
        found = written_by(engine, model, tokenizer, problems, **options)
        own = generate(model, tokenizer, problems, progress=False, **options)
        assert [t.input_ids.tolist() for t in found.traces] == [t.input_ids.tolist() for t in own]
        assert [t.stopped for t in found.traces] == [t.stopped for t in own]
        assert [len(each) for each in found.logprobs] == [len(t.response_ids) for t in own]


def test_drawn_traces_have_seeds_of_their_own_and_are_repeated(local, server: str) -> None:
    model, tokenizer = local
    problems = tasks.sample("parity", 12, 2, 0)
    engine = OpenAIEngine(server, "reasoner", tokenizer)
    options = {"sampling": Sampling(temperature=1.5), "n_samples": 3, "seed": 5}
    first, again = (written_by(engine, model, tokenizer, problems, **options) for _ in range(2))
    assert [t.response for t in first.traces] == [t.response for t in again.traces]
    assert len({t.info["engine_seed"] for t in first.traces}) == 6
    assert [(t.info["problem"], t.info["sample"]) for t in first.traces] == [(i, j) for i in (0, 1) for j in range(3)]
    # log-probabilities are the model's own, not those after temperature
    assert checked(model, first.traces, first.logprobs, engine.name, 0.001)["n_tokens"] > 100
    # what a row draws is what `generate` draws with that seed alone
    own = generate(model, tokenizer, problems[:1], sampling=options["sampling"], progress=False, seed=seed_of(5, 1))
    assert own[0].response == first.traces[1].response


def test_a_server_that_returns_text_alone(local) -> None:
    model, tokenizer = local
    problems = tasks.sample("parity", 4, 2, 0)
    own = {
        tuple(t.input_ids[: t.response_start].tolist()): t for t in generate(model, tokenizer, problems, progress=False)
    }
    refused: list[dict] = []

    def answer(asked: dict) -> tuple[int, dict]:
        if "return_token_ids" in asked:
            refused.append(asked)
            return 400, {"error": {"message": "Unknown field return_token_ids", "type": "invalid_request_error"}}
        ids = own[tuple(asked["prompt"])].response_ids.tolist()[:-1]  # without the end token
        from chainwright import score

        trace = own[tuple(asked["prompt"])]
        logprobs = score(model, trace).logprob[trace.response_start : -1].tolist()
        return completion(
            text=own[tuple(asked["prompt"])].response,
            logprobs={"tokens": [tokenizer.decode([i]) for i in ids], "token_logprobs": logprobs},
        )

    with fake(answer) as url:
        engine = OpenAIEngine(url, "reasoner", tokenizer)
        found = written_by(engine, model, tokenizer, problems, sampling=GREEDY)
    assert len(refused) == 1 and found.n_text == 2
    assert [t.input_ids.tolist() for t in found.traces] == [t.input_ids.tolist() for t in own.values()]
    assert all(t.info["retokenised"] for t in found.traces)
    assert checked(model, found.traces, found.logprobs, engine.name, 0.001)["n_tokens"] > 10


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"text": "answer 3"}, "returns no log-probabilities, without which its traces cannot be checked"),
        (
            {"text": "Paris", "token_ids": [9, 10], "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-1.0, -1.0]}},
            "so it serves a model with another tokenizer; serve the model that is diagnosed",
        ),
        (
            {"text": "x", "token_ids": [99999], "logprobs": {"tokens": ["x"], "token_logprobs": [-1.0]}},
            "so it serves a model with another tokenizer",
        ),
    ],
)
def test_a_server_of_another_kind_is_refused(local, choice: dict, words: str) -> None:
    model, tokenizer = local
    with fake(lambda asked: completion(**choice)) as url:
        engine = OpenAIEngine(url, "reasoner", tokenizer)
        with pytest.raises(BadInput, match=words):
            written_by(engine, model, tokenizer, tasks.sample("parity", 4, 2, 0), sampling=GREEDY)


def test_texts_that_cannot_be_aligned_cannot_be_checked(local) -> None:
    model, tokenizer = local
    choice = {"text": "answer 3", "logprobs": {"tokens": ["ans", "wer 3"], "token_logprobs": [-1.0, -2.0]}}
    with fake(lambda asked: completion(**choice)) as url:
        found = written_by(
            OpenAIEngine(url, "reasoner", tokenizer), model, tokenizer, tasks.sample("parity", 4, 2, 0), sampling=GREEDY
        )
    with pytest.raises(BadInput, match=r"None of the 2 responses of reasoner at .* nothing can be checked"):
        checked(model, found.traces, found.logprobs, "reasoner at x", 0.05)


def test_a_dead_endpoint_a_wrong_name_and_a_slow_one(local, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = local[1]
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(BadInput, match="cannot be reached; start it, or check --engine-url"):
        OpenAIEngine(dead, "reasoner", tokenizer)
    with pytest.raises(BadInput, match=r"has no model 'mine', but reasoner.*name one of these with --engine-model"):
        OpenAIEngine(server, "mine", tokenizer)
    asked: list[dict] = []

    def slow(body: dict) -> tuple[int, dict]:
        asked.append(body)
        threading.Event().wait(0.5)
        return completion()

    with fake(slow) as url:
        engine = OpenAIEngine(url, "reasoner", tokenizer, timeout=0.1)
        with pytest.raises(BadInput, match=r"did not answer within 0\.1 s, 4 times; raise --engine-timeout"):
            written_by(engine, local[0], tokenizer, tasks.sample("parity", 4, 1, 0), sampling=GREEDY)
    assert len(asked) == 4  # the client's own retries


def test_an_error_of_the_server_is_tried_again(local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    n = 0

    def answer(body: dict) -> tuple[int, dict]:
        nonlocal n
        n += 1
        if n < 3:
            return 503, {"error": {"message": "busy"}}
        return completion(text="", token_ids=[], logprobs={"tokens": [], "token_logprobs": []})

    with fake(answer) as url:
        engine = OpenAIEngine(url, "reasoner", local[1])
        found = written_by(engine, *local, tasks.sample("parity", 4, 1, 0), sampling=GREEDY)
    assert n == 3 and len(found.traces[0].response_ids) == 1  # the end token alone


def config(url: str, **changes: object) -> DiagnoseConfig:
    settings = {"model": "reasoner", "hops": {"parity": [6, 12]}, "n": 6, "instruments": ["accuracy", "errors"]}
    return DiagnoseConfig(**{**settings, "engine": "openai", "engine_url": url, **changes})


def test_a_diagnosis_by_a_server_finds_what_a_local_one_finds(local, server: str, tmp_path: Path) -> None:
    run_study(*local, config(server), tmp_path / "engine", progress=False)
    run_study(*local, config(server, engine=None, engine_url=None), tmp_path / "own", progress=False)
    ours, own = (open_diagnosis(tmp_path / name) for name in ("engine", "own"))
    assert ours.accuracy.rows == own.accuracy.rows and ours.errors.rows == own.errors.rows
    (check,) = ours.of(EngineCheck)
    assert not own.of(EngineCheck)
    assert [row["n_traces"] for row in check.rows] == [6, 6] and max(row["difference"] for row in check.rows) < 1e-4
    assert "12 traces were written by reasoner at http" in check.summary() and "allowed: 0.05" in check.summary()
    files = Study.open(tmp_path / "engine").results["traces/parity-006-0"]
    assert (files / "engine.safetensors").exists() and json.loads((files / "engine.json").read_text())["n_traces"] == 6
    from chainwright.report import write_report

    path = write_report(ours, tmp_path / "report.html")
    assert "traces were written by reasoner at http" in Path(path).read_text()


def test_a_server_of_another_model_is_found_out_before_its_traces_are_used(local, tmp_path: Path) -> None:
    other = load_model("reasoner")
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    with running(ServerEngine(other.model, other.tokenizer, {})) as it:
        asked = config(f"{it.url}/v1")
        with pytest.raises(BadInput, match=r"are not this model's: over \d+ tokens of 6 responses it gave a mean "
                                           r"log-probability of -\d.\d+ and this model gives -\d"):  # fmt: skip
            run_study(*local, asked, tmp_path / "study", progress=False)
    assert Study.open(tmp_path / "study").status().count("done") == 0


def test_a_study_that_lost_its_server_resumes(local, server: str, tmp_path: Path, monkeypatch) -> None:
    run_study(*local, config(server), tmp_path / "whole", progress=False)
    real, calls = OpenAIEngine.write, []

    def failing(self, wanted, sampling, done):
        calls.append(len(wanted))
        if len(calls) == 2:
            raise BadInput("The server at x cannot be reached.")
        return real(self, wanted, sampling, done)

    monkeypatch.setattr(OpenAIEngine, "write", failing)
    with pytest.raises(BadInput, match="cannot be reached"):
        run_study(*local, config(server), tmp_path / "study", progress=False)
    assert Study.open(tmp_path / "study").status().count("done") == 1
    run_study(*local, config(server), tmp_path / "study", progress=False)
    assert calls == [6, 6, 6]
    for unit in ("traces/parity-006-0", "traces/parity-012-0"):
        one, other = (tmp_path / name / unit / "traces.parquet" for name in ("study", "whole"))
        # they name the engine's address, the same here; its log-probabilities may differ in the last digits
        assert one.read_bytes() == other.read_bytes()


def test_the_command_and_the_study_file_name_an_engine(server: str, tmp_path: Path) -> None:
    status, out = call("diagnose", "-t", "parity", "--hops", "6", "-n", "4", "--max-types", "0", "--engine", "openai",
                       "--engine-url", server, "--out", tmp_path / "study")  # fmt: skip
    assert status == 0, out
    assert open_diagnosis(tmp_path / "study").of(EngineCheck)
    file = tmp_path / "study.toml"
    file.write_text(f'model = "reasoner"\nhops = {{ parity = 6 }}\nengine = "openai"\nengine_url = "{server}"\n')
    assert read_study_file(file).engine_url == server


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"engine": "openai"}, r"needs the server's address: engine_url \(--engine-url\)"),
        ({"engine_url": "http://x/v1"}, "pass engine='openai'"),
        ({"engine": "openal", "engine_url": "http://x/v1"}, "Unknown engine 'openal'"),
        ({"engine": "vllm", "engine_tolerance": 0.0}, "engine_tolerance must be a number above 0"),
    ],
)
def test_engines_that_are_not_whole_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        DiagnoseConfig(model="reasoner", hops={"parity": [6]}, **settings)


def test_vllm_is_asked_with_ids_and_returns_them(local, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = local
    problems = tasks.sample("parity", 4, 2, 0)
    own = generate(model, tokenizer, problems, progress=False)
    asked: list[SimpleNamespace] = []

    class LLM:
        def __init__(self, **options: object):
            asked.append(SimpleNamespace(**options))

        def generate(self, prompts, params, use_tqdm):
            asked.extend(params)
            out = []
            for prompt, trace in zip(prompts, own, strict=True):
                assert prompt["prompt_token_ids"] == trace.input_ids[: trace.response_start].tolist()
                ids = trace.response_ids.tolist()
                at = [{i: SimpleNamespace(logprob=-0.5)} for i in ids]
                out.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=at, finish_reason="stop")]))
            return out

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = LLM, SimpleNamespace, "0"
    monkeypatch.setitem(sys.modules, "vllm", module)
    engine = engine_of("vllm", tokenizer, model="some/model", dtype="bfloat16")
    found = written_by(engine, model, tokenizer, problems, sampling=Sampling(temperature=0.7, top_p=0.9), seed=3)
    assert [t.input_ids.tolist() for t in found.traces] == [t.input_ids.tolist() for t in own]
    assert asked[0].model == "some/model" and asked[0].dtype == "bfloat16"
    assert (asked[1].temperature, asked[1].top_p, asked[1].seed) == (0.7, 0.9, seed_of(3, 0))
    with pytest.raises(BadInput, match="are not this model's"):
        checked(model, found.traces, found.logprobs, engine.name, 0.05)


def test_without_vllm_a_sentence_says_what_to_do(local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(BadInput, match=r"install it .pip install vllm., or run it as a server"):
        engine_of("vllm", local[1], model="x")


@pytest.mark.gpu
def test_vllm_on_a_gpu_gives_what_the_model_gives(local) -> None:
    pytest.importorskip("vllm")
    loaded = load_model("smollm2")
    problems = tasks.sample("clf", 3, 4, 0, rendering="natural")
    engine = engine_of("vllm", loaded.tokenizer, model=str(loaded.model.config._name_or_path))
    found = written_by(engine, *loaded, problems, sampling=GREEDY, max_new_tokens=64)
    checked(loaded.model, found.traces, found.logprobs, engine.name, 0.05)
