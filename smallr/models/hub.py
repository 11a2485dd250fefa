"""Puts folders into a model repository of the Hugging Face hub.

HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to huggingface_hub. It is imported when something is
uploaded, since that takes a while.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from smallr.core.errors import UserError
from smallr.models.names import is_hub_id

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

MAIN = "main"
_STALE = ["*.safetensors", "*.safetensors.index.json"]  # of an upload before, that this one has no file for
_TOKENS = "https://huggingface.co/settings/tokens"


class UploadError(UserError):
    """Says that an upload has failed.

    Attributes:
      lasting: whether it will fail again: the hub has refused it, rather than been out of reach.
    """

    def __init__(self, message: str, lasting: bool):
        super().__init__(message)
        self.lasting = lasting


@dataclasses.dataclass(frozen=True)
class HubRepo:
    """Names a branch of a model repository that may be written to; `open_repo` makes it."""

    name: str
    revision: str = MAIN

    def upload(self, folder: Path, message: str) -> str:
        """Makes a folder the content of the branch, as far as it is a model's; other files there stay.

        Args:
          folder: whose files are uploaded.
          message: of the commit.

        Returns:
          The address of the commit.

        Raises:
          UploadError: it failed.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            commit = HfApi().upload_folder(
                repo_id=self.name,
                folder_path=folder,
                revision=self.revision,
                commit_message=message,
                delete_patterns=_STALE,
            )
        except HfHubHTTPError as error:
            raise UploadError(_refused(self.name, error), _status(error) in (400, 401, 403, 404)) from error
        except Exception as error:  # of the HTTP client and of Xet, of many kinds
            raise UploadError(f"the upload to {self.name} failed: {_line(error)}", lasting=False) from error
        return str(commit.commit_url)


def open_repo(name: str, *, private: bool = False, revision: str = "") -> HubRepo:
    """Makes sure that a repository is there and may be written to.

    Args:
      name: `owner/name`.
      private: that nobody else may read it; of one that is there already it is checked.
      revision: a branch, which is made if it is not there; empty: main.

    Raises:
      UserError: a name that is none; no token, or one without the rights; HF_HUB_OFFLINE is set, or the hub is out of
        reach; a repository that is public though a private one is asked for.
    """
    if not is_hub_id(name):
        raise UserError(f"repository {name!r}: its name must be owner/name")
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if hub.is_offline_mode():
        raise UserError(f"nothing can be uploaded to {name}: HF_HUB_OFFLINE is set; unset it, or leave the upload out")
    if not hub.get_token():
        raise UserError(
            f"nothing can be uploaded to {name}: there is no token; log in with `hf auth login`, or set HF_TOKEN to one that "
            f"may write ({_TOKENS})"
        )
    try:
        api = hub.HfApi()
        api.create_repo(name, private=private or None, exist_ok=True)
        api.auth_check(name, write=True)
        if private and not api.model_info(name).private:
            raise UserError(f"{name} exists and is public: make it private on the hub, or choose another name")
        if revision and revision != MAIN:
            api.create_branch(name, branch=revision, exist_ok=True)
    except HFValidationError as error:
        raise UserError(f"repository {name!r}: {_line(error)}") from error
    except HfHubHTTPError as error:
        raise UserError(_refused(name, error)) from error
    except UserError:
        raise
    except Exception as error:  # of the HTTP client, of many kinds
        raise UserError(f"the hub ({hub.constants.ENDPOINT}) cannot be reached: {_line(error)}") from error
    return HubRepo(name, revision or MAIN)


def _refused(name: str, error: HfHubHTTPError) -> str:
    """Says why the hub has refused a request about a repository, and what can be done."""
    status = _status(error)
    if status == 401:
        return f"the hub does not know the token: log in again with `hf auth login`, or renew HF_TOKEN ({_TOKENS})"
    if status == 403:
        return f"the token may not write to {name}: take one with write access to {name.partition('/')[0]} ({_TOKENS})"
    return f"the hub refuses the upload to {name}: {_line(error)}"


def _status(error: HfHubHTTPError) -> int:
    return error.response.status_code if error.response is not None else 0


def _line(error: Exception) -> str:
    """Returns the kind and the words of an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
