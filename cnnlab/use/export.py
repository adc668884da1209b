"""Exporting a trained run to one file for other programs: ONNX or torch.export. Pixels in, logits out."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnlab.config.options import UserError
from cnnlab.runs.files import atomic_path
from cnnlab.use.trained import Trained

TOLERANCE = 1e-3  # between logits; float32 sums depend on their order
INPUT = (
    "uint8 pixels, (batch, {0}, {1}, {2}): {3}. Images of another size are resized to {1} x {2} (height x width) by "
    "Pillow's bicubic filter, antialiased, without keeping their proportions. Cropping and normalization are inside."
)

CHANNELS = {1: "gray", 3: "RGB", 4: "RGBA"}
OUTPUT = {
    "multiclass": "logits, float32, (batch, classes); their softmax is a probability",
    "multilabel": "logits, float32, (batch, labels); the sigmoid of each is a probability",
    "regression": "float32, (batch, numbers)",
}


def export(model: Trained, path: Path, form: str, about: dict[str, Any], pixels: Tensor) -> float:
    """Write the model to a file, read it again, and compare its logits with the model's.

    model: in float32, on the CPU. path: where the verified file appears, by rename. form: "onnx" or "torch".
    about: further metadata for the file. pixels: (N, C, H, W) uint8, to compare on.
    Returns the largest difference between logits.

    Raises: UserError if the file does not reproduce the model, ONNX has no such operation, or a package is missing.
    """
    stored = model.stored
    channels = CHANNELS.get(stored.channels, f"{stored.channels} channels")
    metadata = {
        "classes": json.dumps(list(model.classes)),
        "input": INPUT.format(stored.channels, *stored.size, channels),
        "output": OUTPUT[stored.task],
        **{name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()},
    }
    expected = model.logits(pixels)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (pixels[:2],), dynamic_shapes=({0: batch},))
    with atomic_path(path) as partial:
        if form == "onnx":
            logits = _write_onnx(program, partial, metadata, pixels)
        else:
            with open(partial, "wb") as file:
                torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata, indent=1)})
            with open(partial, "rb") as file:
                loaded = torch.export.load(file).module()
            logits = torch.cat([loaded(some) for some in pixels.split(100)]).detach()
        difference = float((logits - expected).abs().max())
        if not difference <= TOLERANCE:
            raise UserError(
                f"The logits of the exported file differ by up to {difference:.2g} from the run's, and {TOLERANCE:.0e} "
                f"is allowed. The file was not kept."
            )
    return difference


def _write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, str], pixels: Tensor) -> Tensor:
    """Write the file, and return onnxruntime's logits for the pixels: (N, K)."""
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]:
        raise UserError(f"--format onnx needs {' and '.join(missing)}. Use pip install {' '.join(missing)}.")
    import onnx
    import onnxruntime

    try:
        written = torch.onnx.export(
            program, input_names=["pixels"], output_names=["logits"], dynamo=True, verbose=False
        )
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__:  # the exporter's own text is a page on how to report it
            cause = cause.__cause__
        reason = str(cause).partition(". ")[0]
        raise UserError(
            f"torch {torch.__version__} cannot write this network as ONNX ({reason}). Use --format torch, or a "
            "newer torch."
        ) from error
    assert written is not None
    proto = written.model_proto
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    parts = [session.run(["logits"], {"pixels": some.numpy()})[0] for some in pixels.split(100)]
    return torch.from_numpy(np.concatenate(parts))
