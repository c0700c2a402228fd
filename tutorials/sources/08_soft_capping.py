# %% [markdown]
# # 8. Soft-capping
#
# After this you can bound scores as Gemma 2 does, and say why it bends them instead of clipping them, why the mask
# comes after the cap, and what happens to a model without its caps. About 20 minutes. In the [Gemma 2
# report](https://arxiv.org/abs/2408.00118): section 2, "Logit soft-capping"; the idea is from [Bello et
# al.](https://arxiv.org/abs/1611.09940).
#
# Before this: [7. Local and global layers](07_local_and_global_layers.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import numpy as np
from support import check, check_file, lines
from support.exercises import soft_capping as exercises
from support.figures import soft_capping as figures
from support.plots import pieces, use_style
from support.sliders import Slider, explore

import gemma_np
from gemma_np.config import RELEASED
from gemma_np.model.attention import attend
from gemma_np.model.attention_mask import attention_mask, masked_softmax, masked_softmax_backward
from gemma_np.model.rms_norm import rms_norm
from gemma_np.model.soft_cap import soft_cap, soft_cap_backward
from gemma_np.model.transformer import lm_head
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes

# %%
verse = """To be, or not to be, that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles,
And by opposing end them. To die, to sleep,
No more; and by a sleep to say we end
The heart-ache, and the thousand natural shocks
That flesh is heir to: 'tis a consummation
Devoutly to be wish'd. To die, to sleep.
To sleep, perchance to dream. Ay, there's the rub,"""

# %%
use_style()
model = gemma_np.load()
attention_cap, final_cap = model.config.attn_logit_softcapping, model.config.final_logit_softcapping
ids = model.tokenizer.encode(verse)
T, layers = len(ids), range(model.config.num_hidden_layers)
record = model.trace(ids)
print(f"caps: {attention_cap:g} for the scores of attention, {final_cap:g} for the logits")

# %% [markdown]
# ## The problem: softmax of large scores stops learning
#
# A score is a dot product, and nothing bounds it: doubling a query and a key makes it four times as large. Softmax
# turns large differences into near certainty. A probability of almost 1 no longer changes, so the scores get almost no
# gradient. Here are five made-up scores, multiplied by a growing factor; we look at their probabilities, and at the
# gradient that reaches them when the second one should grow:

# %%
base_scores = np.array([1.0, 0.6, 0.2, -0.3, -1.0])
everything = np.ones((1, 5), bool)
wish = np.array([0.0, 1.0, 0.0, 0.0, 0.0])  # the gradient of the probabilities


def gradient(scores, cap=None):
    """Scores [5] -> their probabilities [5], and the gradient that reaches them [5]."""
    capped = soft_cap(scores, cap) if cap else scores
    probs = masked_softmax(capped[None], everything)[0]
    back = masked_softmax_backward(wish, probs)
    return probs, soft_cap_backward(back, capped, cap) if cap else back


# %%
for factor in (1, 10, 300):
    for cap in (None, attention_cap):
        probs, back = gradient(base_scores * factor, cap)
        print(f"times {factor:3}, cap {cap or 'none':>4}: probabilities {probs.round(3)}", end=", ")
        print(f"gradient {np.linalg.norm(back):.1e}")

# %%
factors = np.geomspace(1, 600, 120)
lengths = {}
for label, cap in (("not capped", None), (f"capped at {attention_cap:g}", attention_cap)):
    lengths[label] = [np.linalg.norm(gradient(factor * base_scores, cap)[1]) for factor in factors]
figures.gradients(factors, lengths)  # the largest of the base scores is 1

bare, held = (np.linalg.norm(gradient(300 * base_scores, cap)[1]) for cap in (None, attention_cap))
print(f"at a largest score of 300: {bare:.0e} without the cap, {held:.0e} with it")
weakest = np.linalg.norm(gradient(attention_cap * base_scores, attention_cap)[1])
print(f"at {attention_cap:g}: {weakest:.0e} with it")

# %% tags=["check"]
assert bare < 1e-40 and held > 1e-4
assert 1e-6 < weakest < 1e-4

