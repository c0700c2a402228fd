# %% [markdown]
# # 20. Speculative decoding
#
# After this you can let a cheap draft propose tokens and verify several of them in one pass, without changing the
# distribution of the text at all; and you can estimate from three measurements whether that makes your model faster.
# About 30 minutes; the notebook itself takes up to a minute to run. The Gemma 2 report does not treat this; the method
# is from Leviathan et al., [Fast Inference from Transformers via Speculative
# Decoding](https://arxiv.org/abs/2211.17192), sections 2 and 3.
#
# Before this: [12. Speed](12_speed.ipynb), and [11. The cache, and generating text](11_cache_and_generation.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # all times below are those of one core, so that they can be compared

# %%
import time

import numpy as np
from support import check, lines
from support.exercises import speculative_decoding as exercises
from support.figures import speculative_decoding as figures
from support.plots import pieces, use_style
from support.timing import typical

import gemma_np
from gemma_np import RELEASED, GemmaError
from gemma_np.compression.drafts import half_draft, int4_draft
from gemma_np.memory import weight_bytes
from gemma_np.model.kv_cache import KVCache, LayerCache
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.text.drafts import LookupDrafter, ModelDrafter, Proposals
from gemma_np.text.generation import next_logits
from gemma_np.text.sampling import Sampling, draw
from gemma_np.text.speculation import Acceptance, acceptance_probability, residual, verify
from gemma_np.weights.linear import float_product, product_by_tiles

# %%
os.cpu_count = lambda: 1  # one core for the threads of the package, too
use_style()
model, small = gemma_np.load("shakespeare-4m"), gemma_np.load("shakespeare-1m")
config, weights, tokenizer = model.config, model.weights, model.tokenizer
sampling = Sampling(temperature=1.0)  # p = softmax(logits)
prompt = tokenizer.encode("To be, or not to be, that is the question:")

# %% [markdown]
# ## Each token reads all weights
#
# In tutorial 12, decoding was limited by memory: each token needs every weight once, and a processor could do many more
# flops in the time that it takes to read one. So if we had several vectors to multiply with, not only one, reading the
# weight once would do for all of them, and they should take hardly longer than one. Do they? We multiply a matrix of the
# size of the 2B's `gate_proj` (85 MB) with 1 to 16 vectors, in two ways: `x @ W.T`, which is a call of BLAS, and
# `float_product`, which the package uses. Each time is the median of many, in seconds of the processor.


# %%
shape = RELEASED["gemma-2-2b"].intermediate_size, RELEASED["gemma-2-2b"].hidden_size  # [F, D]
W = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
X, square, VECTORS = W[:16].copy(), W[:512, :512].copy(), (1, 2, 3, 4, 6, 8, 12, 16)
ways = {"x @ W.T": lambda x: x @ W.T, "float_product": lambda x: float_product(x, W)}
works = {(way, n): lambda product=product, n=n: product(X[:n]) for way, product in ways.items() for n in VECTORS}
products = typical(works | {"square": lambda: square @ square}, budget=5)

peak = 2 * len(square) ** 3 / products["square"]  # flop/s
one = min(products[way, 1] for way in ways)
bandwidth = W.nbytes / one
print(f"bandwidth {bandwidth / 1e9:.1f} GB/s, peak {peak / 1e9:.0f} Gflop/s")
print("vectors         " + "".join(f"{n:7}" for n in VECTORS))
for way in ways:
    print(f"{way:16}" + "".join(f"{products[way, n] / one:7.1f}" for n in VECTORS) + "  times one vector")

# %% tags=["check"]
np.testing.assert_allclose(float_product(X, W), X @ W.T, rtol=1e-4, atol=1e-2)

# %%
took = {way: np.array([products[way, n] for n in VECTORS]) for way in ways}  # seconds
flops = 2 * np.array(VECTORS) * W.size
intensity = flops / (4 * W.size + 4 * np.array(VECTORS) * sum(shape))  # [flop/byte]
figures.products(VECTORS, took, flops, intensity, bandwidth, peak)

# %% [markdown]
# The roofline says that up to the bend, all these products should take the time of one. A library need not reach it:
# for more than one vector, OpenBLAS first copies the whole weight into another order, which takes longer than the
# product with a few vectors. With AVX-512, however, it has a second way for small products that copies nothing. So
# `float_product` cuts the weight into parts that are small enough for that:

