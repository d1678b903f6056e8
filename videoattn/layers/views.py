"""Views of a model for another token grid, which share its parameters."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from torch import nn

from videoattn.grid import TokenGrid
from videoattn.kernels.transforms import without_compiling

# Modules that hold others and do nothing else.
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
Pairs = dict[nn.Module, nn.Module]


class GridModule(nn.Module):
    """A module that depends on the token grid of its clips."""

    def place_on(self, grid: TokenGrid) -> None:
        """Change a copy of the module, whose children are on `grid` already, to that grid.

        Raises ValueError for a module that belongs to one grid.
        """
        raise ValueError(f"{type(self).__name__} belongs to the clips that it was built for")


def view_on(module: nn.Module, grid: TokenGrid, pairs: Pairs | None = None) -> nn.Module:
    """Return a module on another grid: itself if nothing in it depends on the grid, else a copy of what does.

    Parameters, hooks, and all modules that do not depend on the grid are shared. `pairs` collects copies by the module
    that each is a view of. Raises ValueError where something can't be moved to the grid.
    """
    pairs = {} if pairs is None else pairs
    if module in pairs:
        return pairs[module]
    children = {name: child if child is None else view_on(child, grid, pairs) for name, child in _children(module)}
    if isinstance(module, GridModule) or any(children[name] is not child for name, child in _children(module)):
        if not isinstance(module, (GridModule, *CONTAINERS)):
            raise ValueError(f"{type(module).__name__} holds modules that belong to the clips they were built for")
        view = _copy(module, children)
        if isinstance(view, GridModule):
            view.place_on(grid)
        for name, child in _children(module):
            made = view._modules[name]
            if child is not None and made is not None and made is not child and child not in pairs:
                vars(made).update({key: value for key, value in vars(child).items() if "hook" in key})
                pairs[child] = made  # built anew by place_on
        pairs[module] = view
        return view
    return module


def _children(module: nn.Module) -> list[tuple[str, nn.Module | None]]:
    return list(module._modules.items())


def _copy(module: nn.Module, children: dict[str, nn.Module | None]) -> nn.Module:
    copy = type(module).__new__(type(module))
    vars(copy).update(vars(module) | {"_modules": children, "_buffers": dict(module._buffers)})
    vars(copy).pop("_compiled_call_impl", None)  # by Module.compile, of the original
    return copy


class ViewCache:
    """The last few views of one module, by key; copies and pickles of the module start without them.

    A view is made again where modules of the original were exchanged, and follows the original's mode of training.
    """

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self._kept: OrderedDict[Hashable, tuple[Pairs, dict[nn.Module, dict[str, Any]]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        self._kept.clear()

    def get(self, module: nn.Module, key: Hashable, make: Callable[[Pairs], object]) -> nn.Module:
        """Return the view of `module` for `key`; `make` fills the pairs of one that is not kept."""
        return without_compiling(self._find)(module, key, make)

    def _find(self, module: nn.Module, key: Hashable, make: Callable[[Pairs], object]) -> nn.Module:
        kept = self._kept.get(key)
        if kept is None or module not in kept[0] or any(m._modules != held for m, held in kept[1].items()):
            pairs: Pairs = {}
            make(pairs)
            kept = (pairs, {original: dict(original._modules) for original in pairs})
        for original, view in kept[0].items():
            if view.training != original.training:
                view.training = original.training
        self._kept[key] = kept
        self._kept.move_to_end(key)
        if len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return kept[0][module]

    def __deepcopy__(self, memo: object) -> "ViewCache":
        return ViewCache(self.most)

    def __reduce__(self) -> tuple[type["ViewCache"], tuple[int]]:
        return ViewCache, (self.most,)
