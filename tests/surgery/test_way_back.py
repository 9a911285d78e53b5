"""What else uses children of an accelerated model computes what it did; `convert(model, "torch")` is the way back."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normkit.model.families import is_ours
from normkit.surgery import accelerate, changes, convert

from .foreign import timm_model, torchvision_model
from .models import close, outputs, randomized, residual_net, same_state, state

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
SAME = 1e-5  # float32, two or three layers


class Features(nn.Module):
    """A public method that forward calls: functions behind its norms."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, eps=3e-4)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, eps=3e-4)

    def features(self, x):
        x = F.silu(self.bn(self.conv(x)))
        return F.relu(self.bn2(self.conv2(x)) + x)

    def forward(self, x):
        return self.features(x).mean((2, 3))

    def raw(self, x):
        return self.bn(self.conv(x))


class Modules(nn.Module):
    """Activation modules and a container that forward uses one way and other methods another."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, eps=3e-4), nn.SiLU()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, eps=3e-4))

    def forward(self, x):
        x = self.act(self.bn(self.conv(x)))
        return F.relu(self.body(x) + x)

    def features(self, x):
        return self.act(self.conv(x))

    def raw(self, x):
        return self.body(self.bn(x))


def fused(model):
    return [e.name for e in changes(model).of("accelerate") if e.reason.startswith("fused")]


@pytest.mark.parametrize("build", [Features, Modules])
def test_other_methods_compute_what_they_did(build):
    model = randomized(build()).eval()
    result = accelerate(model, X)
    assert len(fused(result)) == 2
    for method in ("forward", "features", "raw"):
        with torch.no_grad():
            close([getattr(result, method)(X)], [getattr(model, method)(X)], SAME)


def test_children_of_a_sequential_are_what_they_were():
    model = randomized(residual_net()).eval()
    result = accelerate(model, X)
    assert fused(result) == ["1", "3.bn1", "3.bn2", "4.bn1", "4.bn2"]
    for part in (slice(0, 2), slice(1, 3), slice(2, 4)):
        x = X if part.start == 0 else torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(1))
        close(outputs(result[part], x), outputs(model[part], x), SAME)
    assert [type(module) for module in result] == [type(module) for module in model[:1]] + [
        type(result[1]),
        *(type(module) for module in model[2:]),
    ]


def test_a_sequential_that_changes_later_runs_what_it_holds():
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=3e-4), nn.ReLU())).eval()
    for change in (
        lambda m: m.append(nn.Conv2d(4, 2, 1, bias=False)) and nn.init.ones_(m[-1].weight),
        lambda m: m.__setitem__(2, nn.Tanh()),
        lambda m: m.__delitem__(2),
        lambda m: m.__setitem__(1, nn.Identity()),
    ):
        result, expected = accelerate(model, X), copy.deepcopy(model)
        change(result), change(expected)
        close(outputs(result, X), outputs(expected, X), SAME)


def test_hooks_that_come_later_see_what_they_saw():
    model = randomized(residual_net()).eval()
    result, seen = accelerate(model, X), {}
    for name in ("1", "2", "3.bn2", "3.relu"):
        for who, net in (("ours", result), ("theirs", model)):
            key = (who, name)
            net.get_submodule(name).register_forward_hook(
                lambda module, args, y, key=key: seen.setdefault(key, []).append(y.clone())
            )
    close(outputs(result, X), outputs(model, X), SAME)
    for name in ("1", "2", "3.bn2", "3.relu"):
        close(seen["ours", name], seen["theirs", name], SAME)


def test_who_listens_to_all_modules_hears_all_of_them() -> None:
    """Counters of operations and profilers do."""
    model = randomized(residual_net()).eval()
    result = accelerate(model, X)

    def heard(net: nn.Module) -> tuple[list[str], list[torch.Tensor]]:
        names, seen = {module: name for name, module in net.named_modules()}, []

        def listen(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            seen.append(names[module])
            return output * 2 if isinstance(module, nn.ReLU) else None

        handle = nn.modules.module.register_module_forward_hook(listen)
        try:
            return seen, outputs(net, X)
        finally:
            handle.remove()

    (ours, found), (theirs, expected) = heard(result), heard(model)
    assert ours == theirs
    close(found, expected, SAME)
    close(outputs(result, X), outputs(model, X), SAME)


def cat_is_traced() -> bool:
    """Whether torch.fx follows torch.cat of its own proxy, as DenseNet's layers have it: that of 2.4 does not."""
    try:
        torch.fx.symbolic_trace(lambda parts: torch.cat(parts, 1))
    except TypeError:
        return False
    return True


@pytest.mark.skipif(not cat_is_traced(), reason="this torch.fx cannot trace torch.cat of a list that is given")
def test_densenets_extractor_is_exact():
    model = randomized(torchvision_model("densenet121")).double().eval()
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    result = accelerate(model, x, verify=False)
    assert len(fused(result)) == 121
    with torch.no_grad():
        close([result.features(x)], [model.features(x)], 1e-9)
        assert float(result.features(x).min()) < 0
        close([result(x)], [model(x)], 1e-9)


def test_trainers_that_rebuild_norms_keep_the_activation():
    model = randomized(residual_net()).eval()
    rebuilt = nn.SyncBatchNorm.convert_sync_batchnorm(accelerate(model, X))
    assert not any(map(is_ours, rebuilt.modules()))
    close(outputs(rebuilt, X), outputs(model, X), SAME)

    result = accelerate(model, X)
    result[0] = nn.utils.fusion.fuse_conv_bn_eval(result[0], result[1])
    result[1] = nn.Identity()
    block = result[3]
    block.conv2 = nn.utils.fusion.fuse_conv_bn_eval(block.conv2, block.bn2)
    block.bn2 = nn.Identity()
    close(outputs(result, X), outputs(model, X), SAME)


def kinds(model):
    return [type(module) for module in model.modules()]


MODELS = {
    "residual": lambda: (residual_net(), X),
    "features": lambda: (Features(), X),
    "timm's norms with activations": lambda: (timm_model("mobilenetv3_small_050"), torch.randn(2, 3, 33, 33)),
}


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("name", MODELS)
def test_converting_to_torch_is_the_way_back(name, recompute):
    model, x = MODELS[name]()
    model = randomized(model).eval()
    before = state(model)
    result = accelerate(model, x, recompute=recompute)
    assert fused(result)
    back = convert(result, "torch")
    assert kinds(back) == kinds(model)
    assert not changes(back).of("convert").kept
    own = [key for module in back.modules() for key in vars(module) if key.startswith("_normkit") or key == "forward"]
    assert own == ["_normkit_changes"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in back.modules())
    same_state(back, before)
    close(outputs(back, x), outputs(model, x), 0)
    if name == "features":
        close([back.features(x)], [model.features(x)], 0)
    # what it learned meanwhile comes along
    result.train()(x)
    close(outputs(convert(result, "torch").eval(), x), outputs(copy.deepcopy(result).eval(), x), 1e-4)
    assert any(map(is_ours, result.modules()))