# %%
lines(float_product, "if few and _AVX512", "high =", "if high", "return product", "return x @")

# %%
lines(product_by_tiles, "tiles =", "np.matmul(")

# %% [markdown]
# (On a machine without AVX-512 both ways are the same, and the two lines of the figure coincide.) Wherever a line is
# below the dotted one, several vectors at once are cheaper than one after another. But where do we get them from? The
# next token depends on the one before it.
#
# ## Guess, then verify
#
# We guess. A **draft**, such as a smaller model, proposes the next $n$ tokens. The model then reads them all in one
# pass, as if they were a prompt. Row $i$ of its logits is the model's own prediction at proposal $i$, so $n$ tokens are
# verified while the weights are read once:

# %%
proposals = [int(id) for id in prompt[9:]]  # let us pretend that a draft has guessed the end of this line
one_pass, one_by_one = KVCache(config, 64), KVCache(config, 64)
transformer(prompt[:8], weights, config, one_pass)
transformer(prompt[:8], weights, config, one_by_one)

verified = lm_head(transformer(prompt[8:], weights, config, one_pass), weights, config)  # [n + 1, V]
decoded = np.array([next_logits([id], weights, config, one_by_one) for id in prompt[8:]])
difference = np.abs(verified - decoded).max()
print(f"{len(proposals)} proposals: logits {verified.shape} of one pass differ from decoding by {difference:.0e}")

# %% tags=["check"]
np.testing.assert_allclose(verified, decoded, atol=1e-4)

# %% [markdown]
# There is one row more than there are proposals: if all of them are right, the last row predicts another token. So a
# pass yields between 1 and $n + 1$ tokens.
#
# In greedy decoding, "right" is simple: a proposal is accepted if it is the most likely token. The text is then that of
# plain decoding. But when tokens are sampled, what makes a proposal right?
#
# ## The rejection step
#
# Let $p$ [V] be the model's distribution, and let the draft have drawn its proposal $x$ from its own distribution $q$
# [V]. The rule:
#
# 1. Accept $x$ with probability $\min(1,\ p(x) / q(x))$.
# 2. If it is rejected, draw a token from the **residual** $\max(p - q,\ 0)$, divided by its sum, instead. Discard the
#    proposals after it: they continue a text that is not there.
#
# Every token then comes out with probability $p$ exactly, however bad the draft is. Let us check this with a vocabulary
# of three tokens:

# %%
p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.7, 0.1])
accept = np.array([acceptance_probability(p[x], q[x]) for x in range(3)])
accepted = q * accept  # proposed, and accepted
rejected = 1 - accepted.sum()
replaced = rejected * residual(p, q)
print("token   p     q   accept   q * accept   residual   rejected * residual   sum")
for x in range(3):
    print(f"  {'abc'[x]}   {p[x]:.2f}  {q[x]:.2f}   {accept[x]:.3f}      {accepted[x]:.2f}        ", end="")
    print(f"{residual(p, q)[x]:.2f}            {replaced[x]:.2f}             {accepted[x] + replaced[x]:.2f}")
print(f"a proposal is rejected with probability {rejected:.2f}")

# %% tags=["check"]
np.testing.assert_allclose(accepted + replaced, p)

# %% [markdown]
# The draft proposes b far too often, so it is accepted with probability 3/7 only. It proposes a and c too rarely; they
# are always accepted, and the residual supplies what is missing. The last column is $p$. Why this is so in general: the
# accepted part is $q(y) \min(1, p(y)/q(y)) = \min(p(y), q(y))$. What it lacks to be $p(y)$ is $p(y) - \min(p(y), q(y)) =
# \max(p(y) - q(y), 0)$. And the sum of that over all tokens is the probability of a rejection, which cancels the
# divisor of the residual:
#
# $$\min(p, q) + P(\text{rejected})\, \frac{\max(p - q,\ 0)}{P(\text{rejected})} = p, \qquad
# P(\text{rejected}) = 1 - \sum_y \min(p(y), q(y))$$
#
# In the code:

# %%
lines(acceptance_probability, "return")

# %%
lines(residual, "more =", "more[", "np.maximum", "return")