# %% [markdown]
# Without a cap the gradient soon vanishes, and the head cannot change what it looks at. With the cap it first falls in
# almost the same way, and then recovers: scores far above the cap are pressed together, so none of them wins
# completely. This does not cure everything: for scores about as large as the cap, the gradient is still small, about a
# hundred-thousandth. The cap puts an end to growth: no score can exceed 50, however long the vectors become.
#
# ## The formula
#
# $$\mathrm{cap}(x) = c \cdot \tanh\!\left(\frac{x}{c}\right)
# \qquad
# \mathrm{cap}'(x) = 1 - \tanh^2\!\left(\frac{x}{c}\right) = 1 - \left(\frac{\mathrm{cap}(x)}{c}\right)^2$$
#
# for every number of an array of any shape. $\tanh$ is nearly $x$ itself near zero, and never leaves (-1, 1); dividing
# before and multiplying after turns that into "nearly $x$ while $x$ is small relative to $c$" and $(-c, c)$. For a cap
# of 50 and three scores:
#
# **Predict:** The cap is 50. What becomes of a score of 50?
#
# <details><summary>Reveal</summary>
#
# 38, because $\tanh 1$ is 0.76. The cap is a bound that no score reaches; it bends long before.
#
# </details>

# %%
for score in (5.0, 50.0, 500.0):
    t = np.tanh(score / 50)
    print(f"{score:5g} / 50 = {score / 50:4g}, tanh {t:.6f}, times 50 = {50 * t:10.7f}", end="; ")
    print(f"slope 1 - tanh² = {1 - t * t:.1e}")

# %% tags=["check"]
assert np.allclose(soft_cap(np.array([5.0, 50.0, 500.0]), 50.0), 50 * np.tanh([0.1, 1, 10]))

# %% [markdown]
# 5 stays nearly 5, 50 becomes 38, and 500 is pressed to just below 50. The code uses one buffer, and computes the
# derivative from the output:

# %%
lines(soft_cap, "def", "y = ", "tanh(y", "y *=")

# %%
lines(soft_cap_backward, "def", "slope")

# %% [markdown]
# ## Why not simply clip
#
# `np.clip(x, -50, 50)` also bounds scores. But beyond the bound its slope is zero: a score out there gets no gradient
# and can never come back. The slope of the soft cap gets small, but not zero.

# %%
x = np.linspace(-150, 150, 601)
capped = soft_cap(x, attention_cap)
values = {"clip": np.clip(x, -attention_cap, attention_cap), "soft cap": capped}
slope = soft_cap_backward(np.ones_like(x), capped, attention_cap)
figures.cap_and_clip(x, values, {"clip": np.abs(x) < attention_cap, "soft cap": slope})

# %% [markdown]
# Here a score starts at 120 and should come out of the cap as 30, by gradient descent on half the squared distance:
#
# **Predict:** After 200 steps, where is the score with the soft cap, and where with the clip?
#
# <details><summary>Reveal</summary>
#
# With the soft cap it is where its capped value is 30, near 35. With the clip it is still at 120: its slope is zero
# there, so it gets no gradient at all.
#
# </details>

# %%
soft, hard = np.array([120.0]), np.array([120.0])
for _ in range(200):
    y = soft_cap(soft, attention_cap)
    soft = soft - soft_cap_backward(y - 30, y, attention_cap)
    slope = np.abs(hard) < attention_cap
    hard = hard - slope * (np.clip(hard, -attention_cap, attention_cap) - 30)
print("score after 200 steps:", soft.round(1), "with the soft cap,", hard, "with the clip")

some = np.array([10.0, 50.0, 120.0, 500.0])
slopes = soft_cap_backward(np.ones(4), soft_cap(some, attention_cap), attention_cap)
print("slope at 10, 50, 120 and 500:", ", ".join(f"{slope:.1e}" for slope in slopes))

# %% tags=["check"]
np.testing.assert_allclose(soft_cap(soft, attention_cap), 30, atol=0.01)
assert hard == 120
assert slopes[0] > 0.95 and 0.01 < slopes[2] < 0.1 and slopes[3] < 1e-7

