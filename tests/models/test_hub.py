"""Uploads to a stand-in of the hub: what arrives, and what is refused before anything is loaded."""

from __future__ import annotations

import pytest

from smallr.core.errors import UserError
from smallr.models.hub import UploadError, open_repo
from tests.hub import READ_ONLY, TOKEN, Hub, connect, running


@pytest.fixture
def hub(monkeypatch):
    with running(large=1000) as server:
        connect(server, monkeypatch)
        yield server


def folder_of(path, **files: bytes):
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name.replace("__", ".")).write_bytes(content)
    return path


def test_what_is_uploaded_arrives_and_replaces_what_was_there(hub: Hub, tmp_path):
    card, weights = b"---\ntags: [smallr]\n---\nA model.\n", bytes(range(256)) * 8
    first = folder_of(tmp_path / "a", README__md=card, model__safetensors=weights, old__safetensors=weights[::-1])
    repo = open_repo("me/model")
    assert repo.upload(first, "one").startswith(f"{hub.endpoint}/me/model/commit/")
    assert hub.repos["me/model"].files == {path.name: path.read_bytes() for path in first.iterdir()}
    assert len(hub.lfs) == 2, "large files go through LFS"
    hub.repos["me/model"].files["logo.png"] = b"theirs"
    second = folder_of(tmp_path / "b", README__md=card + b"More.\n", model__safetensors=weights)
    open_repo("me/model").upload(second, "two")
    files = {path.name: path.read_bytes() for path in second.iterdir()}
    assert hub.repos["me/model"].files == files | {"logo.png": b"theirs"}
    assert hub.commits() == ["one", "two"]


def test_a_branch_and_a_private_repository_are_made(hub: Hub, tmp_path):
    folder = folder_of(tmp_path / "a", config__json=b"{}")
    open_repo("me/model", private=True, revision="trial").upload(folder, "one")
    assert hub.repos["me/model"].private
    assert hub.repos["me/model"].branches == {"main": {}, "trial": {"config.json": b"{}"}}
    open_repo("me/model", private=True, revision="trial")
    open_repo("me/public")
    with pytest.raises(UserError, match="me/public exists and is public"):
        open_repo("me/public", private=True)


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("model", TOKEN, "'model': its name must be owner/name"),
        ("me/mod..el", TOKEN, r"'me/mod..el': HFValidationError: .*"),
        ("me/model", None, "there is no token; log in with `hf auth login`, or set HF_TOKEN"),
        ("me/model", "hf_other", "the hub does not know the token"),
        ("me/model", READ_ONLY, "the token may not write to me/model: take one with write access to me"),
        ("you/model", TOKEN, "the token may not write to you/model"),
    ],
)
def test_what_cannot_be_written_to_is_refused(hub: Hub, monkeypatch, name, token, message):
    connect(hub, monkeypatch, token)
    with pytest.raises(UserError, match=message) as error:
        open_repo(name)
    assert "\n" not in str(error.value)
    assert not hub.repos


def test_a_repository_of_somebody_else_may_be_read_and_not_written(hub: Hub, monkeypatch):
    """`create_repo` is content with a repository that is there, whoever may write to it."""
    open_repo("me/model")
    connect(hub, monkeypatch, READ_ONLY)
    with pytest.raises(UserError, match="the token may not write to me/model"):
        open_repo("me/model")


def test_without_the_hub_it_is_said_so(hub: Hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the hub \(http://127.0.0.1:9\) cannot be reached: ConnectError"):
        open_repo("me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it"):
        open_repo("me/model")


def test_a_failed_upload_says_whether_to_try_again(hub: Hub, tmp_path):
    folder, repo = folder_of(tmp_path / "a", config__json=b"{}"), open_repo("me/model")
    hub.failures += [503, 403]
    for lasting, message in ((False, "HfHubHTTPError: .*503"), (True, "the token may not write to me/model")):
        with pytest.raises(UploadError, match=message) as error:
            repo.upload(folder, "one")
        assert error.value.lasting == lasting
    repo.upload(folder, "one")
    assert hub.commits() == ["one"]
