# %% [markdown]
# # 15. Gemma 1, 2 and 3
#
# After this you can say what changed from Gemma 1 to 2 to 3 and why, read the differences off a config, and compute a
# model's parameters and the memory of its cache. About 15 minutes. In the [Gemma 2
# report](https://arxiv.org/abs/2408.00118): section 2 and tables 1 and 2; beside it the reports of [Gemma
# 1](https://arxiv.org/abs/2403.08295) and [Gemma 3](https://arxiv.org/abs/2503.19786), table 1 of each.
#
# Before this: [14. Pruning and healing](14_pruning_and_healing.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from support import check, lines
from support.exercises import gemma_1_2_and_3 as exercises
from support.plots import use_style

from gemma_np.checkpoints.random_weights import random_weights
from gemma_np.config import GLOBAL, LOCAL, RELEASED, GemmaConfig, layer_pattern
from gemma_np.gemma import Gemma
from gemma_np.memory import cache_bytes
from gemma_np.model.attention import attention
from gemma_np.model.block import block, pre_feedforward_name
from gemma_np.model.records import RECORDS, record_shapes

use_style()
print(f"{len(RELEASED)} released text models:", *RELEASED)

# %% [markdown]
# No weights are needed here: everything comes from the configs, which are part of the package, and from small models
# with random weights. The names are Google's; "gemma-2b" is the 2B of Gemma 1, and "gemma-2-2b" that of Gemma 2.
#
# ## Side by side: the sizes
#
# The letters are those of all the tutorials: D channels, H query heads, K key-value heads, h channels per head, F
# channels of the feed-forward, V tokens.

# %%
print(f"{'model':13} layers     D   H   K    h      F       V  context")
for name, c in RELEASED.items():
    print(
        f"{name:13} {c.num_hidden_layers:6} {c.hidden_size:5} {c.num_attention_heads:3} {c.num_key_value_heads:3} {c.head_dim:4} "
        f"{c.intermediate_size:6} {c.vocab_size:7} {c.max_position_embeddings:8}"
    )

heads = {name: (c.num_attention_heads, c.num_key_value_heads) for name, c in RELEASED.items()}
assert heads["gemma-2b"] == (8, 1) and heads["gemma-7b"] == (16, 16)
assert all(H == 2 * K for name, (H, K) in heads.items() if name.startswith("gemma-2-"))
assert {c.vocab_size for c in RELEASED.values()} == {256_000, 262_144}

# %% [markdown]
# - **Heads.** Gemma 1 had either one key-value head for all query heads (*multi-query attention*, the 2B) or one for
#   each (*multi-head attention*, the 7B). Gemma 2 is in between: two query heads share one. In the small models of
#   Gemma 3, four share one.
# - **Vocabulary.** Gemma 3 has a new, slightly larger one.
# - **Context.** 8,192 tokens in Gemma 1 and 2. Gemma 3 has up to 131,072, and most of its other changes serve that.
#
# The head is tied in all of them: there is one matrix with V rows, the embedding.

# %%
for c in RELEASED.values():
    assert [name for name, shape in c.weight_shapes() if c.vocab_size in shape] == ["model.embed_tokens.weight"]

# %% [markdown]
# ## Side by side: how they compute

# %%
print(
    f"{'model':13} local:global  window  RoPE base local / global   caps     norms per layer  q and k norms  scores / sqrt of"
)
for name, c in RELEASED.items():
    local_per_global = c.layer_types.index(GLOBAL)  # local layers before the first global one
    bases = {
        kind: c.rope(c.layer_types.index(kind)) for kind in (LOCAL, GLOBAL) if kind in c.layer_types
    }  # (base, divisor)
    shown = " / ".join(f"{base:,.0f}" for base, _ in bases.values()) + (", p/8" if bases[GLOBAL][1] == 8 else "")
    caps = f"{c.attn_logit_softcapping:.0f}, {c.final_logit_softcapping:.0f}" if c.attn_logit_softcapping else "none"
    norms = 4 if c.has_post_norms else 2
    print(
        f"{name:13} {local_per_global}:1           {c.sliding_window or '-':>6}  {shown:25}  {caps:8} {norms:13}"
        f"  {'yes' if c.has_qk_norm else 'no':13}  {c.query_pre_attn_scalar}"
    )

for name, c in RELEASED.items():
    local_per_global = {"gemma": 0, "gemma2": 1, "gemma3_text": 5}[c.model_type]
    assert c.layer_types == layer_pattern(c.num_hidden_layers, local_per_global)
    assert c.query_pre_attn_scalar == (c.hidden_size / c.num_attention_heads if name.endswith("27b") else c.head_dim)

