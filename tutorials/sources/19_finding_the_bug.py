# %% [markdown]
# # 19. Finding the bug
#
# After this you can find the wrong line in a Gemma that is subtly wrong, your own or somebody else's: dump its
# intermediates, compare them with this package, and interpret the comparison. About 25 minutes. In the [Gemma 2
# report](https://arxiv.org/abs/2408.00118): section 2 and table 1, which are what a port has to get right.
#
# Before this: [18. Gemma 1, 2 and 3](18_gemma_1_2_and_3.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from support import check, lines
from support.exercises import finding_the_bug as exercises
from support.figures import finding_the_bug as figures
from support.plots import use_style

import gemma_np
from gemma_np.checkpoints.safetensors_file import read_metadata
from gemma_np.cli import main
from gemma_np.model.attention_mask import attention_mask
from gemma_np.oracle.comparison import compare
from gemma_np.oracle.diagnosis import describe_diagnosis, diagnose
from gemma_np.oracle.dump import align_dump, read_dump
from gemma_np.oracle.files import plan_passes
from gemma_np.oracle.isolation import isolated_run
from gemma_np.oracle.noise import passing_errors
from gemma_np.oracle.trace import Reference, write_trace

# %%
use_style()
model = gemma_np.load()
config, weights = model.config, model.weights
temporary = tempfile.TemporaryDirectory()  # goes with the notebook
folder = Path(temporary.name)
short = model.tokenizer.encode("To be, or not to be, that is the question.")
speech = model.tokenizer.encode("""HAMLET. To be, or not to be, that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles,
And by opposing end them.""")
print(f"{len(short)} and {len(speech)} tokens; the window of local layers is {config.sliding_window}")

# %% [markdown]
# ## A port
#
# Here is all of Gemma 2 again, written from scratch without the package. It reads one text, keeps keys and values
# between calls, and records every intermediate by the name that `gemma-np records` prints (other names also work: a
# small JSON file translates them). Two of its lines are wrong, with mistakes that people really made. Can you see them?
#
# A `Port` has what the functions share: the weights, the keys and values so far, and the records.


# %%
class Port:
    """The keys and values of one text, and the records of the last pass."""

    def __init__(self):
        self.cache, self.kept = {}, {}

    def keep(self, name, value):
        self.kept[name] = value
        return value

    def project(self, name, x):
        return x @ weights[f"model.{name}_proj.weight"].T

    def norm(self, name, x):
        return self.keep(name, norm(x, weights[f"model.{name}.weight"]))


# %% [markdown]
# The model:


# %%
def read(port, ids):
    """The next ids [T] -> logits [T, V]."""
    embedding = weights["model.embed_tokens.weight"]
    x = port.keep("embedding", embedding[ids] * config.hidden_size**0.5)
    for n in range(config.num_hidden_layers):
        x = layer(port, x, n)
    logits = port.keep("logits", port.norm("norm", x) @ embedding.T)
    return port.keep("logits_capped", 30 * np.tanh(logits / 30))


# %% [markdown]
# A layer:


# %%
def layer(port, x, n):
    """The stream [T, D] -> the stream after layer n [T, D]."""
    at = f"layers.{n}"
    y = attention(port, port.norm(f"{at}.input_layernorm", x), n)
    x = port.keep(f"{at}.resid_mid", x + port.norm(f"{at}.post_attention_layernorm", y))
    y = port.norm(f"{at}.pre_feedforward_layernorm", x)
    gate, up = (port.keep(f"{at}.mlp.{name}", port.project(f"{at}.mlp.{name}", y)) for name in ("gate", "up"))
    hidden = port.keep(f"{at}.mlp.hidden", activation(gate) * up)
    y = port.keep(f"{at}.mlp.down", port.project(f"{at}.mlp.down", hidden))
    return port.keep(f"{at}.resid_post", x + port.norm(f"{at}.post_feedforward_layernorm", y))


# %% [markdown]
# Attention, in two parts:


# %%
def attention(port, x, n):
    """The normalized stream [T, D] -> what attention of layer n returns [T, D]."""
    at = f"layers.{n}.self_attn"
    q, k, v = (port.keep(f"{at}.{name}", heads(port.project(f"{at}.{name}", x))) for name in "qkv")  # [H or K, T, h]
    keys, values = port.cache.get(n, (k[:, :0], v[:, :0]))  # none yet
    positions = np.arange(keys.shape[1], keys.shape[1] + len(x))
    q, k = port.keep(f"{at}.q_rope", rotate(q, positions)), port.keep(f"{at}.k_rope", rotate(k, positions))
    keys, values = np.concatenate([keys, k], axis=1), np.concatenate([values, v], axis=1)  # [K, S, h]
    port.cache[n] = keys, values
    context = attend(port, q, keys, values, visible(positions, keys.shape[1], config.window(n)), at)
    return port.keep(f"{at}.o", port.project(f"{at}.o", context))


# %%
def attend(port, q, keys, values, mask, at):
    """q [H, T, h], keys and values [K, S, h], mask [T, S] -> context [T, H*h]."""
    group = len(q) // len(keys)
    keys, values = np.repeat(keys, group, axis=0), np.repeat(values, group, axis=0)  # [H, S, h]
    scores = port.keep(f"{at}.scores", q @ keys.swapaxes(1, 2) / config.query_pre_attn_scalar**0.5)  # [H, T, S]
    scores = np.where(mask, port.keep(f"{at}.scores_capped", 50 * np.tanh(scores / 50)), -np.inf)
    odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probs = port.keep(f"{at}.probs", odds / odds.sum(axis=-1, keepdims=True))
    return port.keep(f"{at}.context", (probs @ values).swapaxes(0, 1).reshape(q.shape[1], -1))


# %% [markdown]
# And the small functions:


# %%
def visible(positions, count, window):
    """Which of the first `count` keys the queries at these positions see, bool [T, count]."""
    back = positions[:, None] - np.arange(count)  # how many steps back a key is
    return (back >= 0) & (back <= window) if window else back >= 0


def heads(x):
    return x.reshape(len(x), -1, config.head_dim).swapaxes(0, 1)


def activation(x):
    return x / (1 + np.exp(-x))


# %%
def norm(x, weight):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + config.rms_norm_eps) * (1 + weight)


def rotate(x, positions):
    half = x.shape[-1] // 2
    angles = np.outer(positions, config.rope_theta ** (-np.arange(half) / half))
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


# %% [markdown]
# ## What it generates
#
# The first test of a new port is usually to generate text.


# %%
def write(prompt, tokens):
    """Greedy text of the port: always the most likely token."""
    port, ids, unread = Port(), [], model.tokenizer.encode(prompt)
    for _ in range(tokens):
        unread = [int(read(port, unread)[-1].argmax())]
        ids += unread
    return model.tokenizer.decode(ids)


scene = "[Enter HAMLET.]\n\nHAMLET.\n"
theirs, ours = write(scene, 40), model.generate(scene, 40)
print(f"THE PORT: {theirs}\n\nTHE PACKAGE: {ours}")

# %% tags=["check"]
assert theirs != ours and theirs.split("\n")[:3] == ours.split("\n")[:3]

# %% [markdown]
# Both write a dialogue, as in the plays, and both begin with the same line and the same speaker. From the first text
# alone you would say that the port works and the model is small. The loss on a real text tells a little more, but not
# what is wrong:


# %%
def loss(logits, ids):
    """Mean nats per token: [T, V] and ids [T] -> number."""
    logits = logits.astype(np.float64)
    chosen = np.take_along_axis(logits[:-1], np.array(ids)[1:, None], axis=-1)[:, 0]  # [T - 1]
    return np.mean(np.log(np.exp(logits[:-1]).sum(axis=-1)) - chosen)


port_loss, right_loss = loss(read(Port(), speech), speech), loss(model.logits(speech), speech)
print(f"nats per token of the speech: the port {port_loss:.2f}, the package {right_loss:.2f}")

# %% tags=["check"]
assert 1.005 < port_loss / right_loss < 1.03

# %% [markdown]
# ## The first comparison
#
# So look inside, in the three steps of [this page](capture_another_framework.md). First, the reference dumps its
# intermediates for some tokens; in a shell:
#
# ```sh
# gemma-np trace --prompt "To be, or not to be, that is the question." -o ref.safetensors
# ```
#
# Second, the port dumps its own to a file in the same format, with the token ids in the metadata. A *pass* is one call
# of the model: the prompt, or later a decoded token, whose names begin with `pass.1.`, `pass.2.` and so on.


