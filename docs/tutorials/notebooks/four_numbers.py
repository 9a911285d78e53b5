# %% [tutorial] standardize session affine
# %% [markdown]
# [[## Plot it: shift and scale cancel || ## 画出来：平移和缩放会抵消]]
#
# [[Four versions of one batch: as it is, moved by 5, halved, and turned into 10x - 3. The inputs (left) lie in different
# places; the outputs (right) lie in one. Change `versions` and run the cell again. What does a negative factor do? ||
# 同一批数据的四个版本：原样、平移 5、减半、变成 10x - 3。输入（左）各在各处，输出（右）都在同一处。改一改 `versions`
# 再运行。负的系数会怎样？]]
# %%
import matplotlib.pyplot as plt

x = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
bn = nk.BatchNorm1d(1).double()
versions = {"x": (1, 0), "x + 5": (1, 5), "x / 2": (0.5, 0), "10 x - 3": (10, -3)}
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True, layout="constrained")
for row, (a, b) in enumerate(versions.values()):
    values = a * x + b
    with torch.no_grad():
        outputs = bn(values[:, None])[:, 0]
    left.scatter(values, [row] * 4, c=range(4), cmap="viridis")
    right.scatter(outputs, [row] * 4, c=range(4), cmap="viridis")
left.set(title="inputs", yticks=range(len(versions)), yticklabels=list(versions))
right.set(title="outputs of BatchNorm1d")
plt.show()


# %% [exercise]
# %%
def check(gamma: float, beta: float) -> None:
    with torch.no_grad():
        bn.weight.fill_(gamma)
        bn.bias.fill_(beta)
        outputs = bn(x[:, None])[:, 0]
    right = torch.allclose(outputs, x, atol=0.01)
    print("right" if right else "not yet", [round(v, 2) for v in outputs.tolist()])


check(gamma=1.0, beta=0.0)  # yours: change the two numbers
# %% [answer]
check(gamma=(9.5 + 1e-5) ** 0.5, beta=4.0)
