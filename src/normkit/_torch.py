"""Every private or recent API of PyTorch that the package uses, under a name of its own.

The one file to read when a release of PyTorch moves something below its documented surface. Each entry says since when
PyTorch has it, what it is for, and what is done without it. What ordinary calls ask is bound here once, at import: the
name is PyTorch's own C function, so no frame is added.

Not here: `PROTOCOL`, what every subclass of nn.Module fills in or overrides, the same since PyTorch 1.11 and earlier.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from importlib import import_module
from types import FrameType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, graph
from torch.utils import _python_dispatch, _pytree  # modules of 1.11 and newer: what is in them is asked for below

OLDEST = (2, 4)  # the first with torch.library.custom_op; nn.RMSNorm is of the same release
PROTOCOL = frozenset(
    "_parameters _buffers _modules _apply _load_from_state_dict _check_input_dim _get_no_batch_dim".split()  # noqa: SIM905  # as words it stays readable
)

if torch.__version__ < OLDEST:  # type: ignore[operator]  # TorchVersion compares with tuples, its stub does not say
    raise ImportError(
        f"normkit needs torch {'.'.join(map(str, OLDEST))} or newer, found {torch.__version__}: pip install -U torch"
    )

# What a trace or a recorder misses; since 1.13.
TorchDispatchMode = _python_dispatch.TorchDispatchMode

# --- What surrounds a call. All since 2.1 or earlier, and asked before every eager call.
# The innermost torch.func transform, or None: under one, tensors are wrappers without memory.
peek_transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
# How many torch-dispatch modes are active: fake tensors have no memory.
count_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
# A block outside of all of them: what is real memory stays so.
without_dispatch_modes: Callable[[], AbstractContextManager[Any]] = _python_dispatch._disable_current_modes
# Not None while torch.jit traces.
tracing_state: Callable[[], Any] = torch._C._get_tracing_state
# The forward-mode level, -1 outside. PyTorch keeps it in a global of its module and has no function that tells.
forward_level: Callable[[], int] = partial(vars(forward_ad).__getitem__, "_current_level")
# The id of the backward that this thread is in, or -1: an activation checkpoint recomputes inside of one.
graph_task_id: Callable[[], int] = torch._C._current_graph_task_id


Asked = TypeVar("Asked", bound=Callable[..., Any])


def asked_while_traced(function: Asked) -> Asked:
    """torch.compiler.assume_constant_result: Dynamo calls the function while it traces, and takes the answer as a
    constant. PyTorch's own imports all of Dynamo, which `import normkit` must not."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@asked_while_traced
def are_transforms_active() -> bool:
    """Whether a transform is active. Dynamo asks it while it traces: that of 2.4 cannot see into PyTorch's function."""
    return torch._C._are_functorch_transforms_active()


@asked_while_traced
def _export_traces() -> bool:
    """Whether the Dynamo that traces the caller does so for torch.export: it is further up this very stack."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        translator = frame.f_locals.get("self")
        if type(translator).__name__ == "InstructionTranslator":
            return bool(translator.export)  # type: ignore[union-attr]  # Dynamo's, by its name
        frame = frame.f_back
    return False


_FLAG = "_is_exporting_flag" if hasattr(torch.compiler, "_is_exporting_flag") else "_is_compiling_flag"


def _is_exporting() -> bool:
    """Without Dynamo (strict=False) torch.export sets a flag."""
    return getattr(torch.compiler, _FLAG) or (torch.compiler.is_dynamo_compiling() and _export_traces())


# Whether torch.export captures, the program then being run without normkit. Public in 2.8, not in 2.6; but in 2.8 and
# 2.10 Dynamo takes it for true in every torch.compile too, so that compiled norms would be exported ones.
is_exporting: Callable[[], bool] = (
    torch.compiler.is_exporting if torch.__version__ >= (2, 12) else _is_exporting  # type: ignore[operator]
)


@asked_while_traced
def autocast_knows(operation: str, device: str) -> bool:
    """Whether torch.autocast has a rule for an operation on a kind of device: whether it has a kernel there (1.10).

    Of RMS norm since 2.11 or 2.12; of batch norm on mps alone, which autocast serves since 2.5 or 2.6.
    """
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{operation}", f"Autocast{device.upper()}")
    except RuntimeError:  # this torch has no autocast there
        return False


# --- torch.func.functionalize (since 2.0), for which torch has no rule of autograd functions.
FUNCTIONALIZE = torch._C._functorch.TransformType.Functionalize
transform_stack: Callable[[], Any] = torch._C._functorch.get_interpreter_stack


def innermost_transform() -> Any:
    """The innermost transform, as the object that can be lowered."""
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    return retrieve_current_functorch_interpreter()


def is_functional(value: Any) -> bool:
    """Whether it is a tensor that a functionalization wraps."""
    return isinstance(value, Tensor) and torch._is_functional_tensor(value)


def unwrapped_functional(tensor: Tensor) -> Tensor:
    """What such a tensor wraps, with the writes that were put off."""
    torch._sync(tensor)  # type: ignore[attr-defined]  # not in torch's stub
    return torch._C._functorch._unwrap_functional_tensor(tensor, True)


# --- Tensors.
# What torch.vmap made for torch.autograd.grad(is_grads_batched=True).
is_legacy_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor


def is_zerotensor(tensor: Tensor) -> bool:
    """Whether it is zeros that have no storage, as forward mode makes them."""
    return tensor._is_zerotensor()


# The layout of oneDNN's opaque tensors (since 1.0).
MKLDNN: torch.layout = torch._mkldnn  # type: ignore[attr-defined]  # not in torch's stub


def ragged_axis(tensor: Tensor) -> int:
    """Which axis of a nested tensor of the layout torch.jagged differs between its parts (since 2.2)."""
    return tensor._ragged_idx  # type: ignore[attr-defined]  # of NestedTensor


def reshaped_as_no_view(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """In another shape, and no view to autograd, which lets nobody change a Function's views (since 0.4)."""
    return torch.ops.aten._unsafe_view(tensor, shape)