# %% [markdown]
# ("p/8": positions are divided by 8 on global layers.) From top to bottom, the table shows three generations:
#
# - **Gemma 1** is plain: every layer sees everything, there are two norms per layer, and nothing bounds the scores.
# - **Gemma 2** makes every second layer local ([tutorial 5](05_local_and_global_layers.ipynb)), also normalizes the
#   outputs of attention and feed-forward, and caps scores and logits ([tutorial 6](06_soft_capping.ipynb)).
# - **Gemma 3** has five local layers for each global one, with a smaller window; a second RoPE base for the global
#   layers, which keeps distant positions apart ([tutorial 3](03_positions_and_rope.ipynb)); and norms of queries and
#   keys instead of the caps.
# - The scores are divided by $\sqrt{h}$, except in the two 27B models, which use $\sqrt{D / H}$.

# %%
figure, axes = plt.subplots(figsize=(7, 3.6))
for row, c in enumerate(RELEASED.values()):
    for kind, colour in ((LOCAL, "C4"), (GLOBAL, "C0")):
        layers = [layer for layer in range(c.num_hidden_layers) if c.layer_types[layer] == kind]
        label = {LOCAL: "local", GLOBAL: "global"}[kind] if row == len(RELEASED) - 1 else None
        axes.scatter(layers, [row] * len(layers), marker="s", s=22, color=colour, label=label)
axes.set(yticks=range(len(RELEASED)), yticklabels=RELEASED, xlabel="layer", xlim=(-1, 63))
axes.invert_yaxis()
axes.set_title("Which layers are global")
axes.legend(loc="upper right")
plt.show()

local = {name: sum(kind == LOCAL for kind in c.layer_types) for name, c in RELEASED.items()}
print(
    "local layers:",
    {name: f"{local[name]} of {RELEASED[name].num_hidden_layers}" for name in ("gemma-2-9b", "gemma-3-12b")},
)
assert local["gemma-7b"] == 0 and 2 * local["gemma-2-9b"] == 42 and local["gemma-3-12b"] == 40

# %% [markdown]
# ## Where the parameters are

# %%
counts = {name: c.parameter_count() for name, c in RELEASED.items()}
totals = {name: sum(parts.values()) for name, parts in counts.items()}
labels = [f"{name}  ({total / 1e9:.2f} B)" for name, total in totals.items()]

figure, axes = plt.subplots(figsize=(7, 4))
left = np.zeros(len(RELEASED))
for colour, part in enumerate(("embedding", "attention", "feed-forward")):
    shares = np.array([100 * counts[name][part] / totals[name] for name in RELEASED])
    axes.barh(labels, shares, left=left, color=f"C{colour}", label=part)
    left += shares
axes.invert_yaxis()
axes.set(xlabel="share of the parameters (%); the norms are too few to be seen", xlim=(0, 100))
axes.set_title("Where the parameters are")
axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.3, -0.14))
plt.show()

print(f"of Gemma 3 270M, {100 * counts['gemma-3-270m']['embedding'] / totals['gemma-3-270m']:.0f} % is the embedding")
assert counts["gemma-3-270m"]["embedding"] > 0.6 * totals["gemma-3-270m"]
assert all(parts["feed-forward"] > parts["attention"] for parts in counts.values())
assert all(parts["norms"] < 0.001 * totals[name] for name, parts in counts.items())

# %% [markdown]
# The feed-forward is always larger than attention. The vocabulary is the same for small and large models, so the
# smallest model is mostly embedding.
#
# ## The cost of a long context
#
# While a model generates text, it keeps the keys and values of all tokens that may still be looked at ([tutorial
# 9](09_cache_and_generation.ipynb)). Of $n$ tokens, layer $l$ keeps $\min(n, W_l)$, where $W_l$ is its window, and no
# limit on a global layer. So, in float32,
#
# $$\mathrm{bytes} = \sum_l 2 \cdot K \cdot h \cdot \min(n, W_l) \cdot 4$$

# %%
lines(cache_bytes, "per_token", "windows =", "return")

# %% [markdown]
# Three models of similar size, up to the context of each; dashed is the last one if all its layers were global:

# %%
figure, axes = plt.subplots(figsize=(7, 3.8))
for colour, name in enumerate(("gemma-7b", "gemma-2-9b", "gemma-3-12b")):
    c = RELEASED[name]
    lengths = 2 ** np.arange(8, round(math.log2(c.max_position_embeddings)) + 1)
    axes.plot(
        lengths, [cache_bytes(c, int(n)) / 1e9 for n in lengths], "o-", color=f"C{colour}", markersize=4, label=name
    )
gemma3 = RELEASED["gemma-3-12b"]
all_global = replace(gemma3, layer_types=(GLOBAL,) * gemma3.num_hidden_layers)
gigabytes = [cache_bytes(all_global, int(n)) / 1e9 for n in lengths]
axes.plot(lengths, gigabytes, "--", color="C2", label="gemma-3-12b, all layers global")
axes.set_xscale("log", base=2)
axes.set(yscale="log", xlabel="tokens", ylabel="keys and values (GB, float32)", xticks=2 ** np.arange(8, 18))
axes.set(xticklabels=[256, 512, "1K", "2K", "4K", "8K", "16K", "32K", "64K", "128K"])
axes.set(yticks=(0.1, 1, 10, 100), yticklabels=("0.1", "1", "10", "100"), title="The memory of the cache")
axes.legend()
plt.show()

at_end, as_global = cache_bytes(gemma3, 131_072), cache_bytes(all_global, 131_072)
print(
    f"Gemma 3 12B at 131,072 tokens: {at_end / 1e9:.1f} GB; all global: {as_global / 1e9:.1f} GB, {as_global / at_end:.1f} times as much"
)
at_8192 = {name: cache_bytes(RELEASED[name], 8192) / 1e9 for name in ("gemma-7b", "gemma-2-9b", "gemma-3-12b")}
print("at 8,192 tokens:", {name: f"{gigabytes:.1f} GB" for name, gigabytes in at_8192.items()})
assert 5.5 < as_global / at_end < 6
assert at_8192["gemma-7b"] > at_8192["gemma-2-9b"] > at_8192["gemma-3-12b"]

# %% [markdown]
# The curve of Gemma 3 bends where the windows are full, at 1,024 tokens; from there on only one layer in six grows, so
# at the far end it takes little more than a sixth. The 7B costs most, because it keeps a key-value head for each query
# head. At 8,192 tokens each newer, larger model needs *less* memory than the one before.
#
# ## What bounds the scores
#
# Nothing in the formula of attention keeps a score $q \cdot k$ from growing during training. When scores are large,
# softmax puts all probability on one key and its gradient vanishes. Gemma 2 caps the score; Gemma 3 normalizes $q$ and
# $k$ [h] first, so their lengths, and therefore the score, cannot grow with the matrices that compute them:
#
# $$\text{Gemma 2: } 50 \tanh\!\Big(\frac{q \cdot k}{50 \sqrt{s}}\Big) \qquad
# \text{Gemma 3: } \frac{\mathrm{norm}(q) \cdot \mathrm{norm}(k)}{\sqrt{s}} \qquad s = \texttt{query\_pre\_attn\_scalar}$$
#
# All of it is one function; config fields select the differences:

# %%
lines(attention, "config.rope", "has_qk_norm", "rms_norm(", "softcapping", "config.window")

# %% [markdown]
# The same holds for the norms of a layer. Gemma 1 has a trap here: its checkpoint has a weight named
# `post_attention_layernorm`, but it is the norm *before the feed-forward*, named after its place. In Gemma 2 and 3 the
# same name means another norm.

# %%
lines(block, "has_post_norms", 'tape("post_', 'tape("pre_')

# %%
lines(pre_feedforward_name, "return")

# %% [markdown]
# Here are three models of one size, one of each kind, with random weights:

# %%
sizes = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 12, "head_dim": 16, "intermediate_size": 128}
sizes |= {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 16,
    "max_position_embeddings": 64,
}
tiny = {}
for title, name, local_per_global, window in (
    ("Gemma 1", "gemma-2b", 0, None),
    ("Gemma 2", "gemma-2-2b", 1, 8),
    ("Gemma 3", "gemma-3-1b", 5, 8),
):
    tiny_config = replace(
        RELEASED[name], layer_types=layer_pattern(12, local_per_global), sliding_window=window, **sizes
    )
    tiny[title] = Gemma(tiny_config, dict(random_weights(tiny_config, "float32")), tokenizer=None)

ids = np.random.default_rng(0).integers(100, size=40)
records = {title: some_model.trace(ids) for title, some_model in tiny.items()}
for title, record in records.items():
    assert {name: value.shape for name, value in record.items()} == record_shapes(tiny[title].config, len(ids))

