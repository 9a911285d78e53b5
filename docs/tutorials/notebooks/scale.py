# %% [tutorial] scale
# %% [markdown]
# [[## Plot it: the gradient shrinks by 1/a, until eps is felt || ## 画出来：梯度按 1/a 缩小，直到 eps 起作用]]
#
# [[The length of the gradient of a·w for a from 0.01 to 100, at three eps. Dashed: exactly 1/a. On the left, where the
# variance of a·w·u has become as small as eps, the law ends. Guess where the line of `eps = 0.1` bends. ||
# a 从 0.01 到 100 时 a·w 的梯度长度，三种 eps。虚线：精确的 1/a。左边，当 a·w·u 的方差小到和 eps 差不多，规律就失效了。
# 猜一猜 `eps = 0.1` 的那条线在哪里弯。]]
# %%
import matplotlib.pyplot as plt

u = torch.randn(256, 3, dtype=torch.float64)
w = torch.tensor([0.5, -0.4, 0.3], dtype=torch.float64)
target = torch.randn(256, dtype=torch.float64)


def normalized(a: float, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """BN((a w) u), and the length of the gradient of a w."""
    scaled = (a * w).requires_grad_()
    y = nk.BatchNorm1d(1, eps=eps).double()((u @ scaled)[:, None])[:, 0]
    (gradient,) = torch.autograd.grad((y * target).sum(), scaled)
    return y.detach(), gradient.norm()


scales = torch.logspace(-2, 2, 41).tolist()
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for eps in (1e-5, 1e-3, 0.1):
    axis.loglog(scales, [normalized(a, eps)[1] for a in scales], label=f"eps = {eps:g}")
axis.loglog(scales, [normalized(1, 1e-12)[1] / a for a in scales], "--", color="grey", label="1/a")
axis.set(xlabel="a", ylabel="length of the gradient")
axis.legend()
plt.show()


# %% [exercise]
# [[With the default `eps = 1e-5`: at which a are the outputs 1 % smaller than they should be? ||
# 默认的 `eps = 1e-5` 下，a 等于多少时输出比应有的小 1%？]]
# [[Outputs are smaller by `sqrt(v / (v + eps))` with `v = a² var(w·u)`; this is 0.99 at `v = 0.99² eps / (1 - 0.99²)`. ||
# 输出缩小为 `sqrt(v / (v + eps))` 倍，其中 `v = a² var(w·u)`；当 `v = 0.99² eps / (1 - 0.99²)` 时恰为 0.99。]]
# %%
def check(a: float) -> None:
    share = (normalized(a, 1e-5)[0].norm() / normalized(1, 1e-12)[0].norm()).item()
    print("right" if abs(share - 0.99) < 0.001 else "not yet", f"the outputs are {share:.3f} of what they should be")


check(a=1.0)  # yours
# %% [answer]
check(a=(0.99**2 * 1e-5 / (1 - 0.99**2) / (u @ w).var(correction=0).item()) ** 0.5)
