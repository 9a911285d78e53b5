"""Accelerating: the same function in both modes, gradients and statistics too; additions and activations fused."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normkit.nn as layers
from normkit.surgery import accelerate, changes, convert, fold

from .models import close, outputs, randomized, residual_net, same_state, state

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
# float64 on both sides: what differs is the order of some thousand roundings of 1e-16
SAME = 1e-11


def gradients(model, x):
    """Outputs, running statistics and gradients of one training step."""
    model = copy.deepcopy(model).train()
    torch.manual_seed(0)
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    of = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return [y.detach(), x.grad, *of.values(), *(b for b in model.buffers() if b.is_floating_point())]


def accelerated(model, x=X, **options):
    """Accelerate, and hold the result to the original: evaluation, training, gradients, statistics, state and names."""
    model, x = randomized(model).double(), x.double()
    before = state(model)
    result = accelerate(model, x, **options)
    same_state(model, before)
    same_state(result, before)
    assert result.training == model.training
    close(gradients(result, x), gradients(model, x), SAME, joint=True)
    close(outputs(copy.deepcopy(result).eval(), x), outputs(copy.deepcopy(model).eval(), x), SAME)
    return result


def reasons(model):
    return {entry.name: entry.reason for entry in changes(model)}


def test_a_residual_block_is_rewritten_and_keeps_class_names_and_shared_relu():
    result = accelerated(residual_net())
    assert type(result[3]).__name__ == "Residual"
    assert result[3].bn2.activation is None
    assert "residual = x" in result[3].forward.source
    assert reasons(result)["3.bn2"].startswith("fused with the addition and relu")
    assert reasons(result)["1"].startswith("fused with relu")
    assert isinstance(result[2], nn.ReLU)


NORMS = {
    "batch 1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.ReLU()), X[..., 0], "BatchNorm1d"),
    "batch 3d": (lambda: nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.SiLU()), X[..., None], "BatchNorm3d"),
    "sync": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4)), X, "SyncBatchNorm"),
    "group": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.ReLU()), X, "GroupNorm"),
    "instance": (lambda: nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.LeakyReLU(0.2)), X, "InstanceNorm2d"),
    "layer": (lambda: nn.Sequential(nn.LayerNorm(9), nn.GELU()), X, "LayerNorm"),
    "rms": (lambda: nn.Sequential(nn.RMSNorm(9)), X, "RMSNorm"),
}


@pytest.mark.parametrize(("build", "x", "name"), NORMS.values(), ids=NORMS)
def test_every_family_is_replaced(build, x, name):
    runs = name != "SyncBatchNorm"  # torch's own refuses training on the CPU
    result = accelerated(build(), x) if runs else accelerate(build().eval(), x)
    (entry,) = changes(result)
    assert (entry.action, entry.after) == ("replaced", name)
    assert type(result.get_submodule(entry.name)).__module__.startswith("normkit.")


class Block(nn.Module):
    def __init__(self, forward, **modules):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


FUSED = {
    "relu module": lambda m, x: m.relu(m.bn(m.conv(x))),
    "F.relu": lambda m, x: F.relu(m.bn(m.conv(x))),
    "F.relu in place": lambda m, x: F.relu(m.bn(m.conv(x)), inplace=True),
    "torch.relu": lambda m, x: torch.relu(m.bn(m.conv(x))),
    "method": lambda m, x: m.bn(m.conv(x)).relu(),
    "method in place": lambda m, x: m.bn(m.conv(x)).relu_(),
    "silu": lambda m, x: F.silu(m.bn(m.conv(x))),
    "leaky": lambda m, x: F.leaky_relu(m.bn(m.conv(x)), 0.2),
    "gelu tanh": lambda m, x: F.gelu(m.bn(m.conv(x)), approximate="tanh"),
    "mish": lambda m, x: F.mish(m.bn(m.conv(x))),
    "shared relu": lambda m, x: m.relu(m.bn(m.conv(m.relu(x)))),
}
ADDED = {
    "add, relu": lambda m, x: m.relu(m.bn(m.conv(x)) + x),
    "add the other way": lambda m, x: torch.relu(x + m.bn(m.conv(x))),
    "add in place": lambda m, x: m.bn(m.conv(x)).add_(x).relu_(),
    "torch.add": lambda m, x: torch.add(m.bn(m.conv(x)), x),
    "no activation": lambda m, x: m.bn(m.conv(x)) + x,
    "behind an Identity": lambda m, x: m.relu(m.idle(m.bn(m.conv(x))) + x),
    "behind a Sequential": lambda m, x: m.relu(m.body(x) + x),
    "behind nested Sequentials": lambda m, x: m.relu(x + m.nested(x)),
}


def block(forward):
    norms = [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)]
    nested = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), copy.deepcopy(norms[1])))
    model = Block(forward, idle=nn.Identity(), body=nn.Sequential(*norms), nested=nested)
    used = {"body": "body" in forward.__code__.co_names, "nested": "nested" in forward.__code__.co_names}
    for name, keep in used.items():
        if not keep:
            delattr(model, name)
    if any(used.values()):
        del model.bn
    return model


@pytest.mark.parametrize("forward", (FUSED | ADDED).values(), ids=FUSED | ADDED)
def test_what_follows_a_norm_is_fused(forward):
    result = accelerated(block(forward))
    (reason,) = reasons(result).values()
    assert reason.startswith("fused with")
    assert ("the addition" in reason) == (forward in ADDED.values())


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x, scale=None):
        return F.relu(self.bn(x) if scale is None else self.bn(x) * scale)


def other_in_training(m, x):
    y = m.bn(m.conv(x)) + x
    return F.relu(y) if m.training else F.relu(y) * 1


def shared_storage(m, x):
    y = m.conv(x)
    z = m.bn(y)
    y *= 2
    return F.relu(z + y)


def changed_elsewhere(m, x):
    y = m.conv(x)
    x = y.detach().view_as(y)
    z = m.bn(y)
    x += 1
    return F.relu(z) + y


UNFUSED = {
    "two readers": (lambda m, x: (y := m.bn(m.conv(x))).relu() + y, "2 readers"),
    "two readers, one a module": (lambda m, x: m.relu(y := m.bn(m.conv(x))) + y, "2 readers"),
    "the output": (lambda m, x: m.bn(m.conv(x)), "output of the model"),
    "another function": (lambda m, x: torch.cos(m.bn(m.conv(x))), "followed by cos"),
    "a broadcast addition": (lambda m, x: m.relu(m.bn(m.conv(x)) + x.mean((2, 3), keepdim=True)), "followed by add"),
    "a scaled addition": (lambda m, x: torch.add(m.bn(m.conv(x)), x, alpha=2).relu(), "another addition"),
    "python on values": (lambda m, x: F.relu(m.bn(m.conv(x))) if x.sum() > -1e9 else x, "torch.fx cannot trace"),
    "another forward in training": (other_in_training, "another one in training"),
    "an addition that changes the other": (lambda m, x: m.relu(m.conv(x).add_(m.bn(x))), "followed by add_"),
}


@pytest.mark.parametrize(("forward", "reason"), UNFUSED.values(), ids=UNFUSED)
def test_what_is_not_certain_is_replaced_but_not_fused(forward, reason):
    result = accelerated(Block(forward))
    (entry,) = changes(result)
    assert entry.action == "replaced"
    assert reason in entry.reason
    assert entry.reason.startswith("not fused")


@pytest.mark.parametrize("forward", [shared_storage, changed_elsewhere])
def test_a_tensor_changed_in_place_is_no_matter_for_a_trace(forward):
    model = randomized(Block(forward)).eval()  # inference alone: autograd itself refuses both
    result = accelerate(model, X)
    assert "changes a tensor in place" in reasons(result)["bn"]
    close(outputs(result, X), outputs(model, X), 1e-5)


def test_optional_arguments_are_not_fixed_by_a_trace():
    result = accelerated(Optional()).eval()
    assert reasons(result)["bn"].startswith("fused with relu")
    assert "forward" in result.__dict__
    for scale in (2.0, torch.tensor(2.0), None):
        twice = F.relu(result.bn(X.double()) * (2 if scale is not None else 1))
        close([result(X.double(), scale)], [twice], 1e-15)
        close([result(scale=scale, x=X.double())], [twice], 1e-15)


def test_hooks_see_what_they_saw():
    model, seen = randomized(Block(FUSED["relu module"])), []
    model.bn.register_forward_hook(lambda module, args, y: seen.append(y.min().item()))
    result = accelerate(model.eval(), X)
    seen.clear()
    result(X)
    assert seen[0] < 0
    assert "hooks" in reasons(result)["bn"]


def test_a_norm_that_is_not_ours_to_know_is_kept():
    class Odd(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 2

    result = accelerated(nn.Sequential(nn.Conv2d(3, 4, 1), Odd(4), nn.ReLU()))
    assert [entry.action for entry in changes(result)] == ["kept"]


def test_in_place_keeps_parameters_and_buffers():
    model = residual_net()
    parameters, buffers = list(model.parameters()), list(model.buffers())
    assert accelerate(model, X, inplace=True) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))


@pytest.mark.parametrize("how", ["deepcopy", "save and load"])
def test_a_rewritten_block_is_copied_and_saved_with_its_own_parameters(how):
    result = accelerate(randomized(residual_net()).eval(), X)
    if how == "deepcopy":
        other = copy.deepcopy(result)
    else:
        file = io.BytesIO()
        torch.save(result, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    close(outputs(other, X), outputs(result, X), 0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert outputs(other, X)[0].abs().max() == 0
    assert outputs(result, X)[0].abs().max() > 0


def test_an_accelerated_model_folds_and_exports():
    model = randomized(residual_net()).eval()
    result = fold(accelerate(model, X), X)
    close(outputs(result, X), outputs(model, X), 1e-5)
    assert {entry.action for entry in changes(result).of("fold")} == {"replaced"}
    program = torch.export.export(result, (X,))
    assert not [node for node in program.graph.nodes if "batch_norm" in str(node.target)]


def test_an_accelerated_model_converts_on():
    result = accelerate(residual_net(), X)
    group = convert(result, "group")
    assert type(group[3].bn2) is layers.GroupNorm
    group(X)


def test_a_model_that_changes_is_given_back_unfused():
    class Looks(nn.Module):
        """Its value depends on what its child's forward is."""

        def __init__(self):
            super().__init__()
            self.child = Block(FUSED["relu module"])

        def forward(self, x):
            return self.child(x) * (2 if "forward" in self.child.__dict__ else 1)

    result = accelerated(Looks())
    assert "fusion undone" in reasons(result)["child.bn"]
    assert "forward" not in result.child.__dict__
    assert type(result.child.bn) is layers.BatchNorm2d


