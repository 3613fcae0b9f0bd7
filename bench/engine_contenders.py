"""Who is compared in encoding: plain and compiled torch, our kernels, ONNX Runtime, our engines."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from engine_models import DTYPES, Forward, Setting, Unavailable, fused, pictures, plain
from gpu_timing import launched_kernels
from torch import Tensor

from tigerfg.bundle import Bundle
from tigerfg.engines.base import OUTPUTS, Arrays
from tigerfg.engines.tensorrt import TensorRtRunner
from tigerfg.errors import MissingExtraError
from tigerfg.model import TigerFG

COMPILED = {"mode": "max-autotune", "dynamic": False}
TORCH_TENSORRT = {"backend": "tensorrt", "dynamic": False}  # torch-tensorrt-rtx has that name too
ENGINE_PRECISIONS = ("fp32", "fp16", "bf16", "fp8")


class Contender(Protocol):
    """One tower in one runtime.

    Attributes:
        runtime: its name and version.
        stream: handle of the CUDA stream that `resident` calls work on; None for torch's current.
    """

    runtime: str
    stream: int | None

    def resident(self, feeds: Arrays) -> Callable[[], object]:
        """Put the inputs on the device; the call encodes them there and returns at once."""
        ...

    def run(self, feeds: Arrays) -> Arrays:
        """Host arrays to host arrays."""
        ...

    def close(self) -> None: ...


class TorchContender:
    """A tower in PyTorch, its weights in a low dtype; pixels arrive as float32."""

    stream = None

    def __init__(self, forward: Forward, dtype: torch.dtype, device: str, tower: str) -> None:
        self.runtime = f"torch {torch.__version__}"
        self._forward, self._dtype = forward, dtype
        self._device, self._tower = device, tower

    def resident(self, feeds: Arrays) -> Callable[[], object]:
        tensors = self._upload(feeds)
        return lambda: self._encode(tensors)

    def run(self, feeds: Arrays) -> Arrays:
        outputs = self._encode(self._upload(feeds))
        return {
            name: value.float().cpu().numpy()
            for name, value in zip(OUTPUTS[self._tower], outputs, strict=True)
        }

    def close(self) -> None:
        self._forward = None

    def _encode(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return self._forward(tensors[0].to(self._dtype), *tensors[1:])

    def _upload(self, feeds: Arrays) -> list[Tensor]:
        tensors = map(torch.from_numpy, feeds.values())
        if self._device == "cpu":
            return list(tensors)
        return [tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors]


class OnnxCudaContender:
    """ONNX Runtime's CUDA provider on the whole tower's typed graph."""

    def __init__(self, bundle: Bundle, tower: str, precision: str) -> None:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
        if "CUDAExecutionProvider" not in providers:
            raise Unavailable(f"this onnxruntime has only {', '.join(providers)}")
        self.runtime = f"onnxruntime {onnxruntime.__version__} CUDA"
        self._stream = torch.cuda.Stream()
        self.stream = self._stream.cuda_stream
        options = {"device_id": 0, "user_compute_stream": str(self.stream)}
        graph = str(bundle.gpu.graph(tower, precision, "tower"))
        self._session = onnxruntime.InferenceSession(
            graph, providers=[("CUDAExecutionProvider", options)]
        )
        if "CUDAExecutionProvider" not in self._session.get_providers():
            raise RuntimeError("onnxruntime fell back to the CPU")
        self._asynchronous = onnxruntime.RunOptions()
        self._asynchronous.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._tower = tower

    def resident(self, feeds: Arrays) -> Callable[[], object]:
        binding = self._session.io_binding()
        taken = {entry.name for entry in self._session.get_inputs()}
        inputs = {name: torch.from_numpy(feeds[name]).cuda() for name in feeds if name in taken}
        expected = self.run(feeds)
        outputs = {name: torch.from_numpy(value).cuda() for name, value in expected.items()}
        for name, tensor in inputs.items():
            kind = feeds[name].dtype
            binding.bind_input(name, "cuda", 0, kind, tuple(tensor.shape), tensor.data_ptr())
        for name, tensor in outputs.items():
            shape = tuple(tensor.shape)
            binding.bind_output(name, "cuda", 0, np.float32, shape, tensor.data_ptr())
        torch.cuda.synchronize()

        def call() -> object:
            self._session.run_with_iobinding(binding, self._asynchronous)
            return inputs, outputs  # which must outlive the binding

        return call

    def run(self, feeds: Arrays) -> Arrays:
        names = OUTPUTS[self._tower]
        taken = {entry.name for entry in self._session.get_inputs()}
        values = self._session.run(
            list(names), {name: value for name, value in feeds.items() if name in taken}
        )
        return dict(zip(names, values, strict=True))

    def close(self) -> None:
        self._session = None


class EngineContender:
    """A TensorRT engine as it is served."""

    def __init__(self, bundle: Bundle, tower: str, precision: str, fused_tail: bool) -> None:
        self._runner = TensorRtRunner(bundle, tower, precision, fused_tail=fused_tail, workers=1)
        self.runtime = self._runner.version
        # What `run` works in, to be timed without its copies: there is but one slot.
        self._slot = self._runner._take()
        self._runner._slots.put(self._slot)
        self.stream = self._slot._stream.handle

    def resident(self, feeds: Arrays) -> Callable[[], object]:
        batch = len(feeds["pixels"])
        if batch > self._slot._largest:
            raise Unavailable(f"the engine takes {self._slot._largest} pictures at most")
        self._runner.run(feeds)  # leaves them on the device
        length = feeds["token_ids"].shape[1] if "token_ids" in feeds else 0

        def call() -> None:
            with self._slot._cuda.active():
                self._slot._infer(batch, length)

        return call

    def run(self, feeds: Arrays) -> Arrays:
        return self._runner.run(feeds)

    def close(self) -> None:
        self._runner.close()


@dataclass(frozen=True)
class Entry:
    """A contender of the list.

    Attributes:
        slow: made for one batch only, which takes a minute or so.
        open: makes it; raises Unavailable where it cannot be had.
    """

    name: str
    precision: str
    slow: bool
    open: Callable[[Setting], Contender]


def entries() -> list[Entry]:
    """All contenders."""
    found = [Entry("torch eager fp32", "fp32", False, _torch(plain, "fp32"))]
    for precision in ("fp16", "bf16"):
        found += [
            Entry(f"torch eager {precision}", precision, False, _torch(plain, precision)),
            Entry(f"torch + tigerfg kernels {precision}", precision, False, _kernels(precision)),
        ]
    found.append(Entry("onnxruntime cuda fp16", "fp16", False, _onnx("fp16")))
    for precision in ENGINE_PRECISIONS:
        for tail, cut in ((False, "whole tower"), (True, "fused tail")):
            name = f"tigerfg engine {precision}, {cut}"
            found.append(Entry(name, precision, False, _engine(precision, tail)))
    found.append(Entry("torch compile fp16", "fp16", True, _compiled("fp16")))
    found.append(Entry("torch-tensorrt fp16", "fp16", True, _torch_tensorrt("fp16")))
    return found


def _torch(towers: Callable[[TigerFG, str], Forward], precision: str) -> Any:
    def open_(setting: Setting) -> Contender:
        forward = towers(setting.low(precision), setting.tower)
        return TorchContender(forward, DTYPES[precision], setting.device, setting.tower)

    return open_


def _kernels(precision: str) -> Any:
    def open_(setting: Setting) -> Contender:
        contender = _torch(fused, precision)(setting)
        if setting.device == "cuda":
            with launched_kernels() as kernels:
                contender.run(pictures(setting.model.config, setting.tower, 1))
            if not kernels:
                raise RuntimeError("our kernels did not run, see the log")
        return contender

    return open_


def _compiled(precision: str) -> Any:
    def open_(setting: Setting) -> Contender:
        forward = torch.compile(plain(setting.low(precision), setting.tower), **COMPILED)
        contender = TorchContender(forward, DTYPES[precision], setting.device, setting.tower)
        contender.runtime += f" {COMPILED.get('mode', '')}".rstrip()
        return contender

    return open_


def _torch_tensorrt(precision: str) -> Any:
    def open_(setting: Setting) -> Contender:
        try:
            import torch_tensorrt
        except ImportError as error:
            raise Unavailable(f"torch_tensorrt cannot be imported: {error}") from error
        forward = torch.compile(plain(setting.low(precision), setting.tower), **TORCH_TENSORRT)
        contender = TorchContender(forward, DTYPES[precision], setting.device, setting.tower)
        names = importlib.metadata.packages_distributions()["torch_tensorrt"]
        contender.runtime = f"{names[0]} {torch_tensorrt.__version__}"
        return contender

    return open_


def _onnx(precision: str) -> Any:
    return lambda setting: OnnxCudaContender(setting.bundle(precision), setting.tower, precision)


def _engine(precision: str, fused_tail: bool) -> Any:
    def open_(setting: Setting) -> Contender:
        try:
            return EngineContender(setting.bundle(precision), setting.tower, precision, fused_tail)
        except MissingExtraError as error:
            raise Unavailable(str(error)) from error

    return open_