# %% [markdown]
# With the clip, the score never moves. At 500 the slope of the soft cap is almost zero as well; it only helps scores
# that are not too far off.
#
# Here are the five scores from the beginning again. Move the cap and their size.
#
# **Try:** At a largest score of 300, is the gradient smaller with a cap of 5 or with one of 100? Where is it largest?
#
# <details><summary>Reveal</summary>
#
# With 5 it is about $10^{-11}$: the cap presses the scores so far that its own slope is gone. With 100 it is about
# $10^{-3}$. It is largest at 75.
#
# </details>


# %%
def five_scores(figure, cap, largest):
    left, right = figure.subplots(1, 2)
    scores, line = largest * base_scores, np.linspace(-300, 300, 601)
    left.plot(line, soft_cap(line, cap))
    left.plot(scores, soft_cap(scores, cap), "o", color="C5")
    left.set(xlabel="score", ylabel="after the cap", ylim=(-110, 110), title=f"cap {cap:g}")
    (probs, back), (bare, bare_back) = gradient(scores, cap), gradient(scores)
    right.bar(np.arange(5) - 0.2, bare, 0.4, color="C1", label=f"no cap: gradient {np.linalg.norm(bare_back):.0e}")
    right.bar(np.arange(5) + 0.2, probs, 0.4, color="C0", label=f"capped: gradient {np.linalg.norm(back):.0e}")
    right.set(xlabel="score (largest first)", ylim=(0, 1.25), title="probability")
    right.legend(loc="upper right", fontsize=8)


explore(five_scores, cap=Slider("cap (score)", 50, 5, 100, step=5), largest=Slider("largest score", 150, 1, 300))

# %% [markdown]
# ## Two places, two caps
#
# Gemma 2 caps the scores of every attention layer, with 50, before the mask:

# %%
lines(attend, 'tape("scores"', "attn_logit_softcapping:", "soft_cap(scores", "masked_softmax(scores")

# %% [markdown]
# and the logits, with 30, as its very last step:

# %%
lines(lm_head, 'tape("logits"', "final_logit_softcapping:", "soft_cap(logits")

# %% [markdown]
# ## What the caps do to this model
#
# Here are all visible scores of the four layers and all logits. Above is how many there are before the cap, below how
# far the cap moves them. The dotted lines are the caps.

# %%
before, after = [], []
for layer in layers:
    mask = attention_mask(range(T), range(T), model.config.window(layer))  # [T, S]
    before.append(record[f"layers.{layer}.self_attn.scores"][:, mask])
    after.append(record[f"layers.{layer}.self_attn.scores_capped"][:, mask])
before, after = np.concatenate(before, axis=1).ravel(), np.concatenate(after, axis=1).ravel()
logits, logits_capped = record["logits"], record["logits_capped"]  # [T, V] each

# %%
first, last = {"scores": before, "logits": logits}, {"scores": after, "logits": logits_capped}
figures.effect_of_the_caps(first, last, caps=[attention_cap, final_cap])

print(f"scores {before.min():.1f} to {before.max():.1f}, moved by at most {np.abs(after - before).max():.1f}")
moved = logits_capped - logits  # towards zero
print(f"logits {logits.min():.1f} to {logits.max():.1f}, moved by {moved.min():.1f} to {moved.max():.1f}")

# %% tags=["check"]
assert np.abs(before).max() < attention_cap / 2 and np.median(np.abs(after - before)) < 0.01
assert np.abs(logits).max() < 0.75 * final_cap and moved.max() > 2 and 0.5 < -moved.min() < 1

# %% [markdown]
# This model hardly needs its caps. It has a million parameters, and its scores stay below half of 50, where the cap is
# almost the identity. Its lowest logits, of tokens that it rules out anyway, change by up to 3. Its highest ones change
# by less than 1, but this shows in its probabilities.
#
# ## Greedy text stays the same, probabilities do not
#
# The cap is monotonic: larger logits stay larger. So the most likely token is the same, and greedy text does not show
# whether the final cap is there. The *differences* between logits shrink, and the probabilities with them:

# %%
all_tokens = np.ones((1, logits.shape[-1]), bool)
without, with_cap = masked_softmax(logits, all_tokens), masked_softmax(logits_capped, all_tokens)  # [T, V] each

