"""What implementations call the records: a table of names, in words that are the same for the same thing.

`self_attn.q_proj` (transformers), `attn_q` and `Qcur` (llama.cpp) and `attn/q_einsum` (flax) are all "attn q" or "q".
To add a name, add its words to `_NAMES`.
"""

import difflib
import re
from collections.abc import Mapping
from typing import NamedTuple

from gemma_np.config import GemmaConfig
from gemma_np.model.records import RECORDS

_WORDS = {
    "attn": "self attn, self attention, attention",
    "mlp": "feed forward, feedforward, ffn, ffw",
    "norm": "layernorm, layer norm, rmsnorm, rms norm, ln, normed",
    "q": "query, queries, wq, qcur",
    "k": "key, keys, wk, kcur",
    "v": "value, values, wv, vcur",
    "o": "wo",
    "qkv": "wqkv",
    "rope": "rotated, roped",
    "embed": "embd, emb",
    "resid": "residual",
    "capped": "soft capped, softcapped, soft cap, softcap",
    "softmax": "soft max",
    "": "proj, projection, einsum, dense, model, transformer, decoder, layers, layer, blocks, block, blk, h",
}
"""Word -> other words for the same thing; the last ones say nothing."""

_NAMES: Mapping[tuple[str, ...], str] = {
    ("embedding",): "embedding, embed tokens, embedder, inp scaled, token embed, embed, wte",
    ("layers.*.input_layernorm",): "input norm, attn norm, pre attn norm",
    ("layers.*.self_attn.q",): "attn q, q",
    ("layers.*.self_attn.k",): "attn k, k",
    ("layers.*.self_attn.v",): "attn v, v",
    ("layers.*.self_attn.q", "layers.*.self_attn.k", "layers.*.self_attn.v"): "attn qkv, qkv",
    ("layers.*.self_attn.k", "layers.*.self_attn.v"): "attn kv, kv",
    ("layers.*.self_attn.q_norm",): "attn q norm, q norm",
    ("layers.*.self_attn.k_norm",): "attn k norm, k norm",
    ("layers.*.self_attn.q_rope",): "attn q rope, q rope",
    ("layers.*.self_attn.k_rope",): "attn k rope, k rope",
    ("layers.*.self_attn.scores",): "attn scores, scores, attn logits, kq, qk",
    ("layers.*.self_attn.scores_capped",): "attn scores capped, scores capped, attn logits capped, kq capped",
    ("layers.*.self_attn.probs",): "attn probs, probs, attn weights, attn softmax, kq softmax",
    ("layers.*.self_attn.context",): "attn context, context, attn encoded, encoded, kqv out, attn out",
    ("layers.*.self_attn.o",): "attn o, attn output, attn attn vec, attn vec, attn out, attn",
    ("layers.*.post_attention_layernorm",): "post attn norm, attn post norm",
    ("layers.*.resid_mid",): "resid mid, sa out, attn resid",
    ("layers.*.pre_feedforward_layernorm",): "pre mlp norm, mlp norm",
    ("layers.*.mlp.gate",): "mlp gate, gate",
    ("layers.*.mlp.up",): "mlp up, up",
    ("layers.*.mlp.gate", "layers.*.mlp.up"): "mlp gate up, gate up, mlp gating",
    ("layers.*.mlp.hidden",): "mlp hidden, mlp geglu, mlp gate par",
    ("layers.*.mlp.down",): "mlp down, down, mlp linear, mlp out, mlp output, mlp",
    ("layers.*.post_feedforward_layernorm",): "post mlp norm, mlp post norm",
    ("layers.*.resid_post",): "resid post, l out, output, out, ",
    ("norm",): "norm, final norm, result norm, output norm, norm f",
    ("logits",): "logits, lm head, output",
    ("logits_capped",): "logits capped, result output, output",
}
"""Records, maybe several side by side -> names of them in the words above, the clearest first. In a layer, the empty
name is that of the layer itself: its output."""

_PHRASES = {phrase: word for word, phrases in _WORDS.items() for phrase in phrases.split(", ")}
_VOCABULARY = sorted({word for text in (*_NAMES.values(), *_PHRASES) for word in re.findall("[a-z]+", text)})
_SIMILAR = 0.88  # norm and norms are, capped and uncapped are not


class KnownName(NamedTuple):
    """Something that a name may stand for."""

    kinds: tuple[str, ...]  # records, with `*` for the layer; several are side by side
    rank: int  # of this name among those for the same records; 0 is the clearest


def in_words(text: str) -> str:
    """Return the words of a name, in the form that the table has: "Qcur" -> "q"."""
    words = [word.lower() for word in re.findall("[A-Z]?[a-z0-9]+|[A-Z0-9]+", text)]
    near = [difflib.get_close_matches(word, _VOCABULARY, 1, _SIMILAR) for word in words]
    joined = " ".join(found[0] if found else word for word, found in zip(words, near, strict=True))
    for phrase, word in _PHRASES.items():
        joined = re.sub(rf"\b{phrase}\b", word, joined)
    return " ".join(joined.split())


def model_kinds(config: GemmaConfig) -> list[str]:
    """Return the records of a model in the order of execution, with `*` for the layer."""
    return [row.name for row in RECORDS if not row.needs or getattr(config, row.needs)]


def known_names(config: GemmaConfig, *, in_layer: bool) -> dict[str, list[KnownName]]:
    """Return the table of names for a model, of those in a layer or of the others: words -> what they may stand for."""
    there, table = set(model_kinds(config)), dict[str, list[KnownName]]()
    more: dict[str, str] = {}
    if not config.has_post_norms:  # transformers names the second norm so; llama.cpp has no other name for logits
        more["layers.*.pre_feedforward_layernorm"] = ", post attn norm"
    if not config.final_logit_softcapping:
        more["logits"] = ", result output"
    for kinds, names in _NAMES.items():
        if ("*" in kinds[0]) == in_layer and there.issuperset(kinds):
            for rank, words in enumerate((names + more.get(kinds[0], "")).split(", ")):
                table.setdefault(words, []).append(KnownName(kinds, rank))
    return table