# %%
lines(verify)

# %% [markdown]
# Now draw 10,000 tokens with this function. For comparison, an error that is easy to make: a rejected proposal is
# replaced by a token drawn from $p$, rather than from the residual.

# %%
DRAWS, generator = 10_000, np.random.default_rng(0)
logits = np.log([p, p])  # at the proposal, and after it


def careless(token):
    """The rejection step with a mistake: the replacement is drawn from p."""
    return token if generator.random() < acceptance_probability(p[token], q[token]) else draw(p, generator)


proposed = [draw(q, generator) for _ in range(DRAWS)]
drawn = [verify(Proposals([token], [q]), logits, sampling, generator)[0] for token in proposed]
wrong = [careless(token) for token in proposed]
counts = {"verified": np.bincount(drawn), "replaced from p (wrong)": np.bincount(wrong)}
figures.frequencies({"p, the model": p} | {name: n / DRAWS for name, n in counts.items()} | {"q, the draft": q})

# %% [markdown]
# How far are the two from $p$? Chi-square is a sum over the tokens: the difference between the count and the one
# expected, squared, divided by the one expected. With three tokens, chance alone exceeds 13.8 once in a thousand times.

# %%
chi_square = {name: np.sum((n - DRAWS * p) ** 2 / (DRAWS * p)) for name, n in counts.items()}
print("chi-square against p:", ", ".join(f"{name} {value:.1f}" for name, value in chi_square.items()))

# %% tags=["check"]
assert chi_square["verified"] < 13.8 < 100 < chi_square["replaced from p (wrong)"]

# %% [markdown]
# ## How often is a proposal accepted?
#
# The sum above answers this without any sampling: on average with probability $\sum_y \min(p(y), q(y))$, which is what
# the two distributions have in common. Here it is for our model and the smaller one:

# %%
text = "I thank you, my"
p, q = (sampling.probs(m.logits(tokenizer.encode(text))[-1]) for m in (model, small))  # [V] each
order = np.argsort(-np.maximum(p, q))[:12]
figures.two_models(p[order], q[order], pieces(order, tokenizer), text)
print(f"after “{text}”, a proposal is accepted with probability {np.minimum(p, q).sum():.2f}")

# %% [markdown]
# The more alike two models are, the better one is as a draft for the other. We compare four drafts: the smaller model,
# which is a student of this one; the model itself with all matrices in 4 bits (tutorial 16); the first half of its
# layers (tutorial 17); and no model at all: **lookup** searches the text for an earlier occurrence of its last tokens
# and copies what followed them there. A copy is certain, so its $q$ is 1 for one token.
#
# We average over texts that the model itself has sampled. Lookup depends on repetition, so we also give it a list that
# repeats itself.

# %%
NEW, SEEDS = 120, (0, 1)
LIST = tokenizer.encode("ROMEO. JULIET. MERCUTIO. TYBALT. BENVOLIO. " * 3)
drafts = {"int4": int4_draft(model), "shakespeare-1m": small, "half": half_draft(model), "lookup": "lookup"}
cases = {name: (draft, prompt, 1.0) for name, draft in drafts.items()}  # draft, prompt, temperature
cases["lookup, a list"] = ("lookup", LIST, 0.0)


# %%
def overlap(draft, begin, ids, sampling):
    """The mean probability of accepting a proposal in a text that the model has sampled after `begin`."""
    model_probs = [sampling.probs(row) for row in model.logits(ids)[len(begin) - 1 : -1]]
    if draft != "lookup":
        draft_probs = [sampling.probs(row) for row in draft.logits(ids)[len(begin) - 1 : -1]]
        return np.mean([np.minimum(p, q).sum() for p, q in zip(model_probs, draft_probs, strict=True)])
    drafter = LookupDrafter(config.vocab_size)
    copied = [drafter.propose(ids[: len(begin) + i], 1).ids for i in range(len(model_probs))]
    return np.mean([p[token].sum() for p, token in zip(model_probs, copied, strict=True)])  # 0 where there is no copy


# %%
a = {}
for name, (draft, begin, temperature) in cases.items():
    texts = [begin + list(model.stream_ids(begin, NEW, temperature=temperature, seed=seed)) for seed in SEEDS]
    a[name] = np.mean([overlap(draft, begin, ids, Sampling(temperature)) for ids in texts])
    print(f"{name:15} {a[name]:.2f}")
