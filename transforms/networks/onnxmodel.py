"""A network in ONNX: written with a few operators, kept beside its weights, run on one thread.

The invariant: the same weights and the same converter give the same answers on one machine. A network's identity is
that of the published weights it was made from (`infra.weights.Weights.identity`), not of its ONNX file, whose bytes
depend on the version of the library that wrote it.

>>> run = open_model("lwnet-vessels", to_onnx, VERSION)
>>> run(pixels)   # float32 (1, 3, 512, 512) -> float32 (1, 1, 512, 512)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.keys import key
from infra.storage import write_bytes
from infra.weights import locate, named, root

REQUIRES: Mapping[str, str] = {"onnxruntime": "medloom[experts]", "onnx": "medloom[experts]"}

OPSET = 17
IR = 8
"""Old enough for every onnxruntime that pyproject.toml allows."""

Values = npt.NDArray[np.float32]
Run = Callable[[Values], Values]


def open_model(name: str, convert: Callable[[Path], bytes], version: str) -> Run:
    """The network that `convert` makes of the folder of some weights; made once, then read from beside them.

    `version` is that of `convert`. Raises ConfigError where the weights are not here, or not those of weights.yaml.
    """
    folder = locate(name)
    path = root() / "onnx" / f"{name}-{key(named(name).identity, version)}.onnx"
    if path.is_file():
        return session(path.read_bytes())
    model = convert(folder)
    with suppress(OSError):  # a folder that cannot be written costs a conversion each time, nothing else
        write_bytes(path, model)
    return session(model)


def session(model: bytes) -> Run:
    """A network of one input and one output, on the CPU and on one thread, as more would move the last bits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.use_deterministic_compute = True
    opened = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (entrance,) = opened.get_inputs()

    def run(values: Values) -> Values:
        return np.asarray(opened.run(None, {entrance.name: values})[0], np.float32)

    return run


class Graph:
    """A graph in the making: each call adds an operator and gives the name of what comes out."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, operator: str, inputs: Sequence[str | npt.NDArray[Any]], **attributes: Any) -> str:
        """An operator of ONNX; an array among its inputs becomes a constant."""
        from onnx import helper, numpy_helper

        names = []
        for value in inputs:
            if not isinstance(value, str):
                array = np.ascontiguousarray(value)
                self._constants.append(numpy_helper.from_array(array, f"c{len(self._constants)}"))
                value = self._constants[-1].name
            names.append(value)
        out = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, names, [out], **attributes))
        return out

    def model(self, entrance: Sequence[int | str], out: str, exit: Sequence[int | str]) -> bytes:
        """The model from "input" to the value `out`, both float32 and of these shapes; a word is a free dimension."""
        from onnx import TensorProto, checker, helper

        graph = helper.make_graph(
            self._nodes, "network",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(entrance))],
            [helper.make_tensor_value_info(out, TensorProto.FLOAT, list(exit))],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        checker.check_model(model)
        return bytes(model.SerializeToString(deterministic=True))