place = int(np.argmax(without.max(axis=-1) - with_cap.max(axis=-1)))
best = logits[place].argsort()[::-1][:4]
print("…" + "".join(pieces(ids[place - 3 : place + 1], model.tokenizer)))
for token, piece in zip(best, pieces(best, model.tokenizer), strict=True):
    values = f"logit {logits[place, token]:5.1f} -> {logits_capped[place, token]:5.1f}"
    print(f"  {piece:8} {values}   probability {without[place, token]:.2f} -> {with_cap[place, token]:.2f}")

figures.most_likely(without.max(axis=-1), with_cap.max(axis=-1))

# %% tags=["check"]
assert np.array_equal(without.argmax(axis=-1), with_cap.argmax(axis=-1))
assert np.all(with_cap.max(axis=-1) < without.max(axis=-1))
assert without[place].max() - with_cap[place].max() > 0.04

# %% [markdown]
# All points lie below the line: the cap makes the model a little less certain. Sampling from logits without the cap
# picks likely tokens too often.
#
# ## Cap first, then mask
#
# The mask gives hidden keys a score of $-\infty$. If the cap comes after the mask, $-\infty$ becomes $-50$, a score
# like any other. Usually $e^{-50}$ is negligible, and in this model it makes no difference. With very low scores, it
# does; the fourth key is in the future:

# %%
low = np.array([[-110.0, -130.0, -100.0, 3.0]])
hide_last = np.array([[True, True, True, False]])
right = masked_softmax(soft_cap(low, attention_cap), hide_last)
leaking = masked_softmax(soft_cap(np.where(hide_last, low, -np.inf), attention_cap), np.ones((1, 4), bool))
print("cap, then mask:", right.round(2), "  mask, then cap:", leaking.round(2))

# %% tags=["check"]
assert right[0, 3] == 0 and leaking[0, 3] > 0.05

# %% [markdown]
# ## What the mistakes cost
#
# Here is what each mistake that people made with the caps does to the bundled model: the perplexity, and the number of
# positions at which another token becomes the most likely:
#
# **Predict:** Of these five mistakes, how many raise the perplexity of the verse by more than a hundredth?
#
# <details><summary>Reveal</summary>
#
# One, the wrong formula. The other four hide.
#
# </details>

# %%
perplexity, others = {"right": model.perplexity(verse)}, {}
print(f"{perplexity['right']:8.2f}              right")
for id in ("attncap-missing", "attncap-after-mask", "finalcap-missing", "finalcap-50", "cap-formula"):
    [mistake] = (mistake for mistake in CATALOGUE if mistake.id == id)
    with inject_mistakes([mistake], model.config, [T]):
        perplexity[id] = model.perplexity(verse)
        others[id] = np.count_nonzero(model.logits(ids).argmax(axis=-1) != logits.argmax(axis=-1))
    print(f"{perplexity[id]:8.2f}  {others[id]:3} of {T}  {id}: {mistake.instead}")

# %% tags=["check"]
assert perplexity["cap-formula"] > 100 * perplexity["right"]
assert all(abs(perplexity[id] / perplexity["right"] - 1) < 0.01 for id in perplexity if id != "cap-formula")
assert max(perplexity["finalcap-missing"], perplexity["finalcap-50"]) < perplexity["right"] - 0.01
assert others["finalcap-missing"] == others["finalcap-50"] == 0

# %% [markdown]
# `x * tanh(x / cap)` is a catastrophe: it is never negative, so every score loses its sign. The others hardly show
# here; two even lower the perplexity a little. So do not test caps by reading what a small model writes: compare
# intermediates, or use scores as large as the cap, as the exercises do. For large models, reports differ: the first
# port to vLLM left out the attention cap and found that this does [not matter
# much](https://github.com/vllm-project/vllm/pull/5908); the 27B without caps in llama.cpp wrote [incoherent
# text](https://github.com/ggml-org/llama.cpp/pull/8156).
#
# ## Why it was left out, and what replaced it
#
# Fast attention kernels compute scores, softmax and weighted mean tile by tile, and never store the scores. Anything
# between the product and the softmax must be built into the kernel. At first the cap was not, and ports skipped it, or
# did without the fast kernels, until these [had it](https://github.com/vllm-project/vllm/pull/7022). Gemma 3 dropped
# both caps. It bounds the scores at their source: an RMSNorm brings queries and keys to one length before their product
# (QK-norm).

