"""Ways in which a training checkpoint can be bad, each as a function that spoils a good file in place."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Damage = Callable[[Path], None]


class RunsCode:
    """An object that creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def _bytes(change: Callable[[bytes], bytes]) -> Damage:
    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def _bare_code(path: Path) -> None:
    path.write_bytes(pickle.dumps(RunsCode(path.with_name("ran"))))


def _content(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        changed = change(content)
        torch.save(content if changed is None else changed, path)

    return damage


def _flip_a_bit(path: Path) -> None:
    """Change the last number of the largest tensor; some bytes between tensors mean nothing."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        numbers = archive.read(largest)
    content = bytearray(path.read_bytes())
    content[content.index(numbers) + len(numbers) - 1] ^= 1
    path.write_bytes(content)


def _set(key: str, value: Any) -> Damage:
    return _content(lambda content: content.update({key: value}))


def _without(*keys: str) -> Damage:
    def remove(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return _content(remove)


def _first(content: dict[str, Any], key: str) -> str:
    return next(name for name, value in content[key].items() if value.dim() == 2)


def _weight(key: str, change: Callable[[torch.Tensor], Any]) -> Damage:
    def spoil(content: dict[str, Any]) -> None:
        name = _first(content, key)
        content[key][name] = change(content[key][name])

    return _content(spoil)


def _moments(change: Callable[[dict[int, Any]], None]) -> Damage:
    return _content(lambda content: change(content["optimizer_state"]["state"]))


def _remove_a_weight(content: dict[str, Any]) -> None:
    del content["model_state"][_first(content, "model_state")]


def _remove_moments(state: dict[int, Any]) -> None:
    del state[3]


def _remove_a_moment(state: dict[int, Any]) -> None:
    del state[0]["exp_avg_sq"]


def _reshape_a_moment(state: dict[int, Any]) -> None:
    state[0]["exp_avg"] = torch.zeros(2, 2, 2, 2)


def _spoil_a_moment(state: dict[int, Any]) -> None:
    _nan(state[0]["exp_avg"])


def _remove_from_group(content: dict[str, Any]) -> None:
    content["optimizer_state"]["param_groups"][0]["params"].pop()


def _replace_by_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def _nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = torch.nan
    return tensor


DAMAGES: dict[str, Damage] = {
    "cut in half": _bytes(lambda b: b[: len(b) // 2]),
    "cut by one byte": _bytes(lambda b: b[:-1]),
    "empty": _bytes(lambda b: b""),
    "zeros": _bytes(lambda b: bytes(len(b))),
    "zeros at its end": _bytes(lambda b: b[: len(b) // 2] + bytes(len(b) - len(b) // 2)),
    "garbage": _bytes(lambda b: bytes(i * 7919 % 251 for i in range(5000))),
    "a flipped bit": _flip_a_bit,
    "a web page": _bytes(lambda b: b"<!DOCTYPE html><html></html>"),
    "a bare pickle": _bytes(lambda b: pickle.dumps({"model_state": {}})),
    "a pickle that runs code": lambda path: torch.save({"model_state": RunsCode(path.with_name("ran"))}, path),
    "a bare pickle that runs code": _bare_code,
    "torch's old format": lambda path: torch.save({}, path, _use_new_zipfile_serialization=False),
    "a link to nothing": _replace_by_dangling_link,
    "a list": _content(lambda content: [1, 2]),
    "a tensor": _content(lambda content: torch.ones(2)),
    **{
        f"no {key}": _without(key)
        for key in (
            "model_state",
            "optimizer_state",
            "scaler_state",
            "ema_state",
            "ema_updates",
            "epoch",
            "step",
            "meters",
            "cfg",
            "best",
        )
    },
    "epoch is text": _set("epoch", "2"),
    "epoch below zero": _set("epoch", -1),
    "another epoch than its name says": _set("epoch", 7),
    "step is a fraction": _set("step", 0.5),
    "meters are a list": _set("meters", [1]),
    "meters of other names": _set("meters", {"lost": 1.0}),
    "best is NaN": _set("best", float("nan")),
    "best of other names": _set("best", {"score": 0.5, "top": 0.5}),
    "cfg is a number": _set("cfg", 3),
    "model_state is a list": _set("model_state", [torch.ones(2)]),
    "a weight is missing": _content(_remove_a_weight),
    "a weight too many": _content(lambda content: content["model_state"].update(extra=torch.ones(2))),
    "a weight of another shape": _weight("model_state", lambda t: t[:-1].clone()),
    "a weight of another type": _weight("model_state", lambda t: t.long()),
    "a weight is text": _weight("model_state", lambda t: "weight"),
    "a weight without numbers": _weight("model_state", lambda t: t.to("meta")),
    "a sparse weight": _weight("model_state", lambda t: t.to_sparse()),
    "a weight is NaN": _weight("model_state", _nan),
    "an averaged weight is NaN": _weight("ema_state", _nan),
    "an averaged weight of another shape": _weight("ema_state", lambda t: t[:, :-1].clone()),
    "optimizer_state is text": _set("optimizer_state", "adam"),
    "no moments": _moments(lambda state: state.clear()),
    "moments of one parameter are missing": _moments(_remove_moments),
    "one moment is missing": _moments(_remove_a_moment),
    "a moment of another shape": _moments(_reshape_a_moment),
    "a moment is NaN": _moments(_spoil_a_moment),
    "no groups": _without("optimizer_state", "param_groups"),
    "groups of another model": _content(_remove_from_group),
}
