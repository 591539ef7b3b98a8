"""An exported folder, sent to a repository of the hub by `fedft export DIR --push OWNER/NAME`, and by nothing else."""

from pathlib import Path

from fedft.errors import ConfigError, first_line, offline


def check(name: str) -> None:
    """Return None if a folder could be sent to the repository `name`, as far as this machine knows; asks nobody.

    Raises ConfigError: no OWNER/NAME, the environment keeps this machine from the hub, or there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as e:
        raise ConfigError(f"--push {name}: {first_line(e)}; wanted OWNER/NAME") from e
    if "/" not in name:
        raise ConfigError(f"--push {name}: wanted OWNER/NAME")
    if said := offline():
        raise ConfigError(f"--push {name}: the hub cannot be reached from here{said}")
    if not get_token():
        raise ConfigError(f"--push {name}: there is no token of the hub; `hf auth login`, or set HF_TOKEN")


def upload(folder: Path, name: str) -> str:
    """Send all files of `folder` to the model repository `name`, made private if it is not there; returns its address.

    Raises ConfigError where the hub refuses or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by fedft"))
    except Exception as e:  # of the hub, of its client, and of the network below
        raise ConfigError(f"--push {name}: {first_line(e)}") from e
