"""Surgery on models that we did not write: torchvision, timm, and networks whose trained weights ship inside packages.

Random weights with statistics and affine parameters away from 0 and 1; float64, so that a depth of a hundred layers
leaves the tolerance far above rounding (1e-16 a step) and far below what a wrong border or a lost bias does.
"""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from normkit.surgery import accelerate, changes, convert, fold, freeze, unfreeze

from . import foreign
from .models import close, outputs, randomized, same_state, state

SAME = 1e-8
SMALL = (2, 3, 64, 64)
SMALLER = (2, 3, 33, 33)
nightly = pytest.mark.nightly

# name -> (how to make it, shape of the input, norms that fold, norms that stay)
MODELS = {
    "resnet18": (foreign.torchvision_model, SMALLER, 20, 0),
    "mobilenet_v3_small": (foreign.torchvision_model, SMALL, 34, 0),
    "video.r3d_18": (foreign.torchvision_model, (2, 3, 4, 24, 24), 20, 0),
    "resnet50": (foreign.torchvision_model, SMALL, 53, 0),
    "densenet121": (foreign.torchvision_model, SMALL, 59, 62),
    "googlenet": (foreign.torchvision_model, (2, 3, 96, 96), 57, 2),
    "regnet_y_400mf": (foreign.torchvision_model, SMALL, 53, 0),
    "segmentation.deeplabv3_resnet50": (foreign.torchvision_model, SMALL, 60, 0),
    "mobilenet_v2": (foreign.torchvision_model, SMALL, 52, 0),
    "efficientnet_b0": (foreign.torchvision_model, SMALL, 49, 0),
    "mobilenetv3_small_050": (foreign.timm_model, SMALLER, 34, 0),
    "levit_128s": (foreign.timm_model, (2, 3, 224, 224), 52, 0),
    "resnetv2_50": (foreign.timm_model, SMALL, 32, 17),
    "resnetv2_50x1_bit": (foreign.timm_model, SMALL, 0, 49),
    "tf_mobilenetv3_small_075": (foreign.timm_model, SMALL, 34, 0),
    "repvgg_a0": (foreign.timm_model, SMALL, 44, 17),
    "mobileone_s0": (foreign.timm_model, SMALL, 191, 35),
    "efficientformer_l1": (foreign.timm_model, (2, 3, 224, 224), 33, 3),
    "repvit_m1": (foreign.timm_model, SMALL, 108, 0),
    "unet": (lambda name: UNet(), (2, 3, 16, 16), 4, 0),
}
# the others repeat these at length: a residual block, functions and modules, activations inside of norms, concatenation
QUICK = ("resnet18", "mobilenetv3_small_050", "unet")


class UNet(nn.Module):
    """Down, across and up again, with a skip by concatenation and a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.bottom = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.bn, self.last = nn.BatchNorm2d(8), nn.Sequential(nn.Conv2d(16, 4, 3, padding=1), nn.BatchNorm2d(4))

    def forward(self, x):
        skip = self.down(x)
        return self.last(torch.cat([skip, nn.functional.relu(self.bn(self.up(self.bottom(skip))))], 1))


def case(name):
    build, shape, folds, stay = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(name)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return randomized(model).double().eval(), x, folds, stay


@contextmanager
def float64_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# folding is quick on all three; the other tests train
BRIEF = [pytest.param(name, marks=() if name in ("resnet18", "unet") else nightly) for name in MODELS]
NAMES = [pytest.param(name, marks=() if name in QUICK else nightly) for name in MODELS]


def training_step(model, x):
    """Outputs, input gradient and statistics of one step in training mode, dropout from a fixed seed."""
    model, x = copy.deepcopy(model).train(), x.clone().requires_grad_()
    torch.manual_seed(0)
    y = model(x)
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(y) if isinstance(leaf, torch.Tensor)]
    sum((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in leaves).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [*leaves, x.grad, *gradients, *(b for b in model.buffers() if b.is_floating_point())]


@pytest.mark.parametrize("name", NAMES)
def test_folding_keeps_the_outputs(name):
    model, x, folds, stay = case(name)
    before = state(model)
    result = fold(model, x)
    close(outputs(result, x), outputs(model, x), SAME)
    same_state(model, before)
    assert (len(changes(result).replaced), len(changes(result).kept)) == (folds, stay)
    assert all(entry.reason for entry in changes(result))


@pytest.mark.parametrize("name", BRIEF)
def test_accelerating_keeps_outputs_gradients_and_statistics(name):
    model, x, _, _ = case(name)
    before = state(model)
    result = accelerate(model, x)
    close(outputs(result, x), outputs(model, x), SAME)
    close(training_step(result, x), training_step(model, x), SAME, joint=True)
    same_state(model, before)
    same_state(result, before)
    assert not changes(result).kept


@pytest.mark.parametrize("name", BRIEF)
def test_freezing_and_converting_go_there_and_back(name):
    model, x, _, _ = case(name)
    before = state(model)
    expected = outputs(model, x)
    same_state(unfreeze(freeze(model)), before)
    close(outputs(freeze(model), x), expected, SAME)
    group = convert(model, "group")
    assert all(torch.isfinite(y).all() for y in outputs(group, x))
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in group.modules())
    same_state(model, before)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=nightly) for n in ("repvgg_a0", "mobileone_s0", "levit_128s", "repvit_m1")]
)
def test_the_folded_model_agrees_with_the_librarys_own_reparameterization(name):
    model, x, _, _ = case(name)
    with float64_by_default():  # their folded layers are made in the default dtype
        theirs = foreign.library("timm").utils.reparameterize_model(copy.deepcopy(model))
    close(outputs(fold(model, x), x), outputs(theirs, x), SAME)


ANSWERS = {"chelsea": 285, "coffee": 967, "camera": 872}  # ImageNet: Egyptian cat, espresso, tripod


@pytest.mark.parametrize("operation", [fold, pytest.param(accelerate, marks=nightly)], ids=["fold", "accelerate"])
def test_a_trained_network_gives_the_same_answers(operation):
    model, photos = foreign.imagenet_mobilenet_v2(), foreign.photos()
    result = operation(model, photos["chelsea"])
    assert not changes(result).kept
    for name, x in photos.items():
        ours, theirs = outputs(result, x)[0], outputs(model, x)[0]
        close([ours], [theirs], 1e-4)  # float32, 52 layers
        assert int(ours.argmax()) == int(theirs.argmax())
        assert int(ours.argmax()) == ANSWERS[name], name


def test_crepe_keeps_its_norms_in_front_of_a_pool_and_a_zero_border():
    model = foreign.crepe_tiny()
    x = torch.sin(torch.arange(1024) * 0.1)[None].repeat(2, 1)
    result = fold(model, x)
    assert [entry.action for entry in changes(result)] == ["kept"] * 6
    assert all("fed by relu" in e.reason and "goes to max_pool2d" in e.reason for e in changes(result))
    close(outputs(result, x), outputs(model, x), 0)
    close(outputs(accelerate(model, x), x), outputs(model, x), 1e-5)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the exporter's own
def test_the_folded_model_exports_to_onnx_without_a_batch_norm_and_runs_there():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    model, x, _, _ = case("resnet18")
    model, x = model.float(), x.float()
    result = fold(model, x)
    program = torch.onnx.export(result, (x,), dynamo=True, verbose=False)
    assert program is not None
    proto = program.model_proto
    assert not [node.op_type for node in proto.graph.node if "Norm" in node.op_type]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    close([torch.from_numpy(got)], outputs(model, x), 1e-4)
