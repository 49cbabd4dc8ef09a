"""`uad export`: a fitted detector as one ONNX file, which runs without this package and without PyTorch.

The file holds everything between an image and its score: backbone, method, fusion, smoothing, image score. What is
needed beside it, such as the threshold and how an image is brought to size, is in its metadata.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from uad_core import methods
from uad_core.errors import UserError
from uad_core.files import replacing
from uad_core.graph import as_graph, chooses
from uad_core.methods.base import Detector
from uad_core.prediction import image_files, images_of, model_folder, readable
from uad_core.sources import code_version

__all__ = ["PRECISIONS", "Exported", "export", "session"]

TOLERANCE = 1e-4  # of an anomaly map, relative to its largest value
MOVED = 0.1  # of a score: beyond it, the threshold does not hold for the file
BATCHES = (1, 2, 5)  # images at a time with which a file is checked
OPSET = 17
CALIBRATED_BY = 64  # images, at most, that set the ranges of int8
PREPROCESSING = (
    "decode; apply the EXIF orientation; convert to RGB with 8 bits (16 bits divided by 257, alpha on black); resize "
    "to image_size (height, width) with Pillow's BILINEAR filter, without keeping the aspect ratio; divide by 255; "
    "order as (N, 3, H, W), float32"
)
PRECISIONS = {"single": "", "half": ".half", "int8": ".int8"}
"""Precision -> what the name of its file bears before `.onnx`."""


@dataclass(frozen=True)
class Exported:
    """An exported file: its precision, its size in bytes, and how far it is from PyTorch.

    map_error, score_error: the largest difference of a map, relative to the map's largest value, and of a score,
    relative to the score. verdict: whether the file has a threshold; it has none where its scores differ by more than
    `MOVED` from those that the threshold was placed for.
    """

    file: Path
    precision: str
    size: int
    map_error: float
    score_error: float
    verdict: bool


def export(
    model: Path, out: Path | None = None, precision: str = "single", images: list[Path] | None = None
) -> Exported:
    """Write a fitted detector as one ONNX file, and compare it with PyTorch by onnxruntime.

    model: the folder of a run, or of a saved model. out: the file; else `model.onnx` in that folder. precision:
    "single", "half" or "int8". images: files, or folders of them, on which the file is compared; int8 needs normal ones
    to measure the ranges of its numbers, the others take drawn ones without.

    The file has the input `images` (N, 3, H, W), float32 in [0, 1], and the outputs `maps` (N, h, w), `scores` (N,) and
    the residual maps (N, h_k, w_k) under the method's names for them, float32; who asks for the first two alone does
    not wait for more. It appears whole or not at all.

    Raises UserError where a package is missing, the method cannot be exported, maps in single precision differ from
    PyTorch's by more than `TOLERANCE` (in the median image for SGFR, whose pursuit may choose another of two atoms that
    are equally good up to rounding), or int8 is asked for without images.
    """
    _require_packages()
    if precision == "int8" and not images:
        raise UserError("int8 needs normal images to measure the ranges of its numbers: add --images FOLDER")
    detector = methods.load(model_folder(model), "cpu")
    out = Path(out) if out else Path(model) / f"model{PRECISIONS[precision]}.onnx"
    batch = _drawn(detector.image_size) if not images else _read(images, detector.image_size)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as part:
            _write(detector, part, precision, batch)
            map_errors, score_errors = _compared(detector, part, batch)
            if precision == "single":
                _require_agreement(detector, map_errors)
            about = {**_about(detector, model), "precision": precision}
            if not score_errors.max() <= MOVED:
                about["threshold"] = None  # it was placed for other scores
            _describe(part, about)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror or error}): choose another --out") from None
    errors = map_errors.max().item(), score_errors.max().item()
    return Exported(out, precision, out.stat().st_size, *errors, verdict=about["threshold"] is not None)


def session(file: Path, threads: int = 0):
    """Return onnxruntime's session of an exported file, on the processor; threads: 0 leaves the choice to it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _require_packages() -> None:
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"uad export needs {' and '.join(missing)}: install with `pip install 'uad-core[export]'`")


# --- writing -------------------------------------------------------------------------------------------------------


def _write(detector: Detector, file: Path, precision: str, batch: np.ndarray) -> None:
    """Write the file in a precision; batch: images (N, 3, H, W), which set the ranges of int8."""
    if precision == "single":
        return _write_single(detector, file)
    with TemporaryDirectory() as folder:
        single = Path(folder) / "single.onnx"
        _write_single(detector, single)
        _halve(single, file) if precision == "half" else _quantise(single, file, batch)


def _write_single(detector: Detector, file: Path) -> None:
    """Trace the detector on two images, so that no axis of length one is taken for a constant."""
    example = torch.from_numpy(_drawn(detector.image_size)[:2])
    names = ["images", "maps", "scores", *_residual_names(detector)]
    try:
        graph = as_graph(detector)
        with torch.no_grad(), _silence():
            torch.onnx.export(
                graph, (example,), str(file), input_names=names[:1], output_names=names[1:], opset_version=OPSET,
                dynamic_axes={name: {0: "N"} for name in names}, dynamo=False,
            )  # fmt: skip
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{detector.name} cannot be exported: {reason}") from error
    with torch.no_grad():
        _declare_shapes(file, dict(zip(names[1:], graph(example))))


def _residual_names(detector: Detector) -> list[str]:
    """Name the residual maps of a detector, finest first."""
    return list(detector.residuals(torch.zeros(1, 3, *detector.image_size)))


