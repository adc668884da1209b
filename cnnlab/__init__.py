"""A research template for training small convolutional networks on small images.

    import cnnlab

    run = cnnlab.train("data=shapes optim=adam trainer.max_epochs=2")
    labels = cnnlab.load(run).labels(images)
    cnnlab.runs()
    cnnlab.report()

See docs/python.md. Nothing is imported before it is used: `import cnnlab` imports neither Hydra nor torch.
"""

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnlab.config.options import UserError as UserError
    from cnnlab.python import RunFailedError as RunFailedError
    from cnnlab.python import compose as compose
    from cnnlab.python import load as load
    from cnnlab.python import report as report
    from cnnlab.python import runs as runs
    from cnnlab.python import train as train

if sys.platform == "win32":  # no fcntl, no POSIX signals
    sys.exit("cnnlab runs on Linux, macOS and WSL, not on native Windows. Use it in WSL (wsl --install).")

# How long a thread of GNU OpenMP waits for others without giving its core away; its own default is 300,000, which makes
# training beside another process several times slower (docs/speed.md). torch reads it when it is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
__all__ = ["RunFailedError", "UserError", "compose", "load", "report", "runs", "train"]


class _CallablePackage(ModuleType):
    """A folder of modules that is also a function: cnnlab.train.run is a module, and cnnlab.train(...) trains."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return getattr(import_module("cnnlab.python"), self.__name__.rpartition(".")[2])(*arguments, **named)


for _name in ("report", "runs", "train"):
    import_module(f"cnnlab.{_name}").__class__ = _CallablePackage


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("cnnlab.python"), name)
    raise AttributeError(f"module 'cnnlab' has no attribute {name!r}")