def test_a_batch_that_cannot_train_is_enough():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.ReLU())
    result = accelerate(model, X[:1])
    assert reasons(result)["1"].startswith("fused with relu")


def test_a_rewritten_block_compiles_without_a_graph_break():
    model = randomized(residual_net()).eval()
    compiled = torch.compile(accelerate(model, X), backend="eager", fullgraph=True)
    close(outputs(compiled, X), outputs(model, X), 1e-5)


@pytest.mark.parametrize("operation", [accelerate, fold], ids=["accelerate", "fold"])
def test_a_model_that_is_compiled_already_is_seen_as_it_is_written(operation):
    model = torch.compile(randomized(residual_net()).eval(), backend="eager")
    expected = outputs(model, X)
    result = operation(model, X)
    close(outputs(result, X), expected, 1e-5)
    assert {entry.action for entry in changes(result)} == {"replaced"}


class ConvNorm(nn.Module):
    """A container that is no nn.Sequential and may end with a norm, as in Hugging Face's ResNet and RegNet."""

    def __init__(self, activation):
        super().__init__()
        self.convolution, self.normalization = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, eps=3e-4)
        self.activation = activation

    def forward(self, input):
        return self.activation(self.normalization(self.convolution(input)))


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.shortcut = ConvNorm(nn.Identity())
        self.layer = nn.Sequential(nn.ReLU(inplace=True), ConvNorm(nn.SiLU()), ConvNorm(nn.Identity()))
        self.activation = nn.ReLU()

    def forward(self, hidden):
        residual = hidden * 2
        hidden = self.layer(hidden * 3)
        hidden += self.shortcut(residual)
        return self.activation(hidden)