print(f"{'record (layer 0, or the model)':36}", *tiny)
for row in RECORDS:
    present = [row.name.replace("*", "0") in record for record in records.values()]
    if not all(present):
        print(f"{row.name:36}", *("   yes " if here else "   -   " for here in present))
print(f"and {sum(not row.needs for row in RECORDS)} that all three have")
assert "layers.0.self_attn.q_norm" in records["Gemma 3"] and "logits_capped" not in records["Gemma 3"]

# %% [markdown]
# Now suppose that training goes wrong: multiply the query and key matrices by a factor, and look at the largest score
# that reaches softmax in layer 0. (Random weights are not trained, but they show the effect of each formula.)


# %%
def largest_score(some_model, factor):
    scaled = {name: factor * w if "q_proj" in name or "k_proj" in name else w for name, w in some_model.weights.items()}
    record = Gemma(some_model.config, scaled, tokenizer=None).trace(ids)
    capped = "layers.0.self_attn.scores_capped"
    return np.abs(record.get(capped, record["layers.0.self_attn.scores"])).max()


factors = 2.0 ** np.arange(6)
largest = {title: [largest_score(some_model, factor) for factor in factors] for title, some_model in tiny.items()}

figure, axes = plt.subplots()
for (title, line), how in zip(largest.items(), ("no bound", "soft cap of 50", "norms of q and k"), strict=True):
    axes.plot(factors, line, "o-", label=f"{title}: {how}")
axes.set_xscale("log", base=2)
axes.set(yscale="log", xlabel="factor of the query and key matrices", ylabel="largest score at the softmax")
axes.set(
    xticks=factors,
    xticklabels=[f"{factor:.0f}" for factor in factors],
    title="The effect of growing weights on the scores",
)
axes.set(yticks=(1, 10, 100, 1000), yticklabels=("1", "10", "100", "1,000"), ylim=(1, 6000))
axes.legend()
plt.show()

for title, line in largest.items():
    print(f"{title}: {line[0]:.1f} -> {line[-1]:.1f}")
np.testing.assert_allclose(largest["Gemma 1"][-1] / largest["Gemma 1"][0], factors[-1] ** 2, rtol=1e-4)
assert 49 < max(largest["Gemma 2"]) <= 50
np.testing.assert_allclose(largest["Gemma 3"], largest["Gemma 3"][0], rtol=1e-3)

# %% [markdown]
# Gemma 1's scores grow with the square of the factor. Gemma 2's stop at the cap. Gemma 3's do not change, because the
# norm removes the factor; and fused attention kernels, many of which had no cap, need no special case.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** Which layers are local?


# %%
def local_layers(layers, local_per_global):
    """two whole numbers -> list of bool, one for each layer, True for a local one

    Hint: count the layers from 1; which are global if each comes after one local layer? After five?
    """
    ...


check(local_layers, exercises.LOCAL_LAYERS)

# %% [markdown]
# **2.** How many bytes do the keys and values of a text take, in float32?


# %%
def kept_bytes(config, length):
    """a GemmaConfig and a number of tokens -> number of bytes

    Hint: config.window(layer) is the window of a layer, or None.
    """
    ...


check(kept_bytes, exercises.CACHE_BYTES)

# %% [markdown]
# **3.** Count the parameters, as table 2 of the report does. This needs everything that you know about the layers of
# Gemma 2, and the differences in 1 and 3. `GemmaConfig` has these fields:

# %%
lines(GemmaConfig, "_size: int", "layers: int", "heads: int", "head_dim: int", "def has_")


# %%
def parameters(config):
    """a GemmaConfig -> (parameters of the embedding, of all the rest)

    Hint: a layer has q, k, v and o, then gate, up and down, then its norms, one vector each. One norm follows the last layer.
    """
    ...


check(parameters, exercises.PARAMETERS)

# %% [markdown]
# The solutions are in [solutions/15_gemma_1_2_and_3.py](solutions/15_gemma_1_2_and_3.py).
#
# ## Further reading
#
# - [gemma_np/config.py](../gemma_np/config.py): all differences in one file.
# - [gemma_np/memory.py](../gemma_np/memory.py), or `gemma-np info --model gemma-2-27b`: the memory of weights, cache
#   and activations in each format.
# - Ainslie et al., [GQA](https://arxiv.org/abs/2305.13245); the [Gemma 3 report](https://arxiv.org/abs/2503.19786),
#   section 2.
#
# Next: [16. Finding the bug](16_finding_the_bug.ipynb).
