"""Make the bundled models from nothing, in about three hours on two cores.

    mpiexec -n 2 python tutorials/experiments/bundled.py

The ranks share the runs, one core each. To continue an interrupted call, repeat it. The models, with the curve and the
samples of their cards, are written to experiments-work/bundled.
"""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from cards import REPLY_TOKENS, continuations, curves, loss_on, own_replies_measured, plot_curves, replies
from common import BATCH_SIZE, HERE, SEEDS, SEQ_LEN, TRAINING, Lab, Run, open_lab, steps
from corpus import Corpus, documents
from dialogues import conversations, own_replies
from pairs import BUNDLED_BUDGET, cache_teachers, student, twin

import gemma_np
from gemma_np.compression.quantization import Scheme
from gemma_np.compression.quantize_model import quantize_model
from gemma_np.text.chat import chat_ids
from gemma_np.training import TrainingConfig, merge, new_model
from gemma_np.training.conversations import all_conversations, conversation_rows, random_conversations
from gemma_np.training.data import random_batches, random_windows
from gemma_np.training.distillation import from_teacher
from gemma_np.training.task import Batch, Task
from gemma_np.training.training_state import State

SHAPE_4M = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 768}
SHAPE_TINY = {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1}


def teacher(lab: Lab) -> Run:
    """Return the training of a larger model on 12 million tokens: from the Bibles to the plays."""
    config = replace(TRAINING, steps=steps(12e6), learning_rate=3e-3, seed=10)
    task = Task(from_bibles_to_plays(lab.corpus, config), validation=lab.validation)
    return Run("teacher", new_model(lab.corpus.tokenizer, seed=10, **SHAPE_4M), task, config)


def from_bibles_to_plays(corpus: Corpus, config: TrainingConfig) -> Callable[[State], Batch]:
    """Return the `next_batch` of a task that begins with the Bibles and ends with the plays: the probability that a
    text is taken from the plays rises from 0 to 1 in proportion to the step."""

    def next_batch(state: State) -> Batch:
        plays = state.generator.random(config.batch_size) < state.step / config.steps
        texts = [
            random_windows(corpus.plays if is_play else corpus.bibles, 1, SEQ_LEN + 1, state.generator)
            for is_play in plays
        ]
        return Batch(np.concatenate(texts))

    return next_batch


def other_generation(lab: Lab, generation: int, **shape: int) -> Run:
    """Return the training of a tiny Gemma 1 or 3 on the plays."""
    config = replace(TRAINING, steps=steps(5e6), seed=generation)
    task = Task(random_batches(lab.corpus.plays, BATCH_SIZE, SEQ_LEN), validation=lab.validation)
    model = new_model(lab.corpus.tokenizer, seed=generation, generation=generation, **SHAPE_TINY, **shape)
    return Run(f"gemma{generation}", model, task, config)


def chat_rows(lab: Lab, part: str) -> np.ndarray:
    """Return the conversations of a part of the corpus, as `conversation_rows` does."""
    tokenizer = lab.corpus.tokenizer
    plays = documents(lab.folder, part)
    found = [conversation for play in plays for conversation in conversations(play, tokenizer, SEQ_LEN)]
    return conversation_rows(found, tokenizer, SEQ_LEN)


def fine_tuned(lab: Lab, start: Run, name: str) -> Run:
    """Return the fine-tuning of a trained model on the conversations of the plays."""
    rows = chat_rows(lab, "plays")
    config = replace(TRAINING, steps=1000, batch_size=8, learning_rate=1e-3, warmup_steps=100, weight_decay=0.1)
    task = Task(random_conversations(rows, config.batch_size), validation=chat_validation(lab))
    return Run(name, lab.trained(start.name), task, config)