print("the list continues:", repr(tokenizer.decode(texts[0][len(LIST) :])[:64]))

# %% tags=["check"]
assert a["int4"] > a["shakespeare-1m"] > a["half"] > a["lookup"]

# %% [markdown]
# ## A few passes by hand
#
# Here is the whole loop, with four proposals by shakespeare-1m in each pass. After a rejection, the caches of both
# models hold tokens that are not in the text. They must be taken back: `rewind` does that.

# %%
generator, n = np.random.default_rng(0), 4
cache = KVCache(config, 128, spare=n)
drafter = ModelDrafter(small, sampling, generator, length=128, most=n)
text = [*prompt, sampling.choose(next_logits(prompt, weights, config, cache), generator)]
for _ in range(7):
    proposals = drafter.propose(text, n)
    logits = lm_head(transformer([text[-1], *proposals.ids], weights, config, cache), weights, config)  # [n + 1, V]
    new = verify(proposals, logits, sampling, generator)
    text += new
    cache.rewind(len(text) - 1)  # the last token is unread, and the rejected ones are not in the text
    proposed, accepted = " ".join(pieces(proposals.ids, tokenizer)), " ".join(pieces(new[:-1], tokenizer))
    print(f"proposed {proposed:28} accepted {accepted or 'none':28} then {tokenizer.piece(new[-1])}")

print(f"\n{len(text) - len(prompt) - 1} tokens in 7 passes:", repr(tokenizer.decode(text[len(prompt) :])))

# %% tags=["check"]
np.testing.assert_allclose(next_logits(text[-1:], weights, config, cache), model.logits(text)[-1], atol=1e-4)

# %% [markdown]
# The check shows what must hold for every cache: once rewound, it is as if the tokens had never been read. In greedy
# decoding, the text must be the same with and without a draft:

# %%
greedy = list(model.stream_ids(prompt, 60))
drafted = list(model.stream_ids(prompt, 60, draft=small, draft_tokens=n))
print(repr(tokenizer.decode(greedy)[:70]), "...")
print(repr(tokenizer.decode(drafted)[:70]), "...")

# %% tags=["check"]
assert greedy == drafted

# %% [markdown]
# ## Rewinding a ring
#
# For a global layer, rewinding means to set the length back; what is behind it will be overwritten. A local layer keeps
# a ring, however, in which each new key replaces one that has left the window. When the new one is taken back, the old
# one is in sight again, but it is gone. So a ring that is to be rewound has a few **spare** slots beside those of its
# window. In this picture, the window is 5, and the keys are their own positions. A pass reads the tokens at 12 to 15,
# that is the last token of the text and three proposals. One proposal is accepted, so the token at 14 is a new one, and
# its window is the positions 10 to 14.


# %%
def ring(spare):
    """What each slot holds after each of three steps, and the length after it."""
    layer = LayerCache((1, 5 + spare, 1), np.float32, spare=spare)
    steps = []
    for length, *positions in ((0, *range(12)), (12, 12, 13, 14, 15), (14, 14)):
        layer.length = length  # `KVCache.rewind` does this for every layer
        keys = np.array(positions, np.float32).reshape(1, -1, 1)  # [K, T, h]
        layer.append(keys, keys)
        steps.append((layer.keys.ravel().astype(int), layer.length))
    return steps


figures.rings({spare: ring(spare) for spare in (3, 0)}, window=5)

# %% tags=["check"]
assert {10, 11, 12, 13, 14} <= set(ring(3)[-1][0])
assert 10 not in ring(0)[-1][0]

# %% [markdown]
# Without spare slots, 15 has replaced 10, which the token at 14 needs. One spare slot for each proposal is enough; the
# cache refuses to go further back:

# %%
full = KVCache(config, 200)  # no spare slots
transformer(prompt * 5, weights, config, full)
try:
    full.rewind(full.length - 1)
except GemmaError as error:
    print(error)

# %%
lines(LayerCache.shortest.fget, "return")