def test_an_addition_behind_a_container_of_its_own_class_is_fused():
    result = accelerated(Layers())
    found = reasons(result)
    assert found["layer.1.normalization"].startswith("fused with silu")
    assert found["layer.2.normalization"].startswith("fused with the addition and relu")
    result.eval()
    expected = convert(result, "torch")
    for change in (
        lambda m: setattr(m.layer[2], "activation", nn.Tanh()),
        lambda m: m.layer.append(nn.Sigmoid()),
        lambda m: m.layer.__setitem__(2, nn.Conv2d(3, 3, 1)),
    ):
        torch.manual_seed(0)
        change(result.double())
        torch.manual_seed(0)
        change(expected.double())
        close(outputs(result.double(), X.double()), outputs(expected.double(), X.double()), SAME)


class LibrarySiLU(nn.Module):
    def forward(self, input):
        return input * torch.sigmoid(input)


class LibraryGELU(nn.Module):
    """The tanh approximation, written out."""

    def forward(self, input):
        return 0.5 * input * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (input + 0.044715 * input**3)))


class QuickGELU(nn.Module):
    def forward(self, input):
        return input * torch.sigmoid(1.702 * input)


class Clipped(nn.Module):
    """A SiLU but for large values."""

    def forward(self, input):
        return F.silu(input).clamp(max=50)