# %%
def capture(passes, path):
    """Run the port on these passes, and write its records to a file."""
    port, records = Port(), {}
    for number, ids in enumerate(passes):
        port.kept = {}
        read(port, ids)
        prefix = f"pass.{number}." if number else ""
        records |= {prefix + name: np.ascontiguousarray(value) for name, value in port.kept.items()}
    save_file(records, path, metadata={"passes": json.dumps(passes)})
    return path


count = write_trace(model, [short], folder / "ref.safetensors", source="shakespeare-1m")
port_file = capture([short], folder / "port.safetensors")
print(f"{count} records in ref.safetensors, {len(read_dump(port_file).records)} in {port_file.name}")

# %% [markdown]
# Third, the comparison: `gemma-np compare ref.safetensors port.safetensors` in a shell. In Python, `compare`
# returns one row per record, in the order of execution:

# %%
truth = gemma_np.load("shakespeare-1m", "float64")


def judged(path, passes, isolate=False):
    """A row for each record of the file."""
    return compare(align_dump(read_dump(path), Reference(truth, passes)), "float32", isolate=isolate)


rows = judged(port_file, [short])
wrong = [row for row in rows if row.status == "DIFF"]
first = rows.index(wrong[0])
for row in rows[first - 2 : first + 3]:
    place = list(row.where)
    print(f"{row.status:4} {row.key:38} error {row.error:.1e}, passes {row.threshold:.1e}, largest at {place}")
print(f"{len(wrong)} of {len(rows)} records differ; the first: {wrong[0].key}")

# %% tags=["check"]
assert wrong[0].key == "layers.0.mlp.hidden" and len(wrong) > 60
assert all(row.status == "OK" for row in rows[:first])

# %% [markdown]
# Two numbers matter. The *error* of a record $x$, where $x^*$ is the reference in float64:
#
# $$\mathrm{error} = \frac{\max_i |x_i - x^*_i|}{\max_i |x^*_i|}$$
#
# And the *threshold* below which a record passes. No two programs round in the same way, so an error is never zero. The
# oracle measures the effect of rounding alone: it runs the reference again with every intermediate rounded to the dtype
# of the dump, several times, up or down at random, and takes a multiple of the largest error of each record:

# %%
lines(passing_errors, "generators = ", "runs = ", "for run in", "for key, error", "noise[key] = max", "return")

# %% [markdown]
# ## What is wrong, and what only inherits it
#
# Most of the records differ, but most of them only inherit the error. So the oracle also checks each operation *on the
# port's own inputs*: the reference runs once more, and a tape keeps what the reference computes from the records so
# far, then replaces it by the port's record ([tutorial 10](10_the_whole_model.ipynb) has such tapes). In a shell, this
# is `--isolate`.

# %%
lines(
    isolated_run,
    "def tape",
    "replaced = ",
    "for record_slice in by_name.get",
    "expected[record_slice.key]",
    "found = ",
    "np.copyto",
    "return inputs",
)

# %%
isolated_rows = judged(port_file, [short], isolate=True)
titles = "The port against the reference", "Each operation on the port's own inputs"
figures.by_layer(dict(zip(titles, (rows, isolated_rows), strict=True)))

culprits = [row.key for row in isolated_rows if row.status == "DIFF"]
print("wrong given their inputs:", *culprits)

# %% tags=["check"]
assert culprits == [f"layers.{layer}.mlp.hidden" for layer in range(4)]

# %% [markdown]
# In the upper plot, everything after the first mistake is wrong. In the lower plot, only one operation per layer is:
# `hidden`, which is $\mathrm{gelu}(\text{gate}) \odot \text{up}$. Its inputs `gate` and `up` are right, so the mistake
# is between these lines.
#
# ## The diagnosis
#
# Which mistake is it? For each operation the oracle has a list of what people compute instead: other activations, other
# factors, other masks, and so on. It tries each of them on the port's own inputs and checks which one gives the port's
# numbers. This is the command, run from Python:

# %%
status = main(["diagnose", "--model", "shakespeare-1m", str(port_file)])

# %% tags=["check"]
assert status == 1  # something is wrong
assert max(row.error / row.threshold for row in isolated_rows) > 1e4