# %% [markdown]
# ## Tokens per pass
#
# If each proposal is accepted with probability $a$, independently of the others, then the $i$-th one counts only if all
# before it are accepted too. With the additional token, a pass over $n$ proposals yields on average
#
# $$1 + a + a^2 + … + a^n = \frac{1 - a^{n+1}}{1 - a} \quad \text{tokens.}$$
#
# It grows with $n$, but never beyond $1 / (1 - a)$: after the first rejection, all further proposals are wasted. So the
# share of accepted proposals falls with $n$. Now we measure it: the model writes 120 tokens after a prompt, twice with
# each draft and 1, 2, 4 and 8 proposals; and also without a draft, for the time below.


# %%
def tokens_per_pass(a, n):
    return sum(a**i for i in range(n + 1))


def write(name, seed, n, acceptance):
    """The ids that the model writes in a case, with n proposals a pass or None, and the seconds that it takes."""
    draft, begin, temperature = cases[name]
    drafted = {"draft": draft, "draft_tokens": n, "acceptance": acceptance} if n else {}
    start = time.process_time()  # of the processor
    ids = list(model.stream_ids(begin, NEW, temperature=temperature, seed=seed, **drafted))
    return ids, time.process_time() - start


# %%
LENGTHS, measured, speed, written = (1, 2, 4, 8), {}, {}, []
for name in cases:
    spent = {n: 0.0 for n in (None, *LENGTHS)}  # None: without a draft
    counts = {n: Acceptance() for n in spent}
    for seed in SEEDS:
        for n in spent:
            ids, seconds = write(name, seed, n, counts[n])
            spent[n] += seconds
            written.append(ids)
    by_passes = len(SEEDS) * (NEW - 1)  # all but the first token, which the prompt yields
    passes = {n: by_passes - counts[n].accepted for n in LENGTHS}  # one yields a token more than it accepts
    measured[name] = {n: by_passes / passes[n] for n in LENGTHS}
    speed[name] = {n: spent[None] / spent[n] for n in LENGTHS}

# %%
expected = {name: [tokens_per_pass(a[name], n) for n in range(1, 9)] for name in cases}
figures.acceptance(LENGTHS, {name: list(found.values()) for name, found in measured.items()}, expected, a)
for name, found in measured.items():
    print(f"{name:15}" + "".join(f"  {n}: {found[n]:.1f} ({expected[name][n - 1]:.1f})" for n in LENGTHS))

# %% tags=["check"]
assert measured["shakespeare-1m"][4] > 2 and measured["int4"][4] > 3
assert {len(ids) for ids in written} == {NEW}

# %% [markdown]
# The lines come from a single number, the overlap, and describe the dots of the three models well. (So few tokens
# scatter; with twenty texts, shakespeare-1m and half came within 2 % of their lines for 1, 2 and 4 proposals.) They are
# not exact, because proposals are not independent: some places of a text are easier than others. The list is the extreme
# case. After it, the model first writes something new, where there is nothing to copy; then it repeats that, and every
# copy is right. The mean of both describes neither. And a pass does yield three tokens: about as many with 8 proposals of
# shakespeare-1m, more with 4 of int4.
#
# ## The time it takes here
#
# Fewer passes are not yet less time. With $n$ proposals, a pass costs $n$ steps of the draft and one pass of the model
# over $n + 1$ tokens. Let $c$ and $v(n + 1)$ be the times of these in units of a step of plain decoding. Then:
#
# $$\text{speed} = \frac{1 + a + … + a^n}{n\,c + v(n + 1)} \quad \text{times that of plain decoding}$$

# %%
text = [*prompt, *model.stream_ids(prompt, 80, temperature=1.0, seed=0)]
cache = KVCache(config, 256, spare=max(LENGTHS) + 1)
transformer(text, weights, config, cache)


def plain_step():
    cache.rewind(len(text) - 1)
    sampling.choose(next_logits(text[-1:], weights, config, cache), generator)


def verify_some(n):
    proposals = Proposals(guesses.ids[:n], guesses.probs[:n])
    cache.rewind(len(text) - 1)
    logits = lm_head(transformer([text[-1], *proposals.ids], weights, config, cache), weights, config)
    verify(proposals, logits, sampling, generator)


# %%
works = {"plain": plain_step}
for name, draft in drafts.items():
    drafter = LookupDrafter(config.vocab_size)
    if draft != "lookup":
        drafter = ModelDrafter(draft, sampling, generator, length=256, most=max(LENGTHS))
        guesses = drafter.propose(text, max(LENGTHS))  # which also reads the text
    works[name] = lambda drafter=drafter: drafter.propose(text, 4)
