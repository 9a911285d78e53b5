# %% [tutorial] taylor erased
# %% [markdown]
# [[## Plot it: promise and deed || ## 画出来：承诺与实际]]
#
# [[The change of y that the gradient promises (dashed) and the one that a step makes, for 16 equal weights. Both are
# negative while all goes well; y shall fall. Where the line crosses 0 the step goes the wrong way. Make the chain deeper,
# or odd. || 16 个相同权重时，梯度承诺的 y 的变化（虚线）和一步真正造成的变化。一切正常时两者都是负的：目标是让 y 下降。
# 曲线穿过 0 的地方，这一步就走反了。把链加深，或改成奇数层试试。]]
# %%
import matplotlib.pyplot as plt

depth, rate = 16, 0.03
weights = torch.linspace(0.8, 1.5, 141, dtype=torch.float64)
promised = [-rate * depth * w ** (2 * depth - 2) for w in weights.tolist()]
actual = [step(depth, w, rate) for w in weights.tolist()]
figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
axis.plot(weights, promised, "--", color="grey", label="promised")
axis.plot(weights, actual, label="actual")
axis.fill_between(weights, 0, actual, where=[v > 0 for v in actual], alpha=0.3, color="C1", label="wrong way")
axis.axvline((2 / rate) ** (1 / (depth - 2)), color="C1", linestyle=":")  # eps w^(m-2) = 2
axis.set(yscale="symlog", xlabel="weight w", ylabel="change of y", ylim=(-1e6, 1e6))
axis.legend()
plt.show()


# %% [exercise]
# %%
def check(pairs: int) -> None:
    # count them: torch differentiates y = w1 w2 ... w16 twice, and each pair i < j has one entry that is not 0
    hessian = torch.autograd.functional.hessian(lambda w: w.prod(), torch.ones(16, dtype=torch.float64))
    print("right" if pairs == int((hessian.triu(1) != 0).sum()) else "not yet")


check(pairs=16)  # yours: terms of second order in a chain of 16
# %% [answer]
check(pairs=16 * 15 // 2)