# %% [markdown]
# The line "with it" is the proof. Before, the error of the worst record was tens of thousands of times larger than
# rounding explains; with SiLU in place of GELU, no more is left than rounding explains. To fix it, we
# define the function again:


# %%
def activation(x):
    return x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)))


mended_file = capture([short], folder / "mended.safetensors")
mended_rows = judged(mended_file, [short])
print({status: sum(row.status == status for row in mended_rows) for status in ("OK", "DIFF")})

same_text = write(scene, 40)
print("and its text is the package's:", same_text.split("\n")[3])

# %% tags=["check"]
assert all(row.status == "OK" for row in mended_rows)
assert same_text == ours

# %% [markdown]
# All records are right, and so is the text.
#
# A word on scores. Those of keys that a query may not see never count: the comparison skips them, so a port may record
# them before its mask or after, as $-\infty$, $-10^9$ or anything else. Probabilities of these keys do count: they must
# be zero. And keys at the front that no query of the pass can see, because a ring has dropped them, may be left out.

# %%
records = load_file(mended_file)
hidden = ~np.tri(len(short), dtype=bool)  # [T, S]
for value in (value for name, value in records.items() if name.endswith("scores")):
    value[:, hidden] = -np.inf
save_file(records, folder / "minus_infinity.safetensors", metadata={"passes": json.dumps([short])})
with_infinity = judged(folder / "minus_infinity.safetensors", [short])
print({status: sum(row.status == status for row in with_infinity) for status in ("OK", "DIFF")})

# %% tags=["check"]
assert all(row.status == "OK" for row in with_infinity)

# %% [markdown]
# It is tempting to stop here.
#
# ## The second mistake
#
# But the text had 16 tokens, fewer than the window of 64, and was read in one pass. Mistakes that only matter past the
# window, or in decoding, could not show. So take the speech, which is longer than the window, and read its last two
# tokens one by one, as in decoding.
#
# In a shell, `gemma-np trace --decode 2` writes such a reference: after the prompt it decodes two tokens, and it *chooses
# them itself*, greedily. A port must read the very same ids, not those that it would choose, or every record after the
# first different token differs. They are in the metadata of the file, under `passes`, one list of ids for each pass
# ([this page](capture_another_framework.md) explains the form):

# %%
chosen = plan_passes(model, speech[:-2], decode=2)  # what --decode 2 does
write_trace(model, chosen, folder / "decoded.safetensors", pattern="logits", source="shakespeare-1m")
in_file = json.loads(read_metadata(folder / "decoded.safetensors")["passes"])
print("tokens in each pass:", [len(ids) for ids in in_file], " decoded ids:", in_file[1:])
for what, ids in (("decoded", [id for [id] in in_file[1:]]), ("in the speech", speech[-2:])):
    print(f"{what}: {[model.tokenizer.piece(id) for id in ids]}")

# %% tags=["check"]
assert in_file == chosen

# %% [markdown]
# Here we choose the passes ourselves: the last two tokens are those of the speech.

# %%
passes = [speech[:-2], speech[-2:-1], speech[-1:]]
long_file = capture(passes, folder / "long.safetensors")
long_rows = judged(long_file, passes)
long_isolated = [row for row in judged(long_file, passes, isolate=True) if row.status == "DIFF"]
for row in long_isolated:
    print(f"{row.key:33} error {row.error:.1e}, passes {row.threshold:.1e}, largest at {list(row.where)}")

# %% tags=["check"]
assert {row.key.split(".")[-1] for row in long_isolated} == {"probs"} and len(long_isolated) == 6
assert all(f"layers.{layer}" in " ".join(row.key for row in long_isolated) for layer in (0, 2))
assert long_isolated[0].where[1] >= config.sliding_window  # [head, query, key]

# %% [markdown]
# Only the probabilities are wrong, only on the local layers 0 and 2, and the largest error is at a query past position
# 64: this suggests the window. What does the oracle say?

# %%
reference = Reference(truth, passes)
long_diagnosis = diagnose(align_dump(read_dump(long_file), reference), "float32")
print(*describe_diagnosis(long_diagnosis), sep="\n")

# %% tags=["check"]
assert [mistake.id for mistake in long_diagnosis.mistakes] == ["window-off-by-one"]
assert [cause.says for cause in long_diagnosis.causes] == ["a query sees one key more than the window"]

