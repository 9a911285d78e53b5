# %% [tutorial] backward
# %% [markdown]
# [[## Plot it: four slips and the truth || ## 画出来：四个错误与真相]]
#
# [[The six formulas with a slip made on purpose, against autograd (black marks). Two of the slips are easy to overlook on
# such a picture: that is why gradients are checked by numbers. Change `x` and `dy`. ||
# 六个公式，故意犯一个错，对照 autograd（黑色标记）。其中两个错误在图上很难看出来：所以梯度要用数字来检验。改一改 `x` 和
# `dy`。]]
# %%
import matplotlib.pyplot as plt

x = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
dy = torch.tensor([1.0, -0.5, 0.3, 0.8], dtype=torch.float64)
gamma, eps, m = 1.5, 0.1, 4


def dx_by_hand(slip: str = "") -> torch.Tensor:
    mean, var = x.mean(), x.var(correction=0)
    root = var.sqrt() + eps if slip == "eps outside the root" else (var + eps).sqrt()
    dxhat = dy * gamma
    dvar = (dxhat * (x - mean)).sum() * -0.5 / root**3 if slip != "no path through var" else 0
    dmean = -(dxhat / root).sum() if slip != "no path through mean" else 0
    return dxhat / root + dvar * 2 * (x - mean) / (m - 1 if slip == "m - 1 for m" else m) + dmean / m


inputs = x.clone().requires_grad_()
y = nn.functional.batch_norm(inputs[:, None], None, None, torch.full((1,), gamma).double(), training=True, eps=eps)
(truth,) = torch.autograd.grad(y[:, 0], inputs, dy)
SLIPS = ("no path through mean", "no path through var", "m - 1 for m", "eps outside the root")
figure, axes = plt.subplots(1, 5, figsize=(11, 2.4), sharey=True, layout="constrained")
for axis, slip in zip(axes, ("", *SLIPS), strict=True):
    axis.bar(range(4), dx_by_hand(slip), color="C0" if not slip else "C1")
    axis.plot(range(4), truth, "k_", markersize=18)
    axis.set(title=slip or "right", xticks=[])
plt.show()


# %% [exercise]
# %%
def check(*found: str) -> None:
    """Name the slips whose dx does not add up to 0."""
    print("right" if set(found) == {s for s in SLIPS if dx_by_hand(s).sum().abs() > 1e-9} else "not yet")


check("eps outside the root")  # yours: one or more of SLIPS
# %% [answer]
check("no path through mean")
