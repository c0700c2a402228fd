# %% [markdown]
# # 18. Gemma 1, 2 and 3
#
# After this you can say what changed from Gemma 1 to 2 to 3 and why, read the differences off a config, and compute a
# model's parameters and the memory of its cache. About 25 minutes. In the [Gemma 2
# report](https://arxiv.org/abs/2408.00118): section 2 and tables 1 and 2; beside it the reports of [Gemma
# 1](https://arxiv.org/abs/2403.08295) and [Gemma 3](https://arxiv.org/abs/2503.19786), table 1 of each.
#
# Before this: [17. Pruning and healing](17_pruning_and_healing.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import math
from dataclasses import fields, replace

import numpy as np
from support import check, lines
from support.exercises import gemma_1_2_and_3 as exercises
from support.figures import gemma_1_2_and_3 as figures
from support.plots import use_style
from support.texts import BALCONY

import gemma_np
from gemma_np.checkpoints.config_json import config_from_json, config_to_json
from gemma_np.config import GLOBAL, LOCAL, RELEASED, GemmaConfig, layer_pattern
from gemma_np.memory import cache_bytes
from gemma_np.model.attention import attend, attention
from gemma_np.model.attention_mask import attention_mask
from gemma_np.model.block import block, pre_feedforward_name
from gemma_np.model.records import RECORDS, record_shapes

# %%
use_style()
print(f"{len(RELEASED)} released text models:", *RELEASED)

# %% [markdown]
# The released models need no weights here: what we want to know is in their configs, which are part of the package. The
# rest comes from three small models, one of each generation, which are also part of it. The names are Google's;
# "gemma-2b" is the 2B of Gemma 1, and "gemma-2-2b" that of Gemma 2.
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

# %% tags=["check"]
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

# %% tags=["check"]
for c in RELEASED.values():
    assert [name for name, shape in c.weight_shapes() if c.vocab_size in shape] == ["model.embed_tokens.weight"]

# %% [markdown]
# ## Side by side: how they compute

# %%
print("model         local:global  window  RoPE base local / global   caps    norms  q and k norms  scores / sqrt of")
for name, c in RELEASED.items():
    local_per_global = c.layer_types.index(GLOBAL)  # local layers before the first global one
    kinds = [kind for kind in (LOCAL, GLOBAL) if kind in c.layer_types]
    bases, divisors = zip(*(c.rope(c.layer_types.index(kind)) for kind in kinds), strict=True)
    shown = " / ".join(f"{base:,.0f}" for base in bases) + (", p/8" if divisors[-1] == 8 else "")
    caps = f"{c.attn_logit_softcapping:.0f}, {c.final_logit_softcapping:.0f}" if c.attn_logit_softcapping else "none"
    print(
        f"{name:13} {local_per_global}:1           {c.sliding_window or '-':>6}  {shown:25}  {caps:8}"
        f"{4 if c.has_post_norms else 2:5}  {'yes' if c.has_qk_norm else 'no':13}  {c.query_pre_attn_scalar}"
    )

# %% tags=["check"]
for name, c in RELEASED.items():
    local_per_global = {"gemma": 0, "gemma2": 1, "gemma3_text": 5}[c.model_type]
    assert c.layer_types == layer_pattern(c.num_hidden_layers, local_per_global)
    assert c.query_pre_attn_scalar == (c.hidden_size / c.num_attention_heads if name.endswith("27b") else c.head_dim)

# %% [markdown]
# (Norms are counted per layer; "p/8": positions are divided by 8 on global layers.) From top to bottom, the table shows
# three generations:
#
# - **Gemma 1** is plain: every layer sees everything, there are two norms per layer, and nothing bounds the scores.
# - **Gemma 2** makes every second layer local ([tutorial 7](07_local_and_global_layers.ipynb)), also normalizes the
#   outputs of attention and feed-forward, and caps scores and logits ([tutorial 8](08_soft_capping.ipynb)).
# - **Gemma 3** has five local layers for each global one, with a smaller window; a second RoPE base for the global
#   layers, which keeps distant positions apart ([tutorial 5](05_positions_and_rope.ipynb)); and norms of queries and
#   keys instead of the caps.
# - The scores are divided by $\sqrt{h}$, except in the two 27B models, which use $\sqrt{D / H}$.
#
# In a `config.json` ([tutorial 2](02_a_real_checkpoint.ipynb)) the two bases of Gemma 3 are two keys. `rope_theta` is
# that of the *global* layers and `rope_local_base_freq` that of the local ones. `rope_scaling` is null, or says that
# positions are divided ("linear"), which holds for the global layers only, although the file does not say so. Newer
# files have one key, `rope_parameters`, with an entry for each kind of layer:

