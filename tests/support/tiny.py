"""A complete model that is small enough for tests: config, weights, and a real tokenizer."""

import dataclasses
import io
from functools import cache

import sentencepiece

from gemma_np import Gemma, GemmaConfig
from gemma_np.config import GLOBAL, LOCAL
from gemma_np.text.tokenizer import Tokenizer
from tests.support.strategies import random_weights

TEXT = """The lighthouse keeper counted the ships that passed in the night, and wrote each of them down.
On the third evening there were none. She lit the lamp all the same, for the sea does not ask.
def add(a, b):
    return a + b
In 1847 the tower was raised by 12 metres; in 1903 its lamp was changed for a brighter one.
Über dem Wasser stand der Mond, et la mer était calme. ¿Quién pregunta al mar?
"""

USER_DEFINED = [
    "<start_of_turn>",
    "<end_of_turn>",
    "<unused0>",
    "\n",
    "\n\n",
    "\u2581\u2581",
    "\u2581\u2581\u2581\u2581",
]

SIZES = {"hidden_size": 12, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"head_dim": 4, "intermediate_size": 7, "max_position_embeddings": 64, "query_pre_attn_scalar": 4}
KINDS = (LOCAL, GLOBAL, LOCAL, GLOBAL)


@cache
def vocabulary():
    """Return the bytes of a sentencepiece model, trained on TEXT with the settings of Gemma's tokenizer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=USER_DEFINED,
        minloglevel=2,
    )
    return model.getvalue()


def tokenizer():
    return Tokenizer(vocabulary())


def tokenizer_without_turns():
    """Return a tokenizer whose vocabulary has no pieces for turns and padding."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(vocabulary())
    for piece in model.pieces:
        if piece.piece in ("<start_of_turn>", "<end_of_turn>", "<pad>"):
            piece.piece = piece.piece.replace("<", "[")
    return Tokenizer(model.SerializeToString())


def config(model_type="gemma2"):
    """Return a config whose vocabulary is that of the tokenizer."""
    special = {
        "gemma": {"layer_types": (GLOBAL,) * 4},
        "gemma2": {"layer_types": KINDS, "sliding_window": 3, "attn_logit_softcapping": 2.0},
        "gemma3_text": {"layer_types": KINDS, "sliding_window": 3, "rope_theta": 300.0},
    }[model_type]
    if model_type == "gemma2":
        special["final_logit_softcapping"] = 3.0
    if model_type == "gemma3_text":
        special |= {"rope_local_base_freq": 10.0, "rope_scaling_factor": 2.0}
    return GemmaConfig(model_type=model_type, vocab_size=len(tokenizer()), **SIZES, **special)


def gemma(model_type="gemma2", seed=0, **changes):
    """Return the whole model with random weights; changes replace fields of its config."""
    tiny = dataclasses.replace(config(model_type), **changes)
    return Gemma(tiny, random_weights(tiny, seed), tokenizer())


def with_number(model, name, value, position=3):
    """Return the model with one number of a weight replaced."""
    weight = model.weights[name].copy()
    weight.flat[position] = value
    return dataclasses.replace(model, weights={**model.weights, name: weight})
