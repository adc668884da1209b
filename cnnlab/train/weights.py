"""Initial weights from a file or a finished run."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.config.options import UserError
from cnnlab.runs.directory import CheckpointError
from cnnlab.runs.log import log
from cnnlab.train.checkpoint import UNREADABLE, CheckpointFiles

KEYS = ("state_dict", "model", "model_state_dict")  # of the weights in files with other content
PREFIXES = ("network.", "module.", "_orig_mod.")  # of a module here, DistributedDataParallel, torch.compile


def load_weights(network: nn.Module, path: Path) -> frozenset[str]:
    """Load weights from a file (.pt, .pth, .ckpt, .safetensors), or from the best epoch of a run.

    Weights that match by name and shape are loaded. Others, such as a last layer for other classes, keep their
    initialization, which is logged. Returns the names of those that were loaded.

    Raises: UserError if the file cannot be read, or nothing in it matches.
    """
    found, own = read(path), network.state_dict()
    found = below(place_of(network, found), found) or found
    try:
        network.load_state_dict(found)
        new: list[str] = []
    except RuntimeError:  # not all of it
        fitting = {name: values for name, values in found.items() if name in own and values.shape == own[name].shape}
        if not any(name in fitting for name, _ in network.named_parameters()):
            raise UserError(
                f"weights={path} contains nothing that fits {type(network).__name__}: it has {some(found)}, and the "
                f"network has {some(own)}. Use the network that they belong to."
            ) from None
        network.load_state_dict(fitting, strict=False)
        new = [name for name in own if name not in fitting]
    used = len(own) - len(new)
    log.info(f"{used} of {len(own)} tensors loaded from {path}" + (f"; new: {some(new, 6)}" if new else ""))
    return frozenset(own.keys() - set(new))


def place_of(network: nn.Module, names: Collection[str]) -> str:
    """Where a module keeps a network, as the beginning of the names of its tensors: "network.", or another place if it
    is the only one that has all tensors of the network.
    """
    own = list(network.state_dict())
    places = {name.removesuffix(own[0]) for name in names if name.endswith(own[0])} if own else set()
    whole = [place for place in places if place[-1:] in ("", ".") and all(f"{place}{name}" in names for name in own)]
    return whole[0] if len(whole) == 1 else "network."


def below(place: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors whose names begin with a place, by the rest of their names."""
    return {name.removeprefix(place): values for name, values in tensors.items() if name.startswith(place)}


def some(names: Any, num: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:num]) + (f" and {len(listed) - num} more" if len(listed) > num else "") or "nothing"


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file or a run, by their names in the network. Raises: UserError."""
    try:
        if path.is_dir():
            content = CheckpointFiles().load_checkpoint(path / "checkpoints" / "best.ckpt")
        elif path.suffix == ".safetensors":
            content = _read_safetensors(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise UserError(f"weights={path} needs the package safetensors. Use pip install safetensors.") from error
    except (*UNREADABLE, CheckpointError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        if "weights_only" in reason:  # torch advises to switch it off, which executes what is in the file
            reason = "it is not one of torch's, or contains more than tensors"
        raise UserError(f"weights={path} cannot be read ({reason}). Use a file that torch.save wrote.") from error
    for key in KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {str(n): v for n, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    for prefix in PREFIXES:
        named = below(prefix, tensors)
        if len(named) == len(tensors) or (named and prefix == "network."):  # a module also has other tensors
            tensors = named
    if not tensors:
        raise UserError(f"weights={path} contains no named tensors. Use a state_dict that torch.save wrote.")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:  # which is no ValueError
        raise ValueError(str(error)) from error
