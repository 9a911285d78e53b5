"""ONNX Runtime's CPU kernels of layer norm and RMS norm: a program of one node, in inference.

Inputs lie where torch has them; outputs are the runtime's own, from its arena, as torch's are from torch's allocator.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from .contender import Absent, Results, named
from .op import Op
from .problem import Problem

EPS = {"layer_norm_inference": 1e-5, "rms_norm_inference": torch.finfo(torch.float32).eps}
_NODES = {"layer_norm_inference": "LayerNormalization", "rms_norm_inference": "RMSNormalization"}
_OPSET = 23  # the first with RMSNormalization


class OnnxRuntime:
    """x: (*, D)."""

    def __init__(self, op: Op, problem: Problem) -> None:
        if op.name not in _NODES:
            raise Absent("ONNX Runtime is compared in inference, on layer norm and RMS norm")
        if problem.case.dtype != "float32":
            raise Absent("ONNX Runtime's CPU norms are compared in float32")
        if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")):
            raise Absent("onnx and onnxruntime are not installed")
        self._runtime = importlib.import_module("onnxruntime")
        self.plain, self.session = problem.sets[0], self._session(op, problem)
        self.bound = [self._binding(inputs.x) for inputs in problem.sets]

    def forward(self, index: int) -> Any:
        binding = self.bound[index % len(self.bound)]
        self.session.run_with_iobinding(binding)
        return binding

    def backward(self, outcome: Any, index: int) -> Any:
        raise NotImplementedError("ONNX Runtime's norms have no backward")

    def results(self, outcome: Any, gradients: Any) -> Results:
        return named(torch.from_numpy(outcome.copy_outputs_to_cpu()[0]), None, self.plain)

    def _session(self, op: Op, problem: Problem) -> Any:
        onnx = importlib.import_module("onnx")
        shape, helper = list(problem.case.shape), onnx.helper
        vectors = {"weight": problem.weight} | ({"bias": problem.bias} if "layer" in op.name else {})
        kept = [onnx.numpy_helper.from_array(vector.numpy(), name) for name, vector in vectors.items()]
        node = helper.make_node(_NODES[op.name], ["x", *vectors], ["y"], axis=-1, epsilon=EPS[op.name])
        x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y"))
        graph = helper.make_graph([node], "norm", [x], [y], kept)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = problem.case.threads, 3
        return self._runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def _binding(self, x: Tensor) -> Any:
        binding, value = self.session.io_binding(), self._runtime.OrtValue
        binding.bind_ortvalue_input("x", value.ortvalue_from_numpy(x.detach().numpy()))  # which it does not copy
        binding.bind_output("y", "cpu")
        return binding
