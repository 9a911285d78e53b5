"""What cases are drawn from. A change here changes which case a number means."""

from __future__ import annotations

from . import modulation, norms, program

NORMS = (
    *("batch_norm", "group_norm", "layer_norm") * 3,
    *("rms_norm", "instance_norm", "add_layer_norm", "ghost_batch_norm", "batch_renorm") * 2,
    "layer_norm_2d", "frozen_batch_norm", "sync_batch_norm", "add_rms_norm", "normalize",
)  # fmt: skip
assert set(NORMS) == set(norms.NORMS)

SIZES = (
    1,
    1,
    2,
    2,
    3,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    12,
    13,
    15,
    16,
    17,
    24,
    31,
    32,
    33,
    48,
    63,
    64,
    65,
    67,
    129,
    130,
    257,
    1025,
)
DTYPES = ("float32",) * 5 + ("float64",) * 2 + ("bfloat16",) * 2 + ("float16",) * 2
WRONG_DTYPES = (
    "int64", "int32", "uint8", "bool", "complex64", "complex128", "float16", "bfloat16", "float32", "float64",
)  # fmt: skip
BUFFER_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "bool", "complex64")

VALUES = (
    "arange", "constant", "constant_channel", "zeros", "ones", "mean1e2", "mean-1e4", "mean1e6", "scale1e-40",
    "scale1e-20", "scale1e-4", "scale1e4", "scale1e30", "scale3e38", "outlier", "samples", "nan", "inf", "minus_inf",
)  # fmt: skip
WEIGHTS = ("normal", "ones", "zeros", "negative", "scale1e20", "scale1e-30", "nan")
BIASES = ("zeros", "ones", "mean1e4", "scale1e-30", "nan")
VARIANCES = ("zeros", "ones", "scale1e-40", "negative", "nan", "inf")
GRADIENTS = ("ones", "zeros", "arange", "mean1e3", "scale1e20", "scale1e-30", "outlier", "nan", "inf")

SCALES = ("normal", "ones", "zeros", "negative", "mean1e2", "nan")
SHIFTS = ("zeros", "ones", "mean1e2", "nan")

LAYOUTS = (
    *("channels_last",) * 5,
    "transposed", "strided", "inner", "offset", "expanded", "scalar", "overlapping",
)  # fmt: skip
VECTOR_LAYOUTS = ("contiguous", "strided", "offset", "inner", "expanded", "overlapping")

EPS = ("0.001", "0.1", "1.0", "1e-12", "1e-30", "1", "0.0", "None")
WRONG_EPS = ("0", "-1e-05", "-1.0", "float('nan')", "float('inf')", "'1e-5'", "1e10", "torch.tensor(1e-5)", "1j")
MOMENTA = ("None", "0.0", "1.0", "0.37", "1", "0.999")
WRONG_MOMENTA = ("2.0", "-0.5", "float('nan')", "'0.1'", "True", "torch.tensor(0.1)", "1e300")

ACTIVATIONS = (
    *("'relu'", "'silu'", "'gelu'") * 2,
    "'leaky_relu'", "'relu6'", "'sigmoid'", "'tanh'", "'hardswish'", "'hardsigmoid'", "'elu'", "'mish'", "'celu'",
    "'selu'", "'hardtanh'", "'softplus'", "'softsign'", "'tanhshrink'", "'hardshrink'", "'softshrink'", "'logsigmoid'",
    "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.LeakyReLU(0.2)", "nn.LeakyReLU(-0.5)", "nn.LeakyReLU(0.0)",
    "nn.LeakyReLU(2.0)", "nn.ELU(0.5)", "nn.ELU(0.0)", "nn.ELU(-1.0)", "nn.GELU()", "nn.GELU(approximate='tanh')",
    "nn.SiLU(inplace=True)", "nn.Identity()", "nn.Softplus()", "nn.Hardtanh(-1.0, 2.0)", "nn.Threshold(0.1, 2.0)",
    "nn.Hardswish()", "nn.CELU(2.0)", "nn.Dropout(0.0)",
)  # fmt: skip

WRONG_ACTIVATIONS = ("'nosuch'", "3", "torch.relu")

MASKS = program.MASKS
FORMS = ("element", *modulation.FORMS)
TRICKS = (
    *("freed", "negated", "zerotensor", "wrapper") * 2,
    "conjugated", "meta", "fake", "inference", "parameter", "from_numpy", "read_only", "shared", "sparse", "mkldnn",
    "dlpack", "subclass",
)  # fmt: skip
CONTEXTS = (
    "torch.no_grad()", "torch.inference_mode()", "torch.autocast('cpu', torch.bfloat16)", "torch.device('meta')",
    "default_device('meta')", "default_dtype(torch.float64)", "default_dtype(torch.bfloat16)", "deterministic()",
    "torch.autograd.set_detect_anomaly(True)", "Silent()", "Quiet()", "torch.autograd.graph.save_on_cpu()",
    "nk.backend('native')", "nk.backend('composed')",
    "nk.backend('aten')", "nk.backend('triton')", "nk.recompute_outputs()", "nk.recompute_outputs(depth=1)",
    "FakeTensorMode(allow_non_fake_inputs=True)",
)  # fmt: skip
AROUND = (
    "torch.device('meta')", "default_device('meta')", "default_dtype(torch.float64)", "deterministic()", "Silent()",
    "Quiet()", "FakeTensorMode(allow_non_fake_inputs=True)", "torch.autocast('cpu', torch.bfloat16)",
    "nk.backend('composed')", "nk.backend('aten')", "torch.no_grad()", "torch.autograd.set_detect_anomaly(True)",
)  # fmt: skip
SAVED = (
    "clone", "detach", "numpy", "sparse", "stay_sparse", "strided", "permuted", "parameter", "wrapper", "subclass",
    "negated", "float32", "bfloat16", "half_and_back", "double", "meta", "flat", "shorter", "freed", "none",
)  # fmt: skip
TRANSFORMS = tuple(program.TRANSFORMS)
PLANS = tuple(program.PLANS)
AFTERS = tuple(program.AFTERS)
EDITS = tuple(program.EDITS)
HOOKS = tuple(program.HOOKS)
ALIASES = tuple(program.ALIASES)
