"""A repair on the Hub: exactly its three files go up and come down, with token, privacy and revision passed through."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError

from chainwright._errors import BadInput
from chainwright.repair import EntropyDetector, RemoveAndResample, Repair, base

FILES = {"repair.json", "repair.safetensors", "README.md"}


class Hub:
    """A Hub that keeps folders under (repository, revision), and notes how it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def place(self, repo_id: str, revision: str | None) -> Path:
        return self.folder / repo_id.replace("/", "--") / (revision or "main")

    def note(self, api: HfApi, name: str, **options: Any) -> None:
        self.calls.append((name, {"token": api.token, **options}))

    def create_repo(self, api: HfApi, repo_id: str, **options: Any) -> None:
        self.note(api, "create_repo", repo_id=repo_id, **options)

    def create_branch(self, api: HfApi, repo_id: str, **options: Any) -> None:
        self.note(api, "create_branch", repo_id=repo_id, **options)

    def upload_folder(self, api: HfApi, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        self.note(api, "upload_folder", repo_id=repo_id, **options)
        shutil.copytree(folder_path, self.place(repo_id, options["revision"]))
        return f"https://hub/{repo_id}"

    def snapshot_download(self, repo_id: str, *, revision: str | None, token: str | None, **options: Any) -> str:
        self.calls.append(("snapshot_download", {"token": token, "repo_id": repo_id, "revision": revision, **options}))
        return str(self.place(repo_id, revision))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(tmp_path / "hub")
    for name in ("create_repo", "create_branch", "upload_folder"):
        act = getattr(fake, name)
        monkeypatch.setattr(HfApi, name, lambda api, *args, act=act, **options: act(api, *args, **options))
    monkeypatch.setattr(base, "snapshot_download", fake.snapshot_download)
    return fake


def test_exactly_three_files_go_up_and_come_down_again(hub: Hub) -> None:
    repair = RemoveAndResample(EntropyDetector(0.2))
    assert repair.push_to_hub("me/removal") == "https://hub/me/removal"
    assert {p.name for p in hub.place("me/removal", None).iterdir()} == FILES
    made, sent = hub.calls
    assert made == ("create_repo", {"token": None, "repo_id": "me/removal", "private": False, "exist_ok": True})
    want = {"token": None, "repo_id": "me/removal", "revision": None, "commit_message": "Upload repair"}
    assert sent == ("upload_folder", want)
    again = Repair.from_pretrained("me/removal")
    assert isinstance(again, RemoveAndResample) and again.settings() == repair.settings()
    name, asked = hub.calls[-1]
    assert name == "snapshot_download" and set(asked["allow_patterns"]) == FILES


def test_token_privacy_revision_and_message_are_passed_through(hub: Hub) -> None:
    options = {"private": True, "token": "secret", "revision": "try-2", "message": "Second try"}
    RemoveAndResample(EntropyDetector(0.2)).push_to_hub("me/removal", **options)
    assert [name for name, _ in hub.calls] == ["create_repo", "create_branch", "upload_folder"]
    assert all(asked["token"] == "secret" for _, asked in hub.calls)
    made, branch, sent = (asked for _, asked in hub.calls)
    assert made["private"] is True and branch["branch"] == "try-2" and branch["exist_ok"] is True
    assert sent["revision"] == "try-2" and sent["commit_message"] == "Second try"
    Repair.from_pretrained("me/removal", revision="try-2", token="secret")
    asked = hub.calls[-1][1]
    assert (asked["revision"], asked["token"]) == ("try-2", "secret")
    assert b"secret" not in b"".join(p.read_bytes() for p in hub.place("me/removal", "try-2").iterdir())


def refuses(error: Exception) -> Any:
    def act(*args: Any, **options: Any) -> None:
        raise error

    return act


ERRORS = {
    "connection": HTTPError("[Errno 111] Connection refused\nand more lines"),
    "name": HFValidationError("Repo id must be in the form 'namespace/name'."),
    "token": OSError("Token is required, but no token found.\nRun hf auth login"),
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", ["create_repo", "create_branch", "upload_folder"])
def test_errors_of_the_hub_are_one_sentence(hub: Hub, step: str, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfApi, step, refuses(ERRORS[error]))
    with pytest.raises(BadInput) as caught:
        RemoveAndResample(EntropyDetector(0.2)).push_to_hub("me/removal", revision="b")
    said = str(caught.value)
    first = str(ERRORS[error]).splitlines()[0].rstrip(".")
    assert said == f"The repair could not be put on the Hub as 'me/removal': {first}."


@pytest.mark.parametrize("error", ERRORS)
def test_what_the_hub_does_not_give_is_said(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "snapshot_download", refuses(ERRORS[error]))
    with pytest.raises(BadInput, match=r"There is no folder me/removal, and the Hub gives no such repair: [^\n]*$"):
        Repair.from_pretrained("me/removal")


def test_a_repository_without_a_repair_is_refused(hub: Hub) -> None:
    hub.place("me/model", None).mkdir(parents=True)
    with pytest.raises(BadInput, match=r"me/model on the Hub holds no repair \(there is no repair\.json in it\)"):
        Repair.from_pretrained("me/model")


def test_a_hub_out_of_reach_is_one_sentence_too() -> None:
    with pytest.raises(BadInput, match=r"could not be put on the Hub as 'me/removal': Cannot reach [^\n]*$"):
        RemoveAndResample(EntropyDetector(0.2)).push_to_hub("me/removal", token="x")
