# %% [tutorial] products
# %% [markdown]
# [[## Plot it: one gradient on its way back || ## 画出来：一个梯度的归途]]
#
# [[Thirty ReLU layers at their start. Each line is the size of the gradient behind each layer, over that behind the last.
# Without a norm (left) the gain decides everything; with batch norm (right) all gains give one line, and this line still
# rises towards the first layer. Try `nn.Tanh` and `nn.Sigmoid`. ||
# 三十层 ReLU，刚初始化。每条线是各层之后的梯度大小，相对于最后一层。没有归一化（左），增益决定一切；有批归一化（右），
# 各种增益落在同一条线上，而这条线朝第一层仍在上升。试试 `nn.Tanh` 和 `nn.Sigmoid`。]]
# %%
import matplotlib.pyplot as plt

DEPTH, WIDTH = 30, 64
activation = nn.ReLU


def sizes(gain: float, normalized: bool) -> torch.Tensor:
    """The root mean square of dL/dh behind each layer, over that of the last."""
    torch.manual_seed(0)
    h, hidden = torch.randn(64, WIDTH, dtype=torch.float64), []
    for _ in range(DEPTH):
        w = (gain / WIDTH**0.5 * torch.randn(WIDTH, WIDTH, dtype=torch.float64)).requires_grad_()
        z = h @ w.T
        h = activation()(nk.functional.batch_norm(z, None, None, training=True) if normalized else z)
        hidden.append(h)
    gradients = torch.autograd.grad((h * torch.randn_like(h)).sum(), hidden)
    found = torch.stack([g.square().mean().sqrt() for g in gradients])
    return found / found[-1]


figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
for axis, normalized in zip(axes, (False, True), strict=True):
    for gain in (0.7, 1.0, 2**0.5, 2.0):
        axis.plot(range(1, DEPTH + 1), sizes(gain, normalized), label=f"gain {gain:.2f}")
    axis.set(title="batch norm" if normalized else "no norm", yscale="log", xlabel="layer")
axes[0].set_ylabel("gradient over the last one")
axes[0].legend()
plt.show()


# %% [exercise]
# %%
def check(gain: float) -> None:
    first = sizes(gain, normalized=False)[0].item()
    print("right" if 0.1 < first < 10 else "not yet", f"first over last: {first:.2g}")


check(gain=1.0)  # yours: the gain at which ReLU without a norm neither fades nor explodes
# %% [answer]
check(gain=2**0.5)