def on_policy(lab: Lab, student: Run, teacher: Run, name: str) -> Run:
    """Return the on-policy distillation of a fine-tuned student from a fine-tuned teacher."""
    config = replace(
        TRAINING, steps=1000, batch_size=8, learning_rate=3e-4, warmup_steps=50, weight_decay=0.1, eval_every=250
    )
    model = lab.trained(student.name)
    next_batch = own_replies(chat_rows(lab, "plays"), model.config, lab.corpus.tokenizer, config.batch_size)
    task = Task(next_batch, from_teacher(lab.trained(teacher.name)), chat_validation(lab))
    return Run(name, model, task, config)


def chat_validation(lab: Lab) -> list[Batch]:
    """Return the conversations of the held-out plays."""
    return all_conversations(chat_rows(lab, "held_out"), 8)


def publish(lab: Lab, run: Run, name: str) -> None:
    """Write a trained model, and what its card shows of it, to the folder of the bundled models: in bfloat16, and the
    matrices of the one to chat with in int8."""
    folder = lab.folder / "bundled" / name
    is_chat = name.endswith("chat")
    if not folder.exists():
        model = merge([lab.trained(run.name)], "bfloat16")
        if is_chat:
            model = replace(model, weights=dict(quantize_model(model, Scheme("int8"))))
        model.save(folder)
    model = gemma_np.load(folder)
    (play,) = (text for text in documents(lab.folder, "held_out") if "Juliet" in text)
    samples = replies(model) if is_chat else continuations(model)
    folder.with_suffix(".md").write_text(f"# {name}\n\nRomeo and Juliet: {loss_on(model, play)}\n\n{samples}")


def compare_chats(lab: Lab, students: list[Run], teacher: Run) -> None:
    """Print how far the students are from their teacher on their own replies to 200 speeches of the held-out plays."""
    tokenizer = lab.corpus.tokenizer
    prompts = [
        ids
        for play in documents(lab.folder, "held_out")
        for conversation in conversations(play, tokenizer, SEQ_LEN)
        if len(ids := chat_ids(conversation[:1], tokenizer)) <= SEQ_LEN - REPLY_TOKENS
    ]
    chosen = [prompts[index] for index in np.random.default_rng(0).choice(len(prompts), 200, replace=False)]
    model = lab.trained(teacher.name)
    for run in students:
        print(f"{run.name}: {own_replies_measured(lab.trained(run.name), model, chosen)}")


if __name__ == "__main__":
    with open_lab(__doc__) as lab:
        large = teacher(lab)
        twins = [twin(lab, seed, BUNDLED_BUDGET) for seed in SEEDS]
        gemma3 = other_generation(lab, 3, num_hidden_layers=6, intermediate_size=128)
        gemma1 = other_generation(lab, 1, intermediate_size=192)
        lab.train([large, *twins, gemma3, gemma1], "stage 1 of 4")
        cache_teachers(lab)
        students = [student(lab, seed, BUNDLED_BUDGET) for seed in SEEDS]
        lab.train(students, "stage 2 of 4")
        chats = [fine_tuned(lab, large, "teacher-chat"), fine_tuned(lab, students[0], "student-chat")]
        lab.train(chats, "stage 3 of 4")
        tuned = on_policy(lab, chats[1], chats[0], "on-policy-chat")
        lab.train([tuned], "stage 4 of 4")
        if lab.ranks.rank == 0:
            shipped = {
                "shakespeare-1m": students[0],
                "shakespeare-1m-scratch": twins[0],
                "shakespeare-4m": large,
                "shakespeare-chat": tuned,
                "shakespeare-gemma1": gemma1,
                "shakespeare-gemma3": gemma3,
            }
            for name, run in shipped.items():
                publish(lab, run, name)
            compare_chats(lab, [chats[1], tuned], chats[0])
            kinds = {"from scratch": twins, "distilled": students, "teacher (4 M)": [large]}
            folders = {kind: [lab.folder / run.name for run in runs] for kind, runs in kinds.items()}
            measured = curves(folders, BATCH_SIZE * SEQ_LEN)
            (HERE / "curves.json").write_text(json.dumps(measured) + "\n")
            plot_curves(measured, lab.folder / "bundled" / "curve.svg")
