"""TCR on an instruction model: chat template, English chains, sampling and streaming, and what cannot be done there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import TextStreamer

from chainwright._errors import BadInput
from chainwright.decode.drawing import SeededDraw
from chainwright.decode.run import generate
from chainwright.decode.sampling import Sampling
from chainwright.models.sampling import gumbel_noise
from chainwright.prompts.prompt import prompt_ids
from chainwright.repair import TCR, EntropyDetector
from chainwright.repair.tcr.config import FitConfig
from chainwright.repair.tcr.fit import fit_tcr
from chainwright.repair.tcr.flag_log import logged_flags
from chainwright.reproduce.tcr.config import WAYS, ReproduceTCRConfig
from chainwright.reproduce.tcr.study import ReproduceTCR
from chainwright.scoring import score
from command_line import call
from instruct import instruct_model, instruct_tokenizer, natural, taught
from naive import decode
from repair.tcr.test_decoding import ByLastToken, repair_of, tau_of

N_NEW, TEMPERATURE, SEED = 14, 1.3, 7


def drawing(row: int):
    """Return how the row of that number draws, the naive way: logits and step to a token."""

    def draw(logits: Tensor, step: int) -> int:
        return int((logits / TEMPERATURE + gumbel_noise(SEED, [row], step, len(logits))[0]).argmax())

    return draw


def test_sampled_answers_to_chat_prompts_equal_the_naive_ones() -> None:
    model, tokenizer, selector = instruct_model(), instruct_tokenizer(), ByLastToken()
    problems, tau = natural(n=2), tau_of(model)
    repair = repair_of(tau, end_ids=(tokenizer.eos_token_id,))
    options = {"temperature": TEMPERATURE, "seed": SEED, "max_new_tokens": N_NEW, "progress": False}
    with logged_flags(repair) as flag_log:
        got = generate(model, tokenizer, problems, repair=repair, **options)
    for i, (trace, problem) in enumerate(zip(got, problems, strict=True)):
        asked = prompt_ids(tokenizer, problem)
        assert tokenizer.decode(asked).startswith("<user>") and trace.input_ids[: len(asked)].tolist() == asked
        want = decode(model, asked, N_NEW, tau, selector.heads(3), drawing(i), end_id=tokenizer.eos_token_id)
        assert trace.response_ids.tolist() == want, f"row {i}"
    flagged = flag_log.tokens(got)
    assert len({tuple(tokens) for tokens in flagged}) == len(got), "rows are flagged at different moments"
    assert all(0 < len(tokens) < N_NEW for tokens in flagged)
    plain = generate(model, tokenizer, problems, **options)
    assert [t.response_ids.tolist() for t in plain] != [t.response_ids.tolist() for t in got]


def test_a_text_streamer_writes_the_sampled_answer(capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer, selector = instruct_model(), instruct_tokenizer(), ByLastToken()
    tau = tau_of(model)
    asked = prompt_ids(tokenizer, natural(n=1)[0])
    ids = torch.tensor([asked])
    noise = SeededDraw([0], Sampling(temperature=TEMPERATURE), SEED, len(asked))
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    with repair_of(tau).attached(model):
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),  # the prompt holds end tokens, which are padding too
            max_new_tokens=N_NEW,
            do_sample=False,
            eos_token_id=None,
            logits_processor=[noise],
            streamer=streamer,
        )
    want = decode(model, asked, N_NEW, tau, selector.heads(3), drawing(0))
    assert out[0, len(asked) :].tolist() == want
    assert capsys.readouterr().out == tokenizer.decode(want, skip_special_tokens=True) + "\n"


def test_a_fit_on_chains_without_a_right_token_is_refused() -> None:
    model, tokenizer = instruct_model(), instruct_tokenizer()
    traces = generate(model, tokenizer, natural(n=3), max_new_tokens=10, progress=False)
    with pytest.raises(BadInput, match="predicts no right token at all in these traces"):
        fit_tcr(model, tokenizer, traces)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"ways": ("TCR", "TCR, gold")},
            "'TCR, gold' flags the first errors of the model alone, .* add the way 'none'",
        ),
        ({"variants": ("all",)}, "Ablations cannot be run in the natural rendering: .* Leave the variants out"),
    ],
)
def test_what_needs_one_wording_is_refused_before_anything_runs(changes: dict, words: str) -> None:
    given = {"ways": WAYS, "variants": (), "rendering": "natural"}
    asked = {"hops": {"llc": (2,)}, "fit_hops": {"llc": (2,)}}
    with pytest.raises(BadInput, match=words):
        ReproduceTCRConfig(model="model", **asked, **{**given, **changes})


@pytest.mark.slow
def test_fit_decode_and_study_of_an_instruction_model(tmp_path: Path) -> None:
    problems, tokenizer = natural(n=20), instruct_tokenizer()
    model = taught(problems, n_steps=200)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    traces = generate(model, tokenizer, problems, progress=False)
    n_right = sum(trace.first_error is None for trace in traces)
    assert 0 < n_right < len(traces), "some chains are right and some wrong"
    fitted = fit_tcr(model, tokenizer, traces, config=FitConfig(tau=0.3, detector="entropy"))
    assert fitted.candidates.n_errors > 0 and isinstance(fitted.detector, EntropyDetector)
    TCR.from_fit(fitted).save_pretrained(tmp_path / "repair")

    again = TCR.from_pretrained(tmp_path / "repair")
    repaired = generate(model, tokenizer, problems[:4], repair=again, progress=False)
    for trace in repaired:
        chosen = score(model, trace, repair=again).argmax[trace.response_start :]
        assert chosen.tolist() == trace.response_ids.tolist(), "score sees what decoding did"

    folder = tmp_path / "study"
    asked = ("reproduce", "tcr", "-m", tmp_path / "model", "--repair", tmp_path / "repair", "-t", "llc", "--hops", "2")
    code, printed = call(*asked, "-n", 2, "--seeds", "11", "--rendering", "natural", "--quick", "-o", folder)
    assert code == 0, printed
    assert "The ablations: they need right chains" in printed and "### First errors: decisions" in printed
    assert "| TCR |" in printed and "| TCR, gold |" in printed
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "Not run" in report and 'id="comparison"' in report
    code, printed = call(*asked, "--rendering", "natural", "--ways", "TCR;remove, gold", "-o", tmp_path / "other")
    assert code == 2 and "'remove, gold' flags the first errors of the model alone" in printed
    assert not (tmp_path / "other").exists() and ReproduceTCR.kind == "reproduce tcr"