# Types that are no subclass with a meaning of its own; nn.Buffer is there in 2.6, not in 2.4.
PLAIN_TYPES = (Tensor, nn.Parameter, *([nn.Buffer] if hasattr(nn, "Buffer") else []))


def version_of(tensor: Tensor) -> int:
    """How often the tensor was written in place, which autograd compares too; -1 where that is not counted."""
    return -1 if tensor.is_inference() else tensor._version


def keep_object(tensor: Tensor) -> None:
    """Tie a tensor, found by a weak reference, to its Python object again, as torch.utils.weak does (since 2.0)."""
    tensor._fix_weakref()  # type: ignore[attr-defined]  # not in torch's stub


def _increment_each(tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        graph.increment_version(tensor)


def _increment_function() -> Callable[[Iterable[Tensor]], None]:
    try:  # 2.6 takes tensors, 2.4 one at a time
        torch._C._increment_version(())
    except (TypeError, RuntimeError):
        return _increment_each
    return torch._C._increment_version


# Tells autograd that the core wrote to tensors; what autograd.graph.increment_version calls, in half its time.
increment_versions: Callable[[Iterable[Tensor]], None] = _increment_function()

# --- How the native core reads and makes tensors without PyTorch's headers.
# The table of DLPack functions (a capsule), since 2.10; before, kernels/older_torch.py makes one.
exchange_table: Any = getattr(Tensor, "__dlpack_c_exchange_api__", None)
# A tensor of a DLPack capsule; what torch.utils.dlpack.from_dlpack ends in (since 1.10).
from_dlpack: Callable[[Any], Tensor] = torch._C._from_dlpack


def implementation_of(tensor: Tensor) -> int:
    """The address of the C++ tensor (c10::TensorImpl) that a Python tensor stands for."""
    return tensor._cdata


# --- PyTorch's own kernels, without the checks around them.
# (output, mean, rstd) by the batch's statistics; no running ones (since 2.0).
batch_norm_without_running: Callable[..., tuple[Tensor, ...]] = torch.ops.aten._native_batch_norm_legit.no_stats
# RMS norm in one kernel: forward and backward since 2.9; without, both are a few operations.
_aten = torch.ops.aten
fused_rms_norm: Callable[..., Any] | None = getattr(_aten, "_fused_rms_norm", None)
fused_rms_norm_backward: Callable[..., Any] | None = getattr(_aten, "_fused_rms_norm_backward", None)
if fused_rms_norm_backward is None:  # 2.8 has a forward of another meaning
    fused_rms_norm = None

# --- What makes Triton's kernels a part of compiled graphs: since 2.6; without, kernels/triton serves no device.
triton_op: Any = getattr(torch.library, "triton_op", None)
wrap_triton: Any = getattr(torch.library, "wrap_triton", None)

# --- Modes and hooks that a run may leave behind, or must see.
count_function_modes: Callable[[], int] = torch._C._len_torch_function_stack
pop_function_mode: Callable[[], Any] = torch._C._pop_torch_function_stack
dispatch_mode_at: Callable[[int], Any] = torch._C._get_dispatch_stack_at


def saved_tensors_hooks_allowed() -> bool:
    """Whether hooks on saved tensors may be set here (since 2.0): torch.func transforms forbid them."""
    return torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]  # not in torch's stub


