"""Files of the Hugging Face hub: hf://OWNER/NAME/FILE, or without FILE the weights of a transformers model."""

import os
import shutil
from pathlib import Path

from videoattn.zoo.transfer import RefusedError

PREFIX = "hf://"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as transformers names them, best first


def web_address(url: str) -> str:
    """Return the address of a file or model of the hub in a browser; other addresses stay as they are."""
    if not url.startswith(PREFIX):
        return url
    repository, file = _split(url)
    page = f"https://huggingface.co/{repository}"
    return f"{page}/resolve/main/{file}" if file else page


def hub_transfer(url: str, partial: Path) -> None:
    """Fetch a file of the hub into `partial`, continuing what is there of it.

    huggingface_hub does it, with the account, the mirror (HF_ENDPOINT) and the proxies that are set up for it. Raises
    RefusedError.
    """
    from huggingface_hub import hf_hub_download  # here, so that other rows do without it
    from huggingface_hub.errors import EntryNotFoundError, RemoteEntryNotFoundError, XetDownloadError
    from huggingface_hub.errors import HTTPError as BrokenError  # type: ignore[attr-defined]  # of its HTTP library

    repository, file = _split(url)
    folder = partial.with_name(f"{partial.name}.hub")
    for name in (file,) if file else _WEIGHTS:
        try:
            found = hf_hub_download(repository, name, local_dir=folder)
        except RemoteEntryNotFoundError as error:
            refused = error
            continue
        except (OSError, BrokenError, EntryNotFoundError, XetDownloadError) as error:
            raise RefusedError(" ".join(str(error).split())[:300]) from error
        os.replace(found, partial)
        shutil.rmtree(folder)
        return
    shutil.rmtree(folder, ignore_errors=True)
    raise RefusedError(f"{repository} has no {file or ' and no '.join(_WEIGHTS)}") from refused


def _split(url: str) -> tuple[str, str]:
    """Return OWNER/NAME, and FILE or "". Raises ValueError for an address without an owner and a name."""
    owner, _, rest = url.removeprefix(PREFIX).partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name):
        raise ValueError(f"{url}: expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME/FILE")
    return f"{owner}/{name}", file
