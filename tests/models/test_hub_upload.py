"""`fedft export --push`: nothing is asked of anybody before it can work, and what is sent is the exported folder."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from typer.testing import CliRunner

from fedft.cli.main import app
from fedft.errors import ConfigError
from fedft.models import hub_upload


class FakeApi:
    """A hub that notes what it is asked."""

    asked: list[tuple[str, dict[str, Any]]]
    fails = ""

    def create_repo(self, name: str, **how: Any) -> None:
        """Note it, or fail as the hub does."""
        self.asked.append(("create", {"name": name, **how}))
        if self.fails:
            raise OSError(self.fails)

    def upload_folder(self, **how: Any) -> str:
        """Note the files that are there now."""
        files = sorted(p.name for p in Path(how["folder_path"]).iterdir())
        self.asked.append(("upload", {"name": how["repo_id"], "files": files}))
        return f"https://hub.test/{how['repo_id']}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    class Api(FakeApi):
        asked = []  # noqa: RUF012

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return Api


def test_a_folder_is_sent_as_it_is_to_a_private_repository(hub: type[FakeApi], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    hub_upload.check("owner/name")
    assert hub.asked == []
    assert hub_upload.upload(tmp_path, "owner/name") == "https://hub.test/owner/name"
    assert hub.asked == [
        ("create", {"name": "owner/name", "private": True, "exist_ok": True}),
        ("upload", {"name": "owner/name", "files": ["adapter_config.json"]}),
    ]


@pytest.mark.parametrize("name", ["name", "owner/", "a/b/c", "owner/na me", "--"])
def test_a_name_that_is_none_is_refused(hub: type[FakeApi], name: str) -> None:
    with pytest.raises(ConfigError, match=r"^--push .*OWNER/NAME$"):
        hub_upload.check(name)


def test_without_a_token_and_offline_it_is_one_line(hub: type[FakeApi], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="there is no token of the hub"):
        hub_upload.check("owner/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"cannot be reached from here \(HF_HUB_OFFLINE is set\)"):
        hub_upload.check("owner/name")


def test_what_the_hub_says_is_one_line(hub: type[FakeApi], tmp_path: Path) -> None:
    hub.fails = "403 Forbidden\nand much more"
    with pytest.raises(ConfigError, match=r"^--push owner/name: 403 Forbidden$"):
        hub_upload.upload(tmp_path, "owner/name")


def test_the_command_sends_only_where_it_is_asked_to(
    hub: type[FakeApi], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from fedft.simulations import finished_run

    base = "owner/base"

    def export(folder: Path, to: Path, **how: Any) -> str:
        to.mkdir(parents=True)
        (to / "adapter_config.json").write_text(json.dumps({"r": 8, "base_model_name_or_path": base}))
        return "adapter"

    monkeypatch.setattr(finished_run, "export_run", export)
    (tmp_path / "config.toml").write_text("")
    run = CliRunner().invoke
    to = tmp_path / "to"
    assert run(app, ["export", str(tmp_path), "--to", str(to)]).exit_code == 0
    assert hub.asked == []
    sent = run(app, ["export", str(tmp_path), "--push", "owner/name"])
    assert (sent.exit_code, sent.output) == (0, "pushed https://hub.test/owner/name\n")
    assert [what for what, _ in hub.asked] == ["create", "upload"]
    said = json.loads(run(app, ["export", str(tmp_path), "--to", f"{to}2", "--push", "owner/name", "--json"]).output)
    assert (said["kind"], said["folder"], said["pushed"]) == ("adapter", f"{to}2", "https://hub.test/owner/name")
    assert said["lines"]["vllm"].startswith("vllm serve owner/base ")
    assert caplog.text == ""
    base = str(tmp_path)
    assert run(app, ["export", str(tmp_path), "--push", "owner/name"]).exit_code == 0
    assert f"the adapter names as its base {tmp_path}, a folder that nobody else has" in caplog.text