for n in LENGTHS:
    works[n] = lambda n=n: verify_some(n)
seconds = typical(works, budget=3)

# %%
c = {name: seconds[name] / 4 / seconds["plain"] for name in drafts}
c["lookup, a list"] = c["lookup"]
v = {n + 1: seconds[n] / seconds["plain"] for n in LENGTHS}
print(f"a step of plain decoding: {1e3 * seconds['plain']:.2f} ms")
print("a step of the draft, c: " + ", ".join(f"{name} {c[name]:.2f}" for name in drafts))
print("a pass over n tokens, v(n): " + ", ".join(f"n = {n}: {cost:.1f}" for n, cost in v.items()))

# %%
estimated = {name: [tokens_per_pass(a[name], n) / (n * c[name] + v[n + 1]) for n in LENGTHS] for name in cases}
figures.times(
    {name: 4 * c[name] for name in cases},
    v[5],
    {name: measured[name][4] for name in cases},
    LENGTHS,
    {name: list(speed[name].values()) for name in cases},
    estimated,
)
print("times the speed of plain decoding:")
for name in cases:
    print(f"{name:15}" + "".join(f"  {n}: {speed[name][n]:.2f}" for n in LENGTHS))

# %% [markdown]
# These numbers depend on the machine and on what else it does, more than any others here, but whenever we tried, the
# picture was the same. A draft makes the model faster where the diamond lies beyond the end of the bar. Lookup does on
# the list; on the verse it finds little to copy. None of the three models does; shakespeare-1m comes close at best. The
# method is right, but for a model this small in NumPy, neither of its conditions holds:
#
# - **Verifying is not free.** shakespeare-4m has 16 MB of weights, which fit into the caches of many processors, so it is
#   hardly limited by memory, and more tokens take more time. For more than eight, OpenBLAS copies the weights again:
#   v(9) has the step that we saw in the first figure.
# - **The drafts are not cheap.** shakespeare-1m has a quarter of the weights, but a step takes more than a quarter of the
#   time: each operation of NumPy has a fixed cost. int4 is right nine times in ten, and takes *longer* than the model
#   itself, because NumPy dequantizes before it multiplies. Half of the layers take about half of the time, but are right
#   only four times in ten.
#
# Lookup costs next to nothing, so it gains as soon as the text repeats itself, as code, tables and quotations do.
#
# ## When it pays
#
# With one proposal, the formula says: it is faster if $1 + a > c + v(2)$. If a pass over two tokens takes the time of
# one, because both are limited by memory, this is simply $a > c$: the draft must be right more often than its share of
# the time. For large models, memory is the limit, and the cost of a step is its bytes. So let us estimate for the real
# Gemma 2, where all sizes have the same vocabulary. We have not measured how often the drafts would be right there.

# %%
size = {name: weight_bytes(RELEASED[name], "bfloat16") for name in ("gemma-2-2b", "gemma-2-9b", "gemma-2-27b")}
shares = {
    "the 27B with the 2B": size["gemma-2-2b"] / size["gemma-2-27b"],
    "the 9B with the 2B": size["gemma-2-2b"] / size["gemma-2-9b"],
    "the 27B with itself in int4": weight_bytes(RELEASED["gemma-2-27b"], "int4") / size["gemma-2-27b"],
}
print("bytes of the draft, as a share of the model's:")
print(", ".join(f"{pair} {share:.2f}" for pair, share in shares.items()))


# %%
def best_speed(a, c, v):
    return max(tokens_per_pass(a, n) / (n * c + v(n + 1)) for n in range(1, 9))


times_of_one = took["float_product"] / one  # of the product with W above
pass_costs = {
    "verifying takes no longer than one token": lambda n: 1.0,
    "verifying as the product with W above": lambda n: np.interp(n, VECTORS, times_of_one),
}
figures.best_speeds(best_speed, pass_costs)

# %% tags=["check"]
assert abs(best_speed(0.3, 0.3, lambda n: 1) - 1) < 1e-12  # a = c: neither faster nor slower
assert best_speed(0.8, 0.1, lambda n: 1) > 2

