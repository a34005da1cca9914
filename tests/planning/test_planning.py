"""Plans of large models: formulas against what PyTorch counts, settings that fit, and the command."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from chainwright import BadInput
from chainwright.planning.choice import planned
from chainwright.planning.devices import GB, GPUS, Device, device
from chainwright.planning.parts import Setting, Texts, answering
from chainwright.planning.plan import plan_model, read_shape
from chainwright.planning.shape import Shape, shape_of
from chainwright.planning.usual import usual_asked
from chainwright.planning.work import Passes, Work
from command_line import call
from families import tiny

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / "examples" / "configs" / "llama-3.1-8b-instruct.json"
MAP_TOKENS = 16384


def run(*arguments: str, code: int = 0) -> str:
    status, out = call(*arguments)
    assert status == code, out
    return out


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def llama() -> Shape:
    return read_shape(str(LLAMA))


def asked(shape: Shape, on: Device, **changes):
    return usual_asked(shape, on, map_tokens=MAP_TOKENS, **changes)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox"])
def test_operations_are_those_that_torch_counts(family: str) -> None:
    model = tiny(family)
    model.set_attn_implementation("eager")
    n_rows, length = 3, 40
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(input_ids=torch.ones(n_rows, length, dtype=torch.long), use_cache=False)
    found = Passes(shape_of(family, model), "float32").forward(n_rows * length, length, n_rows * length)
    assert found.flops == pytest.approx(counted.get_total_flops(), rel=0.03)


def test_a_token_uses_some_of_the_experts() -> None:
    model = tiny("gpt_oss")
    shape = shape_of("gpt_oss", model)
    experts = sum(p.numel() for p in model.parameters() if p.dim() == 3)
    assert experts and shape.in_layers - shape.per_token == pytest.approx(experts / 2)  # 2 of 4
    passes = Passes(shape, "float32")
    # one token reads its own experts alone, many tokens read all of them
    assert passes.forward(1, 1).weights < 0.8 * passes.forward(10_000, 1).weights
    assert "of which a token uses" in shape.sentence()


def test_sizes_come_from_the_config_alone() -> None:
    shape = llama()
    assert shape.n_weights == 8_030_261_248 and shape.dtype == "bfloat16"
    passes = Passes(shape, "bfloat16")
    assert passes.cache_bytes == 131_072  # 2 x 32 layers x 8 heads x 128 x 2 bytes
    assert passes.weight_bytes == 16_060_522_496


def test_weights_or_products_count_whichever_takes_longer() -> None:
    on = Device("x", 1, half=1e12, single=1e12, bandwidth=1e9, share_of_peak=1.0, share_of_bandwidth=1.0,
                seconds_a_layer=0.5, waits=False)  # fmt: skip
    work = Work(flops=2e12, weights=3e9, moved=1e9, layers=4)
    assert work.seconds(on, "bfloat16") == 4.0  # three seconds of weights and one of the rest; starts run ahead
    assert work.seconds(replace(on, waits=True), "bfloat16") == 6.0
    assert work.times(2).seconds(on, "bfloat16") == 8.0


def test_decoding_reads_the_weights_at_every_step() -> None:
    passes, on = Passes(llama(), "bfloat16"), GPUS["h100"]
    part = answering(passes, [Texts("t", 1, 1, 100, 100)], on, Setting("bfloat16", batch_size=1))
    floor = 100 * passes.weight_bytes / (3350e9 * 0.7)
    assert floor < part.seconds < 6 * floor  # above it lie the starts of the layers


@pytest.mark.parametrize("name", ["h100", "l40s", "rtx4090"])
def test_every_setting_that_fits_is_within_the_memory(name: str) -> None:
    shape, on = llama(), device(name)
    for job in planned(shape, asked(shape, on), on):
        assert job.fits == (job.bytes <= 0.9 * on.memory)
        assert job.bytes >= job.weights == 16_060_522_496


def test_less_memory_never_makes_a_job_faster_and_changes_its_setting() -> None:
    shape = llama()
    plans = {}
    for memory in (80, 40, 22):
        on = device("h100", memory * GB)
        plans[memory] = {job.name: job for job in planned(shape, asked(shape, on), on)}
    for job in plans[80]:
        fitting = [plans[memory][job] for memory in plans if plans[memory][job].fits]
        # times that differ by less than two digits count as equal
        assert all(more.seconds <= 1.06 * less.seconds for more, less in pairwise(fitting))
    assert plans[80]["back attention"].setting.batch_size > plans[22]["back attention"].setting.batch_size
    assert plans[80]["diagnosing"].setting.chunk is None and plans[22]["diagnosing"].setting.chunk == 2**30


def test_a_float32_checkpoint_is_taken_to_bfloat16_where_that_is_cheaper(tmp_path: Path) -> None:
    config = json.loads(LLAMA.read_text()) | {"dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape, on = read_shape(str(tmp_path)), GPUS["h100"]
    found = plan_model(shape, on, asked(shape, on))
    assert shape.dtype == "float32" and {job.setting.dtype for job in found.jobs} == {"bfloat16"}
    assert any("--dtype bfloat16" in line for line in found.table())
    kept = plan_model(shape, on, asked(shape, on), dtype="float32")
    assert {job.setting.dtype for job in kept.jobs} == {"float32"} and not any(
        "--dtype" in line for line in kept.table()
    )


def test_a_model_that_does_not_fit_is_named_with_what_to_do() -> None:
    shape, on = llama(), device("l4", 12 * GB)
    found = plan_model(shape, on, asked(shape, on))
    assert found.warning is not None and "90% of 12 GB can be counted on" in found.warning
    assert all("(!)" in line for line in list(found.table())[1:])


def test_longer_answers_take_longer() -> None:
    shape, on = llama(), GPUS["h100"]
    short, long = (
        {job.name: job.seconds for job in planned(shape, asked(shape, on, answer=n), on)} for n in (200, 4000)
    )
    assert long["diagnosing"] > 3 * short["diagnosing"] and long["pivots"] > 5 * short["pivots"]
    assert long["step maps"] == short["step maps"]


def test_the_command_prints_jobs_and_assumptions() -> None:
    out = run("plan", "--model", str(LLAMA), "--device", "h100", "--memory", "40", "--task", "clf", "-n", "5")
    assert "8,030,261,248 weights, 32 layers x 32 heads (8 for keys and values)" in out
    assert "Assumed of h100: 40 GB, 989 TFLOP/s" in out
    for job in ("diagnosing", "pivots", "fitting TCR", "step maps", "StepFlow", "back attention"):
        assert f" {job} " in out
    assert "16 maps of 16,384 tokens" in out


def test_this_machine_is_measured() -> None:
    out = run("plan", "--model", "reasoner", "--device", "cpu", "--map-tokens", "512", "-n", "2")
    assert "measured on this machine just now" in out and "reasoner: 1,007,424 weights" in out


def test_positions_are_named_where_maps_do_not_fit_them() -> None:
    out = run("plan", "--model", "reasoner", "--device", "h100")
    assert "positions for 1,536 tokens, fewer than the 16,384 of the step maps; pass --map-tokens" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "h1000"], "Unknown device 'h1000'; known: h200, h100"),
        (["--memory", "-1"], "The memory must be a positive number of GB; got -1"),
        (["--map-tokens", "0"], "--map-tokens must be at least 1; got 0"),
        (["--model", "no/such-model"], "save that file from the model's page and pass its path as --model"),
        (["--dtype", "int3"], "Unknown number type 'int3'"),
        (["--task", "nothing"], "nothing"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], words: str) -> None:
    assert words in run("plan", *arguments, code=2)


def test_a_config_without_heads_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model("mamba", hidden_size=16, num_hidden_layers=2, vocab_size=32, state_size=4)
    with pytest.raises(BadInput, match="does not say how many layers and attention heads"):
        with torch.device("meta"):
            shape_of("mamba", AutoModelForCausalLM.from_config(config))


def test_the_benchmark_runs_every_part(capsys: pytest.CaptureFixture) -> None:
    bench = script("plan")
    rows = bench.run_all(["small"], list(bench.CASES), "float32", scale=0.1)
    assert [row["part"] for row in rows] == list(bench.CASES)
    assert all(row["measured"] > 0 and row["seen"] > 0 for row in rows)
    assert bench.off([{**rows[0], "predicted": 1.0, "measured": 3.0}], 2.0) == [f"small {rows[0]['part']}: time x 0.33"]


@pytest.mark.gpu
def test_memory_on_a_gpu_is_below_twice_what_is_predicted() -> None:
    bench = script("plan").Bench("medium", "bfloat16", "cuda")
    bench.on = GPUS["h200"]
    for name, make in script("plan").CASES.items():
        case = make(bench)
        case.run()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case.run()
        assert torch.cuda.max_memory_allocated() - before < 2 * case.part.bytes, name