# %%
h = 256
generator = np.random.default_rng(0)
q, k = 1000 * generator.standard_normal((2, 500, h))  # [500, h] each, a thousand times too long
normed = [rms_norm(z, np.zeros(h), eps=1e-6) for z in (q, k)]
bare, bounded = np.abs(q @ k.T).max() / np.sqrt(h), np.abs(normed[0] @ normed[1].T).max() / np.sqrt(h)
print(f"largest score of 250,000: {bare:.0f} without QK-norm, {bounded:.1f} with it; the bound is {np.sqrt(h):.0f}")

# %% tags=["check"]
assert bounded < np.sqrt(h) < bare
for config in RELEASED.values():
    assert (config.attn_logit_softcapping is not None) == (config.model_type == "gemma2")
    assert config.has_qk_norm == (config.model_type == "gemma3_text")

# %% [markdown]
# Two vectors of length $\sqrt h$ have a dot product of at most $h$; divided by $\sqrt h$, that is at most $\sqrt h$,
# times the effect of the norms' weights. And the kernel needs no change, because the norms come before it. More in
# [tutorial 18](18_gemma_1_2_and_3.ipynb).
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** The cap.
#
# <details><summary>Hint 1</summary>
#
# `np.tanh` works on arrays of any shape, and returns numbers between -1 and 1.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Divide by the cap before it, multiply by the cap after it.
#
# </details>


# %%
def cap_scores(x, cap):
    """x [...], cap a number -> [...]"""
    ...


check(cap_scores, exercises.SOFT_CAP)

# %% [markdown]
# **2.** Its gradient, from the output of the cap, $y = \mathrm{cap}(x)$, which the forward pass has kept.
#
# <details><summary>Hint 1</summary>
#
# The second form of the derivative above needs no tanh.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# $\tanh(x / c)$ is `y / cap`. The slope is 1 minus its square, and `dy` is multiplied by the slope.
#
# </details>


# %%
def cap_gradient(dy, y, cap):
    """dy and y [...], cap a number -> dx [...]"""
    ...


check(cap_gradient, exercises.CAP_GRADIENT)

# %% [markdown]
# **3.** From scores to probabilities, with cap and mask in the right order.
#
# <details><summary>Hint 1</summary>
#
# Which comes first, the cap or the mask? What would the cap make of minus infinity?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A hidden key has the score `-np.inf` when the softmax is computed: `np.where(mask, capped, -np.inf)`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The softmax is that of [tutorial 6](06_attention_and_gqa.ipynb): subtract the largest of each row, `np.exp`, divide by
# the sum of the row.
#
# </details>


# %%
def capped_probs(scores, mask, cap):
    """scores [T, S], mask bool [T, S], True where a key is visible -> probabilities [T, S]"""
    ...


check(capped_probs, exercises.CAPPED_PROBS)

# %% [markdown]
# ## Now in your file
#
# Write `soft_cap`, one line. `attention` and `unembed` call it already, each with its own cap.

# %%
check_file("my_gemma.py", upto="scores_capped")

# %% [markdown]
# The solutions are in [solutions/08_soft_capping.py](solutions/08_soft_capping.py), those of your file in
# [solutions/my_gemma](solutions/my_gemma/08_soft_capping.py).
#
# ## Further reading
#
# - [gemma_np/model/soft_cap.py](../gemma_np/model/soft_cap.py), the whole file: 30 lines with its backward pass.
# - [gemma_np/model/attention.py](../gemma_np/model/attention.py): the cap among the other steps.
# - Bello et al., [Neural Combinatorial Optimization with Reinforcement Learning](https://arxiv.org/abs/1611.09940):
#   logits bounded with tanh.
# - The [Gemma 3 report](https://arxiv.org/abs/2503.19786), section 2: QK-norm in place of the caps.
#
# Next: [9. GeGLU and the block](09_geglu_and_the_block.ipynb).