# %% [markdown]
# So a 2B that is right in 8 of 10 proposals would make the 27B more than twice as fast, if nothing but memory counts.
# Leviathan et al. report two to three times for T5-XXL, a model of 11 billion parameters. To sum up, it pays
#
# - where decoding is limited by memory: a large model that serves one text. A server that decodes many texts at once
#   already uses each weight that it reads many times;
# - with a draft that is cheap and mostly right: $a$ well above $c + v(2) - 1$;
# - with few proposals if $a$ is low, more if it is high. The package's default is 2 for a model and 8 for lookup.
#
# And it never changes the distribution of the text, only the time that it takes. In a shell, `gemma-np generate
# --draft` does it, and prints how many tokens were accepted ([options](../docs/generate.md#speculative-decoding)).
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** The rejection step: with what probability is the proposal accepted, and from what distribution is its
# replacement drawn? In all cases the two distributions differ, so there is a residual.
#
# <details><summary>Hint 1</summary>
#
# Whatever the draft, q(y) * accept(y) + P(rejected) * residual(y) must be p(y).
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Where the draft proposes a token too often, q > p, it is accepted with probability p / q; otherwise always.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The residual is what is missing: `np.maximum(p - q, 0)`, divided by its sum.
#
# </details>


# %%
def rejection_step(token, p, q):
    """token: id of the proposal, drawn from q; p, q [V]: model and draft -> probability of accepting it, residual [V]"""
    ...


check(rejection_step, exercises.REJECTION)

# %% [markdown]
# **2.** Verify a chain of $n$ proposals. The random numbers are given: a proposal is accepted if its number is less than
# the probability of accepting it. Return how many are accepted, and the distribution of the one token that follows.
#
# <details><summary>Hint 1</summary>
#
# `p[i]` and `q[i]` belong to proposal i; `p[n]` is the model's distribution after all of them.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Loop over the proposals, with your `rejection_step`. At the first one that is rejected, return how many came before
# it, and its residual.
#
# </details>


# %%
def verify_chain(ids, p, q, uniforms):
    """ids: list of n proposals, p [n + 1, V], q [n, V], uniforms [n] -> number of accepted ones, distribution [V]"""
    ...


check(verify_chain, exercises.CHAIN)

# %% [markdown]
# **3.** How many times as fast as plain decoding is it?
#
# <details><summary>Hint 1</summary>
#
# It is tokens divided by time. A pass yields the accepted proposals, and one token more.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Proposal i counts only if all before it were accepted: the mean number of tokens is $1 + a + a^2 + \dots + a^n$.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# A perfect draft has a = 1; a sum of powers has no need to divide by 1 - a. The time is n steps of the draft, and the
# pass.
#
# </details>


# %%
def speculative_speed(a, n, c, v):
    """a: probability of accepting a proposal, n: proposals in a pass, c: cost of a step of the draft, v: cost of the
    model's pass over n + 1 tokens, both in steps of plain decoding -> number"""
    ...


check(speculative_speed, exercises.SPEED)

# %% [markdown]
# The solutions are in [solutions/20_speculative_decoding.py](solutions/20_speculative_decoding.py).
#
# ## Further reading
#
# - [gemma_np/text/speculation.py](../gemma_np/text/speculation.py) and [drafts.py](../gemma_np/text/drafts.py): the
#   whole loop and all drafts; [kv_cache.py](../gemma_np/model/kv_cache.py): the ring.
# - [tests/text/test_speculation.py](../tests/text/test_speculation.py): the identity for whole texts of two tokens, with
#   every proposal and every outcome.
# - [tests/benchmarks/speculation.py](../tests/benchmarks/speculation.py) and
#   [linear.py](../tests/benchmarks/linear.py): the two measurements, with more drafts and shapes.
# - Chen et al., [Accelerating Large Language Model Decoding with Speculative
#   Sampling](https://arxiv.org/abs/2302.01318), found the same method independently; Yang et al., [Inference with
#   Reference](https://arxiv.org/abs/2304.04487), copy from a text; Zhang et al., [Draft &
#   Verify](https://arxiv.org/abs/2309.08168), skip layers.
#
# This was the last tutorial. Back to the first: [1. Tokens](01_tokens.ipynb).
