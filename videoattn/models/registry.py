"""The models by name. A new model is its folder, and its named sizes here."""

import difflib
from collections.abc import Iterable

from torch import nn

from videoattn.models.baselines import BASELINE_SPECS
from videoattn.models.hub import PREFIX
from videoattn.models.mvit.spec import MVIT_SPECS
from videoattn.models.spec import ModelSpec
from videoattn.models.timesformer.spec import TIMESFORMER_SPECS
from videoattn.models.transformers_baseline import ADAPTER as TRANSFORMERS_ADAPTER
from videoattn.models.transformers_baseline import TransformersClassifier, transformers_spec
from videoattn.models.video_vit.spec import VIDEO_VIT_SPECS
from videoattn.models.weights.adapter import WeightAdapter
from videoattn.models.weights.files import OURS, CheckpointError, Family, some_names

MODELS: dict[str, ModelSpec] = {**TIMESFORMER_SPECS, **MVIT_SPECS, **VIDEO_VIT_SPECS, **BASELINE_SPECS}


def find_spec(name: str) -> ModelSpec:
    """Return the spec of a model. Raises ValueError with the names that there are, and the nearest one."""
    if name.startswith(PREFIX):
        return transformers_spec(name)
    if name not in MODELS:
        ends = [other for other in MODELS if other.rpartition("/")[2] == name]
        near = difflib.get_close_matches(name, MODELS, n=1) or ends
        hint = f"; did you mean {near[0]}?" if near else ""
        named = f"{', '.join(MODELS)}, or {PREFIX} and a folder or a repository of the hub"
        raise ValueError(f"MODEL.MODEL_NAME expects one of {named}, got {name!r}{hint}")
    return MODELS[name]


def is_model_name(name: object) -> bool:
    """Return whether a name is in MODELS, or that of one of transformers' models, wherever it may be."""
    return isinstance(name, str) and (name in MODELS or name.startswith(PREFIX))


def list_model_types() -> list[ModelSpec]:
    """Return one spec for each type of model, that is for each adapter."""
    return list({id(spec.adapter): spec for spec in reversed(MODELS.values())}.values())[::-1]


def list_families() -> list[Family]:
    """Return the families of names in which weights can be written: ours, then those of the adapters."""
    return [OURS, *dict.fromkeys(family for spec in list_model_types() for family in spec.adapter.families)]


def adapter_of(model: nn.Module) -> WeightAdapter:
    """Return the adapter of a model by its class. Raises ValueError for a class that no spec names."""
    if isinstance(model, TransformersClassifier):
        return TRANSFORMERS_ADAPTER
    for spec in MODELS.values():
        if isinstance(model, spec.model):
            return spec.adapter
    raise ValueError(f"weights are loaded into models of this package, got {type(model).__name__}")


def find_model_type(names: Iterable[str]) -> tuple[ModelSpec, Family] | None:
    """Return a spec of the type of model that has tensors of such names, and their family; None if no adapter knows."""
    names = list(names)
    for spec in list_model_types():
        if (family := spec.adapter.find_family(names)) is not None:
            return spec, family
    return None


def find_family(names: Iterable[str]) -> Family:
    """Return the family that the names of tensors belong to. Raises CheckpointError with some of them if none fits."""
    names = list(names)
    found = find_model_type(names)
    if found is None:
        raise unknown_names(names)
    return found[1]


def unknown_names(names: Iterable[str]) -> CheckpointError:
    """Return the error that says which files are understood, and some of the names that are in the file instead."""
    adapters = [spec.adapter for spec in list_model_types() if spec.adapter.families]
    expected = [f"{adapter.held} ({', '.join((OURS, *adapter.families))})" for adapter in adapters]
    return CheckpointError(f"expected {' or '.join(expected)}, got {some_names(list(names))}")