class StraightThrough(nn.Module):
    """ReLU's values with another slope."""

    def forward(self, input):
        return input + (F.relu(input) - input).detach()


KNOWN = {
    LibrarySiLU: "silu",
    LibraryGELU: "GELU(approximate='tanh')",
    QuickGELU: None,
    Clipped: None,
    StraightThrough: None,
}


@pytest.mark.parametrize("where", ["Sequential", "block"])
@pytest.mark.parametrize(("kind", "name"), KNOWN.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_activations_of_libraries_are_known_by_their_numbers(kind, name, where):
    model = Block(FUSED["relu module"], relu=kind())
    if where == "Sequential":
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, eps=3e-4), kind())
    result = accelerated(model)
    (reason,) = reasons(result).values()
    assert reason.startswith(f"fused with {name}" if name else "not fused")
    copied = copy.deepcopy(result).eval()
    close(outputs(copied, X.double()), outputs(convert(result, "torch").eval(), X.double()), SAME)
    assert "_normkit_computes" not in str([vars(module) for module in convert(result, "torch").modules()])


@pytest.mark.parametrize("where", ["Sequential", "block"])
def test_dropout_of_nothing_does_not_block_and_counts_when_it_drops(where):
    model = Block(lambda m, x: m.relu(m.drop(m.bn(m.conv(x)))), drop=nn.Dropout(0.0))
    if where == "Sequential":
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, eps=3e-4), nn.Dropout(0.0), nn.ReLU())
    result = accelerated(model)
    assert next(iter(reasons(result).values())).startswith("fused with relu")
    drop = result[2] if where == "Sequential" else result.drop
    drop.p = 1.0
    assert result.train()(X.double()).abs().max() == 0


@pytest.mark.parametrize("momentum", [0.3, None], ids=str)
def test_an_instance_norm_that_tracks_is_replaced_though_it_counts_its_batches(momentum: float | None) -> None:
    """torch's never count, and without a momentum never move: then it is another function."""
    norm = nn.InstanceNorm2d(6, eps=2e-3, momentum=momentum, affine=True, track_running_stats=True)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU()).eval()
    fast = accelerate(model, torch.randn(4, 3, 8, 8))
    assert [entry.action for entry in changes(fast)] == ["kept" if momentum is None else "replaced"]
    for target in ("instance", "torch"):
        assert convert(model, target)[1].momentum == momentum