# %%
stored = {key: value for key, value in config_to_json(RELEASED["gemma-3-4b"]).items() if "rope" in key}
print("older:", stored)
newer = config_to_json(RELEASED["gemma-3-4b"]) | {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
}
newer = {key: value for key, value in newer.items() if key not in stored}
print("newer:", {key: value for key, value in newer.items() if "rope" in key})
print("(base, divisor): local", RELEASED["gemma-3-4b"].rope(0), " global", RELEASED["gemma-3-4b"].rope(5))

# %% tags=["check"]
assert config_from_json(newer) == RELEASED["gemma-3-4b"]

# %% [markdown]
# (From the 4B on, the models also see images, and all of these keys are one level deeper, under `text_config`.)

# %%
figures.layer_types(RELEASED)
local = {name: sum(kind == LOCAL for kind in c.layer_types) for name, c in RELEASED.items()}
for name in ("gemma-2-9b", "gemma-3-12b"):
    print(f"{name}: {local[name]} of {RELEASED[name].num_hidden_layers} layers are local")

# %% tags=["check"]
assert local["gemma-7b"] == 0 and 2 * local["gemma-2-9b"] == 42 and local["gemma-3-12b"] == 40

# %% [markdown]
# ## Where the parameters are

# %%
counts = {name: c.parameter_count() for name, c in RELEASED.items()}
figures.parameters(counts)
totals = {name: sum(parts.values()) for name, parts in counts.items()}
print(f"of Gemma 3 270M, {100 * counts['gemma-3-270m']['embedding'] / totals['gemma-3-270m']:.0f} % is the embedding")

# %% tags=["check"]
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
# 11](11_cache_and_generation.ipynb)). Of $n$ tokens, layer $l$ keeps $\min(n, W_l)$, where $W_l$ is its window, and no
# limit on a global layer. So, in float32,
#
# $$\mathrm{bytes} = \sum_l 2 \cdot K \cdot h \cdot \min(n, W_l) \cdot 4$$

# %% [markdown]
# By hand, for two layers with K = 1 and h = 2: as in Gemma 1, both global, and as in Gemma 2, one of them local, with a
# window of 4. A token in a layer takes $2 \cdot 1 \cdot 2 \cdot 4 = 16$ bytes:

# %%
for n in (3, 10, 100):
    kept = min(n, 4)  # by the local layer
    print(f"{n:3} tokens: global, global ({n:3} + {n:3}) * 16 = {16 * (n + n):5}", end=", ")
    print(f"local, global ({kept} + {n:3}) * 16 = {16 * (kept + n):5}")