def saved_tensors_hooks_top() -> Any:
    """The innermost hooks on saved tensors, or None; True for hooks that an older PyTorch does not show."""
    find = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if find is not None:
        return find(True)
    if not saved_tensors_hooks_allowed():
        return None
    try:  # to forbid hooks is an error where some are at work
        torch._C._autograd._saved_tensors_hooks_disable("normkit asks")
    except RuntimeError:
        return True
    finally:
        torch._C._autograd._saved_tensors_hooks_enable()
    return None


def run_compiled_eagerly() -> AbstractContextManager[Any]:
    """Compiled parts run as they are written, from the call on until the exit. By set_stance since 2.6."""
    if torch.compiler.is_compiling():
        raise RuntimeError("a stance is not set in a program that is compiled")  # Dynamo then leaves this frame alone
    return _Eagerly()


class _Eagerly(AbstractContextManager[None]):
    """One of the process's blocks without compiler. The stance is the process's too, and threads leave in any order:
    who leaves before one that entered later hands on to it what is to be put back."""

    _lock = threading.RLock()
    _entered: ClassVar[list[_Eagerly]] = []

    def __init__(self) -> None:
        with self._lock:
            make = getattr(torch.compiler, "set_stance", None)
            self._switch = _WithoutDynamo() if make is None else make("force_eager")
            self._entered.append(self)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self not in self._entered:  # who gives back after an interrupt asks again
                return
            later = self._entered[self._entered.index(self) + 1 :]
            if later:
                later[0]._switch = self._switch
            else:
                self._switch.__exit__(None, None, None)
            self._entered.remove(self)


def _no_callback() -> None:
    return None


# What compiles the next frames: callable where this runs eagerly between graphs of a compiled function. Since 2.6;
# before, that is not known.
frame_compiler: Callable[[], Any] = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", _no_callback)


def is_dynamo_loaded() -> bool:
    """Whether anything can be compiled yet: torch.compile imports Dynamo when it is first called (since 2.0)."""
    return "torch._dynamo" in sys.modules


class _WithoutDynamo(AbstractContextManager[None]):
    """Dynamo's wrappers ask for no frame of theirs to be compiled, until the exit."""

    def __init__(self) -> None:
        self._names = vars(import_module("torch._dynamo.eval_frame"))
        self._set = self._names["set_eval_frame"]
        self._names["set_eval_frame"] = lambda callback: self._set(None)

    def __exit__(self, *_: object) -> None:
        self._names["set_eval_frame"] = self._set


@cache
def onednn_switch() -> tuple[Callable[[], bool], Callable[[bool], None]]:
    """(get, set) of oneDNN, below torch.backends.mkldnn, whose flags a program may have frozen."""
    return torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled


# --- Trees of containers: torch.utils.pytree is public since 2.9 only, and of another interface.
tree_map, tree_leaves, tree_path = _pytree.tree_map, _pytree.tree_leaves, _pytree.keystr
tree_nodes, tree_node_type = _pytree.SUPPORTED_NODES, _pytree._get_node_type
AttributeKey, MappingKey, SequenceKey = _pytree.GetAttrKey, _pytree.MappingKey, _pytree.SequenceKey

# --- Base classes of torch.nn, which have no public name.
NormBase = nn.modules.batchnorm._NormBase
BatchNormBase = nn.modules.batchnorm._BatchNorm
InstanceNormBase = nn.modules.instancenorm._InstanceNorm
LazyNormBase = nn.modules.batchnorm._LazyNormBase
ConvBase = nn.modules.conv._ConvNd
DropoutBase = nn.modules.dropout._DropoutNd
TransposedConvBase = nn.modules.conv._ConvTransposeNd
POOLS = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)
ADAPTIVE_POOLS = (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)