# %% [markdown]
# A window of 64 is the query itself and the 63 before it: a key must be *fewer* than 64 steps back. The port has `<=`
# where the package has `<`:

# %%
lines(attention_mask, "distance = ", "return")

# %% [markdown]
# Could we have noticed it otherwise? Perhaps by the loss on a text longer than the window:

# %%
off_by_one = loss(read(Port(), speech), speech)
print(f"nats per token of the speech: {off_by_one:.4f} with 65 keys, {right_loss:.4f} with 64")

# %% tags=["check"]
assert 0 < abs(off_by_one / right_loss - 1) < 0.001

# %% [markdown]
# Hardly. The output alone does not show a mistake like this; the first wrong record shows it at once. We fix it, too:


# %%
def visible(positions, count, window):
    back = positions[:, None] - np.arange(count)
    return (back >= 0) & (back < window) if window else back >= 0


final_rows = judged(capture(passes, folder / "final.safetensors"), passes)
figures.by_pass({"SiLU fixed, window not": long_rows, "Both fixed": final_rows})
before, after = (sum(row.status == "DIFF" for row in found) for found in (long_rows, final_rows))
print(f"of {len(final_rows)} records {before} differ before, {after} after")

# %% tags=["check"]
assert before > 200 and after == 0

# %% [markdown]
# What to remember when you compare your own port with the reference:
#
# - use a text longer than the window, and decode some tokens: position 0 hides RoPE, one token hides every mistake in
#   scores and masks, a short text hides the window, one pass hides the cache;
# - look at the first record that differs, then at those that are wrong given their inputs;
# - fix it, and compare again until nothing differs.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** The error of a record, as above. Scores of masked keys carry no information, and may be minus infinity in a
# port: `masked` is True where numbers do not count.
#
# <details><summary>Hint 1</summary>
#
# It is one fraction: the largest difference, divided by the largest size expected.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.where(masked, 0, ...)` excludes numbers, both from the differences and from the sizes.
#
# </details>


# %%
def relative_error(found, expected, masked):
    """found and expected [...], masked bool [...] -> number"""
    ...


check(relative_error, exercises.RELATIVE_ERROR)

# %% [markdown]
# **2.** Which record is the first wrong one? You get two dumps, as lists of arrays in the order of execution, and the
# threshold of each record. Beware of NaN: every comparison with NaN is false.
#
# <details><summary>Hint 1</summary>
#
# A record is right when its error is at most its threshold; otherwise it is wrong.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `not error <= threshold` is true for NaN as well. Return at the first such record, and -1 after the loop.
#
# </details>


# %%
def first_wrong(theirs, ours, thresholds):
    """theirs and ours: lists of arrays, thresholds: a list of numbers -> the index of the first wrong one, -1 for none"""
    ...


check(first_wrong, exercises.FIRST_WRONG)

# %% [markdown]
# **3.** Be the oracle. Somebody's norm of `x` returned `found`. Which of the catalogue's mistakes is it: 0, none; 1,
# `norm-no-plus1` (times $w$); 2, `norm-plus1-twice` (times $2 + w$); 3, something else?
#
# <details><summary>Hint 1</summary>
#
# Normalize x without a weight, then try each: $1 + w$, $w$, $2 + w$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.allclose` checks whether two arrays are equal up to rounding. If none of the three is, return 3.
#
# </details>


# %%
def which_mistake(found, x, weight):
    """found and x [T, D], weight [D] -> 0, 1, 2 or 3"""
    ...


check(which_mistake, exercises.WHICH_MISTAKE)

# %% [markdown]
# The solutions are in [solutions/19_finding_the_bug.py](solutions/19_finding_the_bug.py).
#
# ## Further reading
#
# - [Compare your own implementation with this one](capture_another_framework.md): for ports in other languages, and for
#   single functions in your tests.
# - [gemma_np/oracle](../gemma_np/oracle): [noise.py](../gemma_np/oracle/noise.py) and
#   [isolation.py](../gemma_np/oracle/isolation.py) first; [mistakes.py](../gemma_np/oracle/mistakes) is the
#   catalogue.
# - [gemma_np/model](../gemma_np/model), top to bottom: you know every line by now.
#
# Next: [20. Speculative decoding](20_speculative_decoding.ipynb).
