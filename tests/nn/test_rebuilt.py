"""Code of others that rebuilds a norm from its parts is stopped where it would lose the norm's activation."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk
from tests.surgery.foreign import library, timm_model

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
ACTIVATIONS: list[str | nn.Module] = ["relu", nn.LeakyReLU(0.2), nn.Softplus()]
RANKS: dict[type[nn.Module], type[nn.Module]] = {
    nk.BatchNorm1d: nn.Conv1d,
    nk.BatchNorm2d: nn.Conv2d,
    nk.BatchNorm3d: nn.Conv3d,
}


def net(activation: str | nn.Module | None, kind: type[nn.Module] = nk.BatchNorm2d) -> nn.Sequential:
    convolution = RANKS.get(kind, nn.Conv2d)
    return nn.Sequential(convolution(3, 4, 1), kind(4, eps=3e-4, activation=activation)).eval()


def like_detr(module: nn.Module) -> nn.BatchNorm2d:
    """Reads the number of channels and the tensors; eps is its own."""
    new = nn.BatchNorm2d(module.num_features)
    new.weight.data.copy_(module.weight)
    new.bias.data.copy_(module.bias)
    new.running_mean.data.copy_(module.running_mean)
    new.running_var.data.copy_(module.running_var)
    return new


def by_hand(module: nn.Module) -> Tensor:
    return module.weight * torch.rsqrt(module.running_var + module.eps)


REBUILDERS: dict[str, Callable[[nn.Sequential], object]] = {
    "convert_sync_batchnorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "fuse_conv_bn_eval": lambda m: nn.utils.fusion.fuse_conv_bn_eval(m[0], m[1]),
    "timm": lambda m: library("timm").layers.convert_sync_batchnorm(m),
    "timm's freeze": lambda m: library("timm").layers.freeze_batch_norm_2d(m),
    "like_detr": lambda m: like_detr(m[1]),
    "by_hand": lambda m: by_hand(m[1]),
}
rebuilders = pytest.mark.parametrize("rebuild", REBUILDERS.values(), ids=REBUILDERS)


@rebuilders
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_an_activation_is_not_lost_without_a_word(
    rebuild: Callable[[nn.Sequential], object], activation: str | nn.Module
) -> None:
    with pytest.raises(RuntimeError, match=r"takes BatchNorm2d apart and would lose its activation"):
        rebuild(net(activation))


@rebuilders
def test_a_layer_without_one_is_rebuilt(rebuild: Callable[[nn.Sequential], object]) -> None:
    rebuild(net(None))


@pytest.mark.parametrize("kind", [*RANKS, nk.GhostBatchNorm2d, nk.BatchRenorm2d], ids=lambda kind: kind.__name__)
def test_every_batch_norm_says_who_and_what_to_do(kind: type[nn.Module]) -> None:
    text = r"^torch\.nn\.modules\.batchnorm\..*convert_sync_batchnorm takes .*, relu\. nk\.convert\(model, 'sync'\)"
    with pytest.raises(RuntimeError, match=text):
        nn.SyncBatchNorm.convert_sync_batchnorm(net("relu", kind))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_the_ways_that_the_error_names_keep_it(activation: str | nn.Module) -> None:
    model = net(activation)
    with torch.no_grad():
        expected = model(X)
        torch.testing.assert_close(nk.convert(model, "sync")(X), expected)
        torch.testing.assert_close(nk.fold(model, X)(X), expected)


def test_after_accelerate_timms_norms_are_not_lost_either() -> None:
    model = nk.accelerate(timm_model("mobilenetv3_small_050").eval(), torch.randn(2, 3, 33, 33))
    with pytest.raises(RuntimeError, match="would lose its activation"):
        nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    nn.SyncBatchNorm.convert_sync_batchnorm(nk.convert(model, "torch"))


def test_torchs_fused_transformer_layer_is_stopped() -> None:
    """In evaluation it hands weight, bias and eps to a kernel of its own."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    layer.norm2 = nk.LayerNorm(8, activation="relu").eval()
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"TransformerEncoderLayer.* takes LayerNorm apart"):
        layer(torch.randn(2, 3, 8))


def test_torchs_quantization_refuses_the_layer() -> None:
    with pytest.raises((AssertionError, NotImplementedError), match=r"did not find fuser method|Cannot fuse modules"):
        torch.ao.quantization.fuse_modules(net("relu"), ["0", "1"])


class Subclass(nk.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]  # as users do
        y = F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return F.relu(y)


def test_who_reads_for_another_reason_gets_what_he_asks_for() -> None:
    model = net("relu")
    norm = model[1]
    assert (norm.eps, norm.num_features) == (3e-4, 4)
    assert "eps=0.0003" in repr(norm)
    for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert twin.eps == 3e-4
    assert by_reading_the_activation(norm) == (3e-4, "relu", 4)
    norm.eps = 2e-4
    assert norm.eps == norm.__dict__["eps"] == 2e-4
    Subclass(3, activation="relu").eval()(X)
    with pytest.raises(AttributeError, match="no attribute 'num_features'"):
        nk.GroupNorm(2, 4).num_features  # noqa: B018  # reading it is what is tested


def by_reading_the_activation(norm: nn.Module) -> tuple[object, ...]:
    return norm.eps, norm.activation, norm.weight.numel()
