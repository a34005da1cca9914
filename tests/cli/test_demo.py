"""`chainwright demo` asks what `diagnose` asks, of the bundled reasoner with its repair."""

from pathlib import Path
from typing import Any

import pytest

from chainwright._errors import BadInput
from chainwright.studies.diagnosis import run as diagnosis
from chainwright.studies.executors.local import Local
from command_line import call


def test_the_demo_begins_a_diagnosis_of_the_reasoner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study itself takes minutes; what comes before it does not."""
    asked: list[Any] = []

    def begun(model: Any, tokenizer: Any, config: Any, folder: Path, **options: Any) -> None:
        asked.append((config, folder, type(options["executor"])))
        raise BadInput("far enough")

    monkeypatch.setattr(diagnosis, "run_study", begun)
    code, printed = call("demo", "--out", tmp_path / "demo", "-n", 2)
    assert code == 2 and "far enough" in printed
    [(config, folder, executor)] = asked
    assert (config.model, config.repair, config.n) == ("reasoner", "tcr-reasoner", 2)
    assert len(config.hops) == 7 and folder == tmp_path / "demo" and executor is Local