def _declare_shapes(file: Path, outputs: dict[str, torch.Tensor]) -> None:
    """State the outputs' true shapes: the trace guesses some, and gives one name to lengths that differ."""
    import onnx

    model = onnx.load(file)
    del model.graph.value_info[:]
    for output in model.graph.output:
        shape = ["N", *outputs[output.name].shape[1:]]
        output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, shape))
    onnx.save(model, file)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep two libraries from saying more than one line: warnings, log, and what PyTorch prints past Python.

    What its trace takes for constant is constant, since only the number of images varies; where it fails, it prints
    its whole graph, and the exception says why.
    """
    level = logging.root.manager.disable
    sys.stdout.flush()
    stdout = os.dup(1)
    with warnings.catch_warnings(), open(os.devnull, "wb") as nothing:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        os.dup2(nothing.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
            logging.disable(level)


def _halve(single: Path, file: Path) -> None:
    """Write the numbers of a file in half precision; input and outputs stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(single), keep_io_types=True), file)


def _quantise(single: Path, file: Path, batch: np.ndarray) -> None:
    """Write the convolutions of a file in 8 bits; ranges are those of a batch of images (N, 3, H, W)."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Images(CalibrationDataReader):
        left = iter(batch[:CALIBRATED_BY])

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"images": image[None]}

    options = dict(per_channel=True, weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8)
    left_out = _smoothing(onnx.load(single))
    with _silence():
        quantize_static(single, file, Images(), op_types_to_quantize=["Conv"], nodes_to_exclude=left_out, **options)


def _smoothing(model) -> list[str]:
    """Name the convolutions with one channel, which smooth the anomaly map: its range is wider than 8 bits."""
    channels = {weight.name: weight.dims[0] for weight in model.graph.initializer if weight.dims}
    return [node.name for node in model.graph.node if node.op_type == "Conv" and channels.get(node.input[1], 1) == 1]


def _about(detector: Detector, model: Path) -> dict[str, Any]:
    """What a program needs beside the file, and where the detector comes from."""
    backbone = getattr(detector, "backbone", None)
    there = bool(detector.threshold.isfinite())
    return {
        "method": detector.name,
        "names": {
            "input": "images", "maps": "maps", "scores": "scores", "residuals": _residual_names(detector),
        },
        "image_size": detector.image_size,
        "map_size": detector.map_size,
        "map_stride": detector.config.map_stride,
        "preprocessing": PREPROCESSING,
        "threshold": detector.threshold.item() if there else None,
        "false_alarm_rate": detector.config.false_alarms if there else None,
        "held_out": len(detector.normal_scores),
        "backbone": backbone.name if backbone else None,
        "weights_sha256": backbone.weights_sha256 if backbone else None,
        "fitted_on": _fitted_on(model),
        "code_version": code_version(type(detector).__module__),
    }


def _fitted_on(model: Path) -> dict[str, Any] | None:
    """Name the data of the run that a model comes from, or None where the folder holds a model alone."""
    result = model / "result.json"
    if not result.is_file():
        return None
    about = json.loads(result.read_text(encoding="utf-8"))
    return {key: about[key] for key in ("dataset", "category", "n_train", "profile", "seed")}


def _describe(file: Path, about: dict[str, Any]) -> None:
    """Put metadata into a file: a text as it is, everything else as JSON."""
    import onnx

    model = onnx.load(file)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, file)


# --- comparing -----------------------------------------------------------------------------------------------------


def _compared(detector: Detector, file: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the relative differences of maps and scores from PyTorch's, image by image, over several batch sizes."""
    run = session(file, torch.get_num_threads()).run
    map_errors, score_errors = [], []
    for size in BATCHES:
        batch = images[:size]
        found = run(["maps", "scores"], {"images": batch})
        with torch.no_grad():
            maps = detector.anomaly_map(torch.from_numpy(batch))
        map_errors.append(_relative(found[0], maps.numpy()))
        score_errors.append(_relative(found[1], detector.score_maps(maps).numpy()))
    return np.concatenate(map_errors), np.concatenate(score_errors)


def _relative(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The largest difference of each entry of a batch, relative to the entry's largest value."""
    found, wanted = (values.reshape(len(wanted), -1) for values in (found, wanted))
    return np.abs(found - wanted).max(1) / np.abs(wanted).max(1)


def _require_agreement(detector: Detector, errors: np.ndarray) -> None:
    """Raise UserError where maps differ too much; of a method that chooses, those of the median image must agree."""
    error = np.median(errors) if chooses(detector) else errors.max()
    if not error <= TOLERANCE:
        raise UserError(
            f"{detector.name}: the exported maps differ from PyTorch's by {error:.1e} of their largest value, more "
            f"than {TOLERANCE:g}, with torch {torch.__version__}: nothing was written; try other versions of torch "
            "and onnxruntime"
        )


def _drawn(size: tuple[int, int]) -> np.ndarray:
    """Draw images (5, 3, H, W) in [0, 1] that are smooth with some noise, always the same."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(max(BATCHES), 3, 8, 8, generator=random)
    smooth = F.interpolate(coarse, size, mode="bicubic") + 0.05 * torch.randn(1, 3, *size, generator=random)
    return smooth.clamp(0, 1).numpy()


def _read(paths: list[Path], size: tuple[int, int]) -> np.ndarray:
    """Read images (N, 3, H, W) in [0, 1] at a size: enough to compare with, and at most those that calibrate."""
    files, _ = readable(list(image_files(paths))[:CALIBRATED_BY])
    if not files:
        raise UserError(f"none of the images in {paths[0]} can be read: name another folder with --images")
    repeated = [*files, *files[: max(0, max(BATCHES) - len(files))]]
    return images_of(repeated, size).images().numpy()
