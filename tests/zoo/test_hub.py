"""Files of the Hugging Face hub: fetched by huggingface_hub from a server on 127.0.0.1, checked and kept as others."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.zoo.loopback import Loopback, Request, loopback, send
from videoattn.zoo.download import DownloadError, fetch
from videoattn.zoo.hub import hub_transfer, web_address
from videoattn.zoo.protocol import locate_weights
from videoattn.zoo.rows import find_row
from videoattn.zoo.transfer import RefusedError

ROOT = Path(__file__).parents[2]
CONTENT = bytes(range(256)) * 64


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A server in the hub's place, which has no files yet."""
    from huggingface_hub import constants

    with loopback() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


def serve(hub: Loopback, repository: str, file: str, content: bytes = CONTENT, broken_after: int | None = None) -> None:
    """Let the server have a file, as the hub sends it: with the commit and a digest of the content."""

    def answer(request: Request) -> None:
        digest = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": "0" * 40, "ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        body = b"" if request.command == "HEAD" else content[:broken_after]
        send(request, body, headers=headers, length=len(content))

    hub.answers[f"/{repository}/resolve/main/{file}"] = answer


def missing(request: Request) -> None:
    send(request, b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "0" * 40})


def test_a_file_of_the_hub_is_fetched_whole_and_nothing_else_is_left(hub: Loopback, tmp_path: Path) -> None:
    serve(hub, "owner/name", "distill/weights.pth")
    path = fetch(["hf://owner/name/distill/weights.pth"], tmp_path / "weights.pth", progress=False)
    assert path.read_bytes() == CONTENT
    assert {file.name for file in tmp_path.iterdir()} == {"weights.pth", "weights.pth.sha256", "weights.pth.lock"}
    hub.answers.clear()
    assert fetch(["hf://owner/name/distill/weights.pth"], path) == path  # from here on without the hub


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_of_the_hub_is_its_weights_in_either_container(hub: Loopback, tmp_path: Path, file: str) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        hub.answers[f"/owner/name/resolve/main/{name}"] = missing
    serve(hub, "owner/name", file)
    hub_transfer("hf://owner/name", tmp_path / "weights.part")
    assert (tmp_path / "weights.part").read_bytes() == CONTENT


def test_what_the_hub_does_not_have_is_refused_in_one_line(hub: Loopback, tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin", "other.pth"):
        hub.answers[f"/owner/name/resolve/main/{name}"] = missing
    with pytest.raises(RefusedError, match="^owner/name has no model.safetensors and no pytorch_model.bin$"):
        hub_transfer("hf://owner/name", tmp_path / "weights.part")
    with pytest.raises(DownloadError, match="^hf://owner/name/other.pth: owner/name has no other.pth$"):
        fetch(["hf://owner/name/other.pth"], tmp_path / "other.pth")
    assert not (tmp_path / "other.pth").exists()
    with pytest.raises(ValueError, match="hf://owner: expected hf://OWNER/NAME or hf://OWNER/NAME/FILE"):
        hub_transfer("hf://owner", tmp_path / "weights.part")


@pytest.mark.slow
def test_a_transfer_of_the_hub_that_breaks_is_refused_and_the_next_one_completes_it(
    hub: Loopback, tmp_path: Path
) -> None:
    serve(hub, "owner/name", "weights.pth", broken_after=1000)
    with pytest.raises(DownloadError, match="^hf://owner/name/weights.pth: .* expected 16384"):
        fetch(["hf://owner/name/weights.pth"], tmp_path / "weights.pth")
    assert not (tmp_path / "weights.pth").exists()
    serve(hub, "owner/name", "weights.pth")
    assert fetch(["hf://owner/name/weights.pth"], tmp_path / "weights.pth").read_bytes() == CONTENT


def test_a_row_of_the_hub_is_checked_before_it_is_kept(
    hub: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEOATTN_CACHE", str(tmp_path))
    ours = find_row("motion_timesformer_dense")
    row: Any = dataclasses.replace(ours, clips_from=(), sha256=None, urls=("hf://owner/name",))
    serve(hub, "owner/name", "model.safetensors", b"<html>no weights</html>")
    with pytest.raises(ValueError, match=r"(?s)is refused: .*\n  https://huggingface.co/owner/name\nand put it at "):
        locate_weights(row)
    assert not (tmp_path / row.file).exists()
    right = (ROOT / "model_zoo" / row.file).read_bytes()
    serve(hub, "owner/name", "model.safetensors", right)
    assert locate_weights(row).read_bytes() == right


def test_without_a_network_a_row_of_the_hub_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("VIDEOATTN_CACHE", str(tmp_path))
    row = find_row("videomae_v2_small_k710")
    with pytest.raises(ValueError) as caught:
        locate_weights(row)
    said = str(caught.value).splitlines()
    assert said[0].startswith(
        f"{row.name} needs {row.file}, which is not at {tmp_path / row.file}, and fetching it fai"
    )
    assert said[2] == f"  https://huggingface.co/OpenGVLab/VideoMAE2/resolve/main/distill/{row.file}"
    assert said[3].startswith(f"and put it at {tmp_path / row.file}, or name the file")


def test_addresses_are_shown_as_a_browser_opens_them() -> None:
    assert web_address("hf://owner/name") == "https://huggingface.co/owner/name"
    assert web_address("hf://owner/name/a/b.pth") == "https://huggingface.co/owner/name/resolve/main/a/b.pth"
    assert web_address("https://example.org/a.pth") == "https://example.org/a.pth"
