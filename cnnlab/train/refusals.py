"""What torch, Lightning and classes of any origin refuse, as UserErrors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cnnlab.config.objects import mentioned
from cnnlab.config.options import UserError

# What torch and classes of any origin raise if parts do not fit together.
MISFITS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)

NOT_DETERMINISTIC = "does not have a deterministic implementation"  # torch's words
NO_MEMORY = "can't allocate memory"


@contextmanager
def misfits_as_user_errors(problem: str, node: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turn what a class raises for its arguments, `node`, in a block into a UserError that begins with `problem`."""
    try:
        yield
    except MISFITS as error:
        if isinstance(error, UserError | torch.AcceleratorError | torch.OutOfMemoryError):
            raise
        if NOT_DETERMINISTIC in str(error) or NO_MEMORY in str(error):
            raise
        raise UserError(f"{problem}{mentioned(node or {}, error)}: {' '.join(str(error).split())[:600]}.") from error


@contextmanager
def explained(trainer: Trainer) -> Iterator[None]:
    """In a block, turn Lightning's refusals, and torch's of what deterministic=true forbids, into UserErrors."""
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except RuntimeError as error:
        if NOT_DETERMINISTIC not in str(error):
            raise
        raise UserError(
            f"deterministic=true, and {str(error).split(' does not')[0]} has no deterministic implementation on "
            f"{trainer.strategy.root_device.type}. Use deterministic=false, or another layer."
        ) from error