# %% tags=["check"]
sizes_of_two = {"num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 2, "sliding_window": 4}
two_layers = replace(RELEASED["gemma-2-2b"], **sizes_of_two, layer_types=(LOCAL, GLOBAL))
two_global = replace(two_layers, layer_types=(GLOBAL, GLOBAL))
assert [cache_bytes(two_layers, n) for n in (3, 10, 100)] == [96, 224, 1664]
assert [cache_bytes(two_global, n) for n in (3, 10, 100)] == [96, 320, 3200]

# %% [markdown]
# Up to the window there is no difference; far beyond it, the local layer costs almost nothing. In the package:

# %%
lines(cache_bytes, "per_token", "windows =", "return")

# %% [markdown]
# Three models of similar size, up to the context of each; dashed is the last one if all its layers were global:

# %%
gemma3, sizes = RELEASED["gemma-3-12b"], {}
all_global = replace(gemma3, layer_types=(GLOBAL,) * gemma3.num_hidden_layers)
compared = {name: RELEASED[name] for name in ("gemma-7b", "gemma-2-9b", "gemma-3-12b")}
for name, c in (compared | {"gemma-3-12b, all layers global": all_global}).items():
    lengths = 2 ** np.arange(8, round(math.log2(c.max_position_embeddings)) + 1)
    sizes[name] = lengths, [cache_bytes(c, int(n)) for n in lengths]
figures.cache_sizes(sizes)

at_end, as_global = cache_bytes(gemma3, 131_072), cache_bytes(all_global, 131_072)
print(f"Gemma 3 12B at 131,072 tokens: {at_end / 1e9:.1f} GB; all global: {as_global / 1e9:.1f} GB, ", end="")
print(f"{as_global / at_end:.1f} times as much")
at_8192 = {name: cache_bytes(c, 8192) / 1e9 for name, c in compared.items()}
print("at 8,192 tokens:", ", ".join(f"{name} {gigabytes:.1f} GB" for name, gigabytes in at_8192.items()))

# %% tags=["check"]
assert 5.5 < as_global / at_end < 6
assert at_8192["gemma-7b"] > at_8192["gemma-2-9b"] > at_8192["gemma-3-12b"]

# %% [markdown]
# The curve of Gemma 3 bends where the windows are full, at 1,024 tokens; from there on only one layer in six grows, so
# at the far end it takes little more than a sixth. The 7B costs most, because it keeps a key-value head for each query
# head. At 8,192 tokens each newer, larger model needs *less* memory than the one before.
#
# ## Three small models
#
# Three small models of this package were trained on Shakespeare's plays, one of each generation. Here are the fields in
# which their configs differ (G: global, L: local):

# %%
bundled = {"Gemma 1": "shakespeare-gemma1", "Gemma 2": "shakespeare-1m", "Gemma 3": "shakespeare-gemma3"}
models = {title: gemma_np.load(name) for title, name in bundled.items()}
print(f"{'field':24}", *(f"{title:>11}" for title in models))
for field in fields(GemmaConfig):
    values = [getattr(model.config, field.name) for model in models.values()]
    if field.name == "layer_types":
        values = ["".join({GLOBAL: "G", LOCAL: "L"}[kind] for kind in kinds) for kinds in values]
    if len(set(values)) > 1:
        print(f"{field.name:24}", *(f"{'-' if value is None else value:>11}" for value in values))

size = {title: sum(model.config.parameter_count().values()) for title, model in models.items()}
print(f"{'parameters':24}", *(f"{count:11,}" for count in size.values()))

# %% tags=["check"]
small = [model.config for model in models.values()]
assert [c.model_type for c in small] == [RELEASED[name].model_type for name in ("gemma-2b", "gemma-2-2b", "gemma-3-1b")]
assert [c.window(0) for c in small] == [None, 64, 64] and [c.has_qk_norm for c in small] == [False, False, True]
assert [c.rope(c.num_hidden_layers - 1)[0] for c in small] == [1e4, 1e4, 1e6] and small[2].rope(0)[0] == 1e4

# %% [markdown]
# The columns repeat the differences above on a small scale: no window, then one local layer for each global one, then
# five; the caps of Gemma 2, and the second RoPE base of Gemma 3 (there, `rope_theta` is the one of the global layers).
# Here is a continuation by each:

# %%
scene = "[Enter ROMEO.]\n\nROMEO.\n"
texts = {title: model.generate(scene, 40, temperature=0.7, seed=2) for title, model in models.items()}
for title, text in texts.items():
    print(f"{title.upper()}\n{text}\n")

# %% tags=["check"]
assert all(any(word.isupper() for word in text.split() if len(word) > 4) for text in texts.values())

# %% [markdown]
# All three have learned the look of a play, with its names in capital letters. And this is the perplexity of each on
# the same scene of *Romeo and Juliet*, which none of them has read. They share one vocabulary, so the numbers can be
# compared:

# %%
ids = models["Gemma 1"].tokenizer.encode(BALCONY)
perplexity = {title: model.perplexity(BALCONY) for title, model in models.items()}
print(*BALCONY.splitlines()[:3], f"... ({len(ids)} tokens)", sep="\n")
print(", ".join(f"{title}: perplexity {value:.1f}" for title, value in perplexity.items()))

# %% tags=["check"]
assert all(model.tokenizer.encode(BALCONY) == ids for model in models.values())
assert perplexity["Gemma 2"] < 0.9 * perplexity["Gemma 3"] and perplexity["Gemma 3"] < 0.9 * perplexity["Gemma 1"]
assert size["Gemma 2"] > 1.8 * size["Gemma 3"] and size["Gemma 1"] < size["Gemma 3"] < 1.15 * size["Gemma 1"]

# %% [markdown]
# This does not rank the generations. The Gemma 2 has about twice the parameters of the others, read twice as many
# tokens, and learned from teachers. Gemma 1 and 3 are nearly of one size and read the same number of tokens, and Gemma
# 3 is better. But it also has six layers instead of four, and this is one text, and one training run of each.
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
# The norms of $q$ and $k$ come *before* RoPE: project, split into heads, normalize, rotate. Each head of h channels is
# normalized by itself, and all heads of a layer share one weight [h]. If you rotate first, the channels of a pair are
# mixed before their scales, $1 + w$, are applied, and the scores are wrong at every position but 0.
#
# All of it is the same code; config fields select the differences:

# %%
lines(attention, "has_qk_norm", "rms_norm(")

# %%
lines(attend, "config.rope", "softcapping", "config.window")

# %% [markdown]
# The same holds for the norms of a layer. Gemma 1 has a trap here: its checkpoint has a weight named
# `post_attention_layernorm`, but it is the norm *before the feed-forward*, named after its place. In Gemma 2 and 3 the
# same name means another norm.

# %%
lines(block, "has_post_norms", 'tape("post_', 'tape("pre_')

# %%
lines(pre_feedforward_name, "return")

# %% [markdown]
# These are the norms of layer 0 in the three small checkpoints, and the records that only some of the models have:

# %%
norms = {}
for title, model in models.items():
    names = [name.split(".", 3)[3].removesuffix(".weight") for name in model.weights if "layers.0." in name]
    norms[title] = [name for name in names if "norm" in name]
    print(f"{title}:", *norms[title])

# %% tags=["check"]
assert [len(names) for names in norms.values()] == [2, 4, 6]
assert ["pre_feedforward_layernorm" in names for names in norms.values()] == [False, True, True]

# %%
records = {title: model.trace(ids) for title, model in models.items()}
print(f"{'record (layer 0, or the model)':36}", *models)
for row in RECORDS:
    present = [row.name.replace("*", "0") in record for record in records.values()]
    if not all(present):
        print(f"{row.name:36}", *("   yes " if here else "   -   " for here in present))
print(f"and {sum(not row.needs for row in RECORDS)} that all three have")

# %% tags=["check"]
for title, record in records.items():
    assert {name: value.shape for name, value in record.items()} == record_shapes(models[title].config, len(ids))
assert "layers.0.self_attn.q_norm" in records["Gemma 3"] and "logits_capped" not in records["Gemma 3"]

# %% [markdown]
# Now suppose that training goes wrong: multiply the query and key matrices by a factor, and look at the largest score
# that reaches softmax in layer 0, still on the scene of *Romeo and Juliet*.


# %%
def largest_score(model, factor):
    scaled = {name: factor * w if "q_proj" in name or "k_proj" in name else w for name, w in model.weights.items()}
    record = gemma_np.Gemma(model.config, scaled, tokenizer=None).trace(ids)
    scores = record.get("layers.0.self_attn.scores_capped", record["layers.0.self_attn.scores"])
    return np.abs(scores[:, attention_mask(range(len(ids)), range(len(ids)), model.config.window(0))]).max()


factors = 2.0 ** np.arange(6)
largest = {title: [largest_score(model, factor) for factor in factors] for title, model in models.items()}
figures.largest_scores(factors, largest)
for title, scores in largest.items():
    print(f"{title}: {scores[0]:.1f} -> {scores[-1]:.1f}")

# %% tags=["check"]
np.testing.assert_allclose(largest["Gemma 1"][-1] / largest["Gemma 1"][0], factors[-1] ** 2, rtol=1e-4)
assert 49 < max(largest["Gemma 2"]) <= 50
np.testing.assert_allclose(largest["Gemma 3"], largest["Gemma 3"][0], rtol=1e-3)

# %% [markdown]
# Gemma 1's scores grow with the square of the factor. Gemma 2's stop at the cap. Gemma 3's do not change, because the
# norm removes the factor; and fused attention kernels, many of which had no cap, need no special case.
#
# The norms of $q$ and $k$ have learned scales, $1 + w$ [h], one for each channel, like all norms. A normalized vector
# is at most $\sqrt{h}$ times its largest scale long, and RoPE does not change that. So with $s = h$ no score of a layer
# can be larger than $\sqrt{h} \max(1 + w^q) \max(1 + w^k)$:

# %%
model, record = models["Gemma 3"], records["Gemma 3"]
h, scales, bounds, highest = model.config.head_dim, [], [], []
for layer, kind in enumerate(model.config.layer_types):
    q, k = (1 + model.weights[f"model.layers.{layer}.self_attn.{name}_norm.weight"] for name in "qk")
    scores, probs = (record[f"layers.{layer}.self_attn.{name}"] for name in ("scores", "probs"))
    scales.append((q, k))
    bounds.append(np.sqrt(h) * q.max() * k.max())
    highest.append(scores[probs > 0].max())
    print(f"layer {layer}, {'global' if kind == GLOBAL else 'local '}: mean scale of q {q.mean():.2f}, ", end="")
    print(f"of k {k.mean():.2f}; no score above {bounds[-1]:4.1f}, the largest is {highest[-1]:4.1f}")

# %% tags=["check"]
assert (np.array(highest) < bounds).all() and bounds[0] < 0.75 * min(bounds[1:])
assert np.mean(np.array(scales[0]) < 1) > 0.7 and np.mean(scales[1:4], axis=-1).min() > 1.1

# %% [markdown]
# With the scales the model can still choose how sharply a layer attends. In layer 0 most of them are smaller than 1, so
# it has the lowest bound; in layers 1 to 3 they are larger. Here are all of them, the scale of the query against that
# of the key. RoPE rotates channel $i$ together with channel $i + h/2$ ([tutorial 5](05_positions_and_rope.ipynb)), the
# first pairs fast, the last slowly:

# %%
q, k = np.array(scales).reshape(-1, 2, 2, h // 2).transpose(1, 3, 0, 2)  # [pair, layer, channel of the pair] each
figures.scales(q, k)
fast, slow = np.abs(q - k)[:8], np.abs(q - k)[8:]
print(f"mean difference of the two scales: {fast.mean():.3f} in the fast pairs, {slow.mean():.3f} in the slow ones")

# %% tags=["check"]
assert slow.mean() < 0.15 * fast.mean()

# %% [markdown]
# In the slow pairs the two scales are almost equal. Where hardly anything is rotated, a channel of the query meets only
# the same channel of the key, and the score contains nothing but the product of their scales. Both began at 1, so both
# got the same gradient. A fast pair mixes its two channels, so there the scales can differ.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** Which layers are local?
#
# <details><summary>Hint 1</summary>
#
# Count the layers from 1; which are global if each comes after one local layer? After five?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Every (local_per_global + 1)-th is global: `%` tells which.
#
# </details>


# %%
def local_layers(layers, local_per_global):
    """two whole numbers -> list of bool, one for each layer, True for a local one"""
    ...


check(local_layers, exercises.LOCAL_LAYERS)

# %% [markdown]
# **2.** How many bytes do the keys and values of a text take, in float32?
#
# <details><summary>Hint 1</summary>
#
# `config.window(layer)` is the window of a layer, or None.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A layer keeps `min(length, window)` tokens, or all; each has a key and a value of K * h numbers, and each number 4
# bytes.
#
# </details>


# %%
def kept_bytes(config, length):
    """a GemmaConfig and a number of tokens -> number of bytes"""
    ...


check(kept_bytes, exercises.CACHE_BYTES)

# %% [markdown]
# **3.** Count the parameters, as table 2 of the report does. This needs everything that you know about the layers of
# Gemma 2, and the differences in 1 and 3. `GemmaConfig` has these fields:
#
# <details><summary>Hint 1</summary>
#
# A layer has q, k, v and o, then gate, up and down, then its norms, one vector each. One norm follows the last layer.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# q and o have D * H * h weights each, k and v D * K * h each; `head_dim` is a field of its own.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `has_post_norms` says whether a layer has four norms or two, and `has_qk_norm` whether it has two more, of `head_dim`
# numbers each.
#
# </details>

# %%
lines(GemmaConfig, "_size: int", "layers: int", "heads: int", "head_dim: int", "def has_")


# %%
def parameters(config):
    """a GemmaConfig -> (parameters of the embedding, of all the rest)"""
    ...


check(parameters, exercises.PARAMETERS)

# %% [markdown]
# **4.** The scores of Gemma 3, with norms of queries and keys. As in the code above, the norms come *before* RoPE. You
# may use the package's `rms_norm(x, weight, 1e-6)` and `rope(x, cos, sin)`.
#
# <details><summary>Hint 1</summary>
#
# Four steps: norms, rotations, product, division. Only the order of the first two is new.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `rms_norm(q, q_weight, 1e-6)` runs over the last axis, the channels of one head; so it does not matter how many heads
# there are. Then `rope(..., cos, sin)`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `k.swapaxes(-1, -2)` transposes the keys of each head. The product is divided by `math.sqrt(query_scalar)`, and is not
# capped.
#
# </details>


# %%
def normed_scores(q, k, q_weight, k_weight, cos, sin, query_scalar):
    """q and k [..., T, h], weights [h], cos and sin [T, h/2], query_scalar a number -> scores [..., T, T]"""
    ...


check(normed_scores, exercises.QK_NORM)

# %% [markdown]
# The solutions are in [solutions/18_gemma_1_2_and_3.py](solutions/18_gemma_1_2_and_3.py).
#
# ## Further reading
#
# - [gemma_np/config.py](../gemma_np/config.py): all differences in one file.
# - [gemma_np/memory.py](../gemma_np/memory.py), or `gemma-np info --model gemma-2-27b`: the memory of weights, cache
#   and activations in each format.
# - Ainslie et al., [GQA](https://arxiv.org/abs/2305.13245); the [Gemma 3 report](https://arxiv.org/abs/2503.19786),
#   section 2.
#
# Next: [19. Finding the bug](19_finding_the_bug.ipynb).
