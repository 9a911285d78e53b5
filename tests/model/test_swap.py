"""A copy to work on is the model in everything, modes included."""

import pytest
import torch
from torch import nn

from normkit.model.swap import working_copy
from normkit.surgery import accelerate, changes, convert, fold
from tests.surgery.foreign import library
from tests.surgery.models import close, outputs, randomized

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own deprecations are not what is tested


def extractor(kind):
    """A feature extractor whose copies come out of deepcopy in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "torchvision":
            models = library("torchvision").models
            create = pytest.importorskip("torchvision.models.feature_extraction").create_feature_extractor
            return create(randomized(models.resnet18(weights=None)), ["layer1", "layer2"])
        timm = library("timm")
        net = timm.create_model("mobilenetv3_small_050", features_only=True, feature_cfg={"feature_cls": "fx"})
        return randomized(net)


OPERATIONS = {
    "accelerate": lambda model: accelerate(model, X),
    "convert": lambda model: convert(model, "batch"),
    "fold": lambda model: fold(model, X),
}


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_feature_extractor_stays_in_its_mode(operation, kind):
    model = extractor(kind).eval()
    expected = outputs(model, X)
    result = operation(model)
    assert not any(module.training for module in (*model.modules(), *result.modules()))
    assert changes(result).replaced
    close(outputs(result, X), expected, 1e-4)
    close(outputs(model, X), expected, 0)


def test_each_module_of_a_copy_has_the_mode_of_its_original():
    model = extractor("torchvision").eval()
    model.layer1.train()
    getattr(model.layer1, "0").bn2.eval()
    twin = working_copy(model, inplace=False)
    assert twin is not model
    modes = {name: module.training for name, module in model.named_modules()}
    assert {name: module.training for name, module in twin.named_modules()} == modes


def test_a_model_that_cannot_be_copied_says_what_to_do():
    class Held(nn.Module):
        def __deepcopy__(self, memo):
            raise TypeError("no")

    with pytest.raises(RuntimeError, match=r"Held cannot be copied \(TypeError: no\); pass inplace=True"):
        working_copy(Held(), inplace=False)
    model = Held()
    assert working_copy(model, inplace=True) is model