# --- Names of functions and attributes: what torch.nn.utils.rnn.pad_packed_sequence calls, the method that
# nn.DataParallel copies modules by, the module inside of a compiled one, what torch.fx calls tensors that it meets,
# which buffers a module does not save, and where nn.Module keeps hooks (since 2.0).
PAD_PACKED = "_pad_packed_sequence"
REPLICATE = "_replicate_for_data_parallel"
COMPILED_FROM = "_orig_mod"
TRACED_CONSTANT = "_tensor_constant"
NOT_SAVED = "_non_persistent_buffers_set"
FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
HOOKS = (
    *FORWARD_HOOKS,
    "_is_full_backward_hook",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


# Methods that say, besides its forward, what a layer does: when it is called, cast, put into a mode, saved.
METHODS = (
    *("__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__", "train", "eval"),
    *("_apply", "to", "type", "half", "float", "double", "bfloat16"),
    *("state_dict", "_save_to_state_dict", "get_extra_state", "parameters", "named_parameters", "named_buffers"),
)


def hooked(module: nn.Module) -> bool:
    """Whether a hook sees or changes what goes through the module."""
    return bool(  # not in a loop: rewritten forwards ask at each call
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_own_forward(module: nn.Module) -> bool:
    """Whether a forward on the module hides its class's. The class's own, bound to the module, hides nothing: tools
    that put hooks in a forward's place (Hugging Face's accelerate) leave it there when they go."""
    own = module.__dict__.get("forward")
    if own is None:
        return False
    return getattr(own, "__self__", None) is not module or getattr(own, "__func__", None) is not type(module).forward


def why_own_forward(module: nn.Module) -> str:
    """The refusal of a module that `has_own_forward`, with what to do where a known tool has put it there."""
    why = "its forward was replaced on the instance"
    if "_hf_hook" not in module.__dict__:
        return why
    return (
        f"{why} by a hook of Hugging Face's accelerate: change the model before it is dispatched or offloaded (hooks "
        "go around what is there), or after accelerate.hooks.remove_hook_from_submodules(model)"
    )


def keywords_of_call() -> dict[str, Any]:
    """The keyword arguments of the module's call that a global pre-hook, the caller, is run for: the very dict that its
    forward gets. Such a hook is told the positional ones alone, in every release so far."""
    frame = sys._getframe(2)
    found = frame.f_locals.get("kwargs")
    return found if frame.f_code.co_name in ("inner", "_call_impl") and isinstance(found, dict) else {}


_GLOBAL_HOOKS = tuple(vars(nn.modules.module)[f"_global{name}"] for name in FORWARD_HOOKS)  # filled in place


def _has_global_hook() -> bool:
    return any(_GLOBAL_HOOKS)


# In 2.8, not in 2.6.
_has_any_global_hook: Callable[[], bool] = getattr(nn.modules.module, "_has_any_global_hook", _has_global_hook)


def is_watched() -> bool:
    """Whether somebody follows the calls of all modules: counters of operations by hooks (since 2.0), torch.jit.trace,
    on which TensorBoard's graphs stand, by its scopes."""
    return not torch.compiler.is_compiling() and (bool(_has_any_global_hook()) or tracing_state() is not None)


def traces_for_onnx() -> bool:
    """Whether torch.jit traces for the older of the ONNX exporters; torch.onnx is imported by who exports."""
    onnx = sys.modules.get("torch.onnx")
    return tracing_state() is not None and onnx is not None and bool(onnx.is_in_onnx_export())


@cache
def takes_bias(make: Callable[..., None]) -> bool:
    """Whether a constructor of torch.nn takes `bias=`: that of LayerNorm does, those of other norms after 2.10."""
    return "bias" in inspect.signature(make).parameters


def make_norm(norm: type[nn.Module], *arguments: Any, bias: bool, **options: Any) -> nn.Module:
    """A layer with a bias or without, by a parameter dropped after the fact where the class takes no `bias=`."""
    if takes_bias(norm.__init__):
        return norm(*arguments, bias=bias, **options)
    made = norm(*arguments, **options)
    if not bias:
        made.register_parameter("bias", None)
    return made


@asked_while_traced
def backend_of(group: Any) -> str:
    """The name of a process group's backend. Dynamo asks it while it traces: that of 2.10 cannot see into PyTorch's
    function."""
    from torch import distributed

    return str(distributed.get_backend(group))


def all_gather_in_graph(value: Tensor, group: Any) -> Tensor:
    """The tensors of all ranks, one after the other along axis 0, as a node of a compiled graph.

    Private since 2.1; the public collectives write into tensors that they are given, where a graph breaks.
    """
    from torch.distributed import _functional_collectives as collectives

    return collectives.all_gather_tensor(value, 0, group)


def all_reduce_in_graph(value: Tensor, group: Any) -> Tensor:
    """The sum over all ranks, as a node of a compiled graph. Private since 2.1, for the same reason."""
    from torch.distributed import _functional_collectives as collectives

    return collectives.all_reduce(value, "sum", group)


def device_types(group: Any) -> list[str]:
    """The types of device that a process group has a backend for. Private since 2.0; get_backend names no devices."""
    return sorted({device.type for device in group._device_types})
