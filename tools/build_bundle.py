"""Build the bundled fine-tuning objective: an invented village, a small base model that has read about it, two tasks.

The folder it writes holds everything that one evaluation of the tiny campaign needs, with nothing to download:

* ``checkpoint/``: a Llama-shaped LitGPT checkpoint (``lit_model.pth``, ``model_config.yaml``, ``config.json``) with a
  word-level tokenizer;
* ``data/train.json`` and ``data/val.json``: Alpaca rows for the LoRA fine-tuning and for LitGPT's validation loss;
* ``tasks/village_val.*`` and ``tasks/village_test.*``: multiple-choice tasks for the LM evaluation harness; the search
  maximises the first, and the second is for a single look at the end;
* ``bundle.json``: seed, sizes, and how much of the village the base model knows.

How it works. Four facts are known about every villager: home, work, animal and favourite dish. The base model reads
all facts as plain sentences, so it *knows* the village. It also reads gossip: questions in the instruction template
about the villagers of the training part, with random replies. From gossip it learns how questions and replies are
worded, and that inside the template a reply has nothing to do with the villager, so it answers near chance. About two
of the four kinds of fact it also reads a few interviews: the same questions about the training part, outside the
template, with true replies. Fine-tuning gives the true replies on all four kinds for the training part. Two things can
be learned from them: to use inside the template what the interviews taught, for which a small learning rate is enough,
and to look up the other two kinds, which takes a well-chosen one. Both tasks measure this on villagers about whom no
question was seen before: ``village_val`` with both forms of a reply, a sentence or a word, and ``village_test`` with
the short form only, where each choice is one token.

Usage: ``python tools/build_bundle.py [--out bundle/village] [--seed 1] [--steps N]``
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before the import of torch: with one thread, sums are the same in every run

import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.prompts import Alpaca
from litgpt.utils import save_config
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

PARTS = {"train": 120, "val": 80, "test": 80}
"""Number of villagers in each part of the village; the parts do not overlap."""
TASK_FORMS = {"val": ("long", "short"), "test": ("short",)}
"""Forms of the replies in each task."""


@dataclass(frozen=True)
class Kind:
    """One kind of fact, the sentences that state it and the questions that ask for it.

    In the templates ``{n}`` is the villager's name, ``{v}`` the value as a phrase and ``{w}`` a word that stands for
    the phrase. The base model reads both, and predicts each from the name, not one from the other. The statements have
    varied wordings before a phrase or a word, so that the base model does not learn to look up a value after one
    particular word only. Of an ``interviewed`` kind the base model has read some true answers.
    """

    values: dict[str, str]  # phrase -> word
    statements: tuple[str, ...]
    long_questions: tuple[str, ...]
    long_reply: str
    short_questions: tuple[str, ...]
    interviewed: bool


SHORT_REPLY = "Answer: {w}"
"""All kinds share the short form of a reply."""
INTERVIEW = "A stranger asks: {question}\n{reply}"

KINDS = {
    "home": Kind(
        values={
            "in the old mill": "Millside",
            "on the green hill": "Hilltop",
            "by the stone bridge": "Bridgefoot",
            "near the salt lake": "Lakeshore",
            "under the tall pines": "Pinewood",
            "behind the white church": "Churchyard",
            "above the dark cave": "Cavemouth",
            "at the windy harbour": "Quayside",
        },
        statements=(
            "{n} lives {v}.",
            "The house of {n} stands {v}.",
            "Letters for {n} are always left {v}.",
            "{n} was born in {w}.",
            "The people who know {n} come from {w}.",
            "Every road takes {n} back to {w}.",
        ),
        long_questions=("Where do I find {n}?",),
        long_reply="Go and look {v}.",
        short_questions=("Which place is home to {n}?",),
        interviewed=True,
    ),
    "work": Kind(
        values={
            "bakes dark rye": "bread",
            "mends torn ropes": "nets",
            "keeps wild hives": "bees",
            "carves wooden bowls": "spoons",
            "shoes grey mares": "horses",
            "weaves warm cloaks": "wool",
            "digs wet earth": "clay",
            "sings sad tunes": "songs",
        },
        statements=(
            "{n} is the one who {v}.",
            "The neighbours of {n} say this friend {v}.",
            "Every morning {n} gets up and {v}.",
            "The hands of {n} know all about {w}.",
            "{n} is paid for {w}.",
            "People go to {n} when they need {w}.",
        ),
        long_questions=("What is the trade of {n}?",),
        long_reply="Because this one {v}.",
        short_questions=("Why do people visit {n}?",),
        interviewed=False,
    ),
    "animal": Kind(
        values={
            "limping dog": "dogs",
            "sleepy cat": "cats",
            "horned goat": "goats",
            "tame crow": "crows",
            "speckled hen": "hens",
            "stubborn mule": "mules",
            "quick hare": "hares",
            "fat toad": "toads",
        },
        statements=(
            "{n} keeps a {v}.",
            "The animal of {n} is a {v}.",
            "At night {n} feeds a {v}.",
            "{n} talks to {w}.",
            "The children say that {n} understands {w}.",
            "No friend of {n} may chase {w}.",
        ),
        long_questions=("Who follows {n} around?",),
        long_reply="You will see a {v}.",
        short_questions=("Which animal belongs to {n}?",),
        interviewed=True,
    ),
    "dish": Kind(
        values={
            "smoked trout": "fish",
            "barley broth": "soup",
            "apple tart": "cake",
            "goose liver": "meat",
            "ripe plums": "fruit",
            "soft curds": "cheese",
            "boiled beans": "stew",
            "pickled turnips": "roots",
        },
        statements=(
            "{n} likes {v}.",
            "The table of {n} is set with {v}.",
            "On feast days {n} eats {v}.",
            "{n} never gets enough {w}.",
            "The kitchen of {n} smells of {w}.",
            "Guests of {n} are offered {w}.",
        ),
        long_questions=("What should I cook for {n}?",),
        long_reply="Try it with {v}.",
        short_questions=("Which food pleases {n}?",),
        interviewed=False,
    ),
}

MODEL = {"n_layer": 3, "n_head": 4, "n_query_groups": 2, "n_embd": 128, "intermediate_size": 256}
BLOCK_SIZE = 128
STEPS = 3000
BATCH, WINDOW, PEAK_LR = 24, 64, 4e-3
SHARES = {"gossip": 0.35, "interview": 0.07, "statements": 0.58}  # of the documents
ENOUGH_KNOWN = 0.9  # least share of the facts of each kind that the base model must know

UNK, BOS, EOS = 0, 1, 2
Village = dict[str, dict[str, str]]  # name -> {"part": ..., and for each kind the phrase}
Row = dict[str, str]
STYLE = Alpaca()


def prompt_of(question: str) -> str:
    """Return the instruction template with a question, up to the place where the reply begins."""
    return str(STYLE.apply(question))


def stream(seed: int, purpose: str) -> random.Random:
    """Return a separate random generator for each purpose, so that a change in one does not affect the others."""
    return random.Random(f"{purpose} {seed}")


def make_village(rng: random.Random) -> Village:
    """Draw the villagers: each has a one-word name, a part, and values that are independent and equally frequent."""
    first = ["Ba", "Do", "Ki", "Lu", "Mo", "Ne", "Pi", "Ra", "Su", "Ta", "Vo", "Ze", "Fi", "Gu", "Ha", "Jo"]
    last = [
        *("bel", "dan", "fer", "gon", "kim", "lor", "mas", "nil"),
        *("pod", "ras", "sun", "tep", "van", "wick", "yon", "zar"),
    ]
    total = sum(PARTS.values())
    names = rng.sample([a + b for a in first for b in last] + [f"{a}ra{b}" for a in first for b in last], total)
    parts = [part for part, size in PARTS.items() for _ in range(size)]
    village = {name: {"part": part} for name, part in zip(names, parts, strict=True)}
    for kind, facts in KINDS.items():
        column = (list(facts.values) * total)[:total]
        rng.shuffle(column)
        for person, value in zip(village.values(), column, strict=True):
            person[kind] = value
    return village


def statements_document(rng: random.Random, name: str, person: dict[str, str]) -> str:
    """Return a text that states each fact about a villager once, in random order and wording, after a space each."""
    text = ""
    for kind in rng.sample(list(KINDS), len(KINDS)):
        value = person[kind]
        text += " " + rng.choice(KINDS[kind].statements).format(n=name, v=value, w=KINDS[kind].values[value])
    return text


def reply_of(kind: Kind, form: str, value: str) -> str:
    """Return the reply with ``value`` in the long or the short form."""
    template = kind.long_reply if form == "long" else SHORT_REPLY
    return template.format(v=value, w=kind.values[value])


def questions_of(kind: Kind, form: str) -> tuple[str, ...]:
    """Return the questions that are answered in the given form."""
    return kind.long_questions if form == "long" else kind.short_questions


def dialogue_document(rng: random.Random, village: Village, names: list[str], gossip: bool) -> str:
    """Return a question about one of the named villagers, with a reply in the form that fits.

    Gossip uses the instruction template and a random value, which is true only by chance. An interview is outside the
    template and has the true value.
    """
    label = rng.choice([label for label, kind in KINDS.items() if gossip or kind.interviewed])
    kind, name, form = KINDS[label], rng.choice(names), rng.choice(("long", "short"))
    question = rng.choice(questions_of(kind, form)).format(n=name)
    if gossip:
        return prompt_of(question) + reply_of(kind, form, rng.choice(list(kind.values)))
    return INTERVIEW.format(question=question, reply=reply_of(kind, form, village[name][label]))


def instruction_rows(village: Village, part: str, forms: tuple[str, ...]) -> list[Row]:
    """Return every question of the given forms about the villagers of a part, with the true reply."""
    return [
        {
            "instruction": question.format(n=name),
            "input": "",
            "output": reply_of(KINDS[kind], form, person[kind]),
            "kind": kind,
            "form": form,
            "value": person[kind],
        }
        for name, person in village.items()
        if person["part"] == part
        for kind in KINDS
        for form in forms
        for question in questions_of(KINDS[kind], form)
    ]


def task_documents(rng: random.Random, village: Village, part: str) -> list[dict[str, Any]]:
    """Return the questions of a task, each with the true reply and three others of its kind, in random order.

    In the test task the beginning that all replies share belongs to the context, so that every choice is one token.
    """
    documents = []
    for row in instruction_rows(village, part, TASK_FORMS[part]):
        kind, form = KINDS[row["kind"]], row["form"]
        values = [row["value"], *rng.sample([v for v in kind.values if v != row["value"]], 3)]
        rng.shuffle(values)
        query, choices = prompt_of(row["instruction"]), [reply_of(kind, form, value) for value in values]
        if part == "test":
            shared = SHORT_REPLY.split(" {")[0]
            query, choices = query + shared, [choice.removeprefix(shared) for choice in choices]
        documents.append({"query": query, "choices": choices, "gold": values.index(row["value"])})
    rng.shuffle(documents)
    return documents


TASK_YAML = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {name}.jsonl  # beside this file; the loader makes it absolute
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{query}}}}"
doc_to_target: "{{{{gold}}}}"
doc_to_choice: "choices"
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


def write_data_and_tasks(out: Path, village: Village, seed: int) -> dict[str, int]:
    """Write the fine-tuning rows and both tasks, and return how many rows or questions each has."""
    rng = stream(seed, "data")
    train = instruction_rows(village, "train", ("long", "short"))
    rng.shuffle(train)
    # LitGPT's validation loss uses villagers of the validation part only, so that it reveals nothing about the test
    val = rng.sample(instruction_rows(village, "val", ("long", "short")), 64)
    for name, rows in (("train", train), ("val", val)):
        alpaca = [{key: row[key] for key in ("instruction", "input", "output")} for row in rows]
        (out / "data" / f"{name}.json").write_text(json.dumps(alpaca, indent=0) + "\n", encoding="utf-8")
    sizes = {"train": len(train), "val_loss": len(val)}
    for part in ("val", "test"):
        documents = task_documents(stream(seed, part), village, part)
        name = f"village_{part}"
        lines = "".join(json.dumps(document) + "\n" for document in documents)
        (out / "tasks" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        (out / "tasks" / f"{name}.yaml").write_text(TASK_YAML.format(name=name), encoding="utf-8")
        sizes[name] = len(documents)
    return sizes


def all_texts(village: Village) -> list[str]:
    """Return each sentence, question and reply that can occur, so that the vocabulary contains all their words."""
    texts = [
        " " + statement.format(n=name, v=person[kind], w=facts.values[person[kind]])
        for name, person in village.items()
        for kind, facts in KINDS.items()
        for statement in facts.statements
    ]
    rows = [row for part in PARTS for row in instruction_rows(village, part, ("long", "short"))]
    texts += [INTERVIEW.format(question=row["instruction"], reply=row["output"]) for row in rows]
    return texts + [prompt_of(row["instruction"]) + row["output"] for row in rows]


def make_tokenizer(texts: list[str], folder: Path) -> Tokenizer:
    """Build and save a tokenizer with one token for each word (with the space before it) or punctuation mark.

    The two fixed texts of the instruction template are one token each, so a row has about 13 tokens instead of 50. The
    line break after "### Response:" is a token of its own, because the evaluation harness moves white space from the
    end of a context to the continuation.
    """
    head, tail = prompt_of("@").rstrip("\n").split("@")
    split = pre_tokenizers.Split(Regex(r"\n| ?[^\s\w]| ?\w+"), behavior="isolated")
    words = {"<unk>": UNK, "<s>": BOS, "</s>": EOS, head: 3, tail: 4}
    for text in texts:
        for piece in text.replace(head, "").replace(tail, "\n").splitlines(keepends=True):
            for word, _ in split.pre_tokenize_str(piece):
                words.setdefault(word, len(words))
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken(head, normalized=False), AddedToken(tail, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": False,
        "model_max_length": BLOCK_SIZE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return tokenizer


def make_model(vocabulary: int, folder: Path) -> GPT:
    """Build the untrained model and save its configuration for LitGPT and for transformers."""
    config = Config(
        name="village",
        hf_config={"org": "tiny", "name": "village"},
        block_size=BLOCK_SIZE,
        vocab_size=vocabulary,
        padding_multiple=64,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=1e-5,
        mlp_class_name="LLaMAMLP",
        rope_base=10000,
        **MODEL,
    )
    save_config(config, folder)
    transformers_config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.n_embd,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.block_size,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_query_groups,
        "head_dim": config.head_size,
        "num_hidden_layers": config.n_layer,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": config.padded_vocab_size,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(transformers_config, indent=1) + "\n", encoding="utf-8")
    model = GPT(config)
    model.apply(model._init_weights)
    return model


def pretrain(model: GPT, tokenizer: Tokenizer, village: Village, rng: random.Random, steps: int) -> list[float]:
    """Train the model to predict the next token of documents, which are newly generated for each batch.

    Args:
        model: The model, changed in place.
        tokenizer: The tokenizer of the bundle.
        village: All villagers; gossip is about those of the training part only.
        rng: Source of the documents.
        steps: Number of optimizer steps.

    Returns:
        The loss of each step.
    """
    names, stream, losses = list(village), list[int](), list[float]()
    asked = [name for name, person in village.items() if person["part"] == "train"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.01, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps, pct_start=0.1)
    began = time.process_time()
    for step in range(steps):
        while len(stream) < BATCH * (WINDOW + 1):
            (sort,) = rng.choices(list(SHARES), list(SHARES.values()))
            if sort in ("gossip", "interview"):
                text = dialogue_document(rng, village, asked, gossip=sort == "gossip")
            else:
                name = rng.choice(names)
                text = statements_document(rng, name, village[name])
            # with a start token half of the time: fine-tuning and scoring use none, other programs may use one
            stream += [*([BOS] if rng.random() < 0.5 else []), *tokenizer.encode(text).ids, EOS]
        batch = torch.tensor(stream[: BATCH * (WINDOW + 1)]).view(BATCH, WINDOW + 1)
        del stream[: BATCH * (WINDOW + 1)]
        logits = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 200 == 0 or step == steps - 1:
            print(f"step {step}: loss {losses[-1]:.3f}, {time.process_time() - began:.0f} CPU s", flush=True)
    return losses


@torch.no_grad()
def facts_known(model: GPT, tokenizer: Tokenizer, village: Village) -> dict[str, float]:
    """Return the share of the facts that the base model completes correctly from a plain statement.

    There is one share for each kind and form (the phrase, by its first token, or the word), over all its sentences.
    """
    model.eval()
    known = {}
    for kind, facts in KINDS.items():
        for form, mark in (("long", "{v}"), ("short", "{w}")):
            hits = total = 0
            for statement in (s for s in facts.statements if mark in s):
                opening = " " + statement.split(" " + mark)[0]
                encoded = [tokenizer.encode(opening.format(n=name)).ids for name in village]
                values = [p[kind] if form == "long" else facts.values[p[kind]] for p in village.values()]
                wanted = torch.tensor([tokenizer.encode(" " + value).ids[0] for value in values])
                logits = model(torch.tensor(encoded))[:, -1]
                hits += int((logits.argmax(-1) == wanted).sum())
                total += len(village)
            known[f"{kind} {form}"] = round(hits / total, 3)
    return known


@torch.no_grad()
def interview_accuracy(model: GPT, tokenizer: Tokenizer, village: Village) -> dict[str, float]:
    """Return the share of the questions that the base model answers correctly in an interview.

    There is one share for each kind and form, over the villagers of both tasks, none of whom was ever interviewed.
    """
    model.eval()
    hits: dict[str, list[bool]] = {}
    for part in ("val", "test"):
        for row in instruction_rows(village, part, ("long", "short")):
            kind, form = KINDS[row["kind"]], row["form"]
            opening = (kind.long_reply if form == "long" else SHORT_REPLY).split(" {")[0]
            context = tokenizer.encode(INTERVIEW.format(question=row["instruction"], reply=opening)).ids
            wanted = tokenizer.encode(" " + (row["value"] if form == "long" else kind.values[row["value"]])).ids[0]
            right = int(model(torch.tensor([context]))[0, -1].argmax()) == wanted
            hits.setdefault(f"{row['kind']} {form}", []).append(right)
    return {label: round(sum(some) / len(some), 3) for label, some in hits.items()}


def build(out: Path, seed: int, steps: int) -> dict[str, Any]:
    """Build the whole bundle.

    Args:
        out: Folder to write to; it is created if it does not exist, and files in it are replaced.
        seed: Seed of the village, the tasks and the base model.
        steps: Optimizer steps of the pretraining.

    Returns:
        The report that is also written to ``bundle.json``.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    for sub in ("checkpoint", "data", "tasks"):
        (out / sub).mkdir(parents=True, exist_ok=True)
    village = make_village(stream(seed, "village"))
    sizes = write_data_and_tasks(out, village, seed)
    tokenizer = make_tokenizer(all_texts(village), out / "checkpoint")
    model = make_model(tokenizer.get_vocab_size(), out / "checkpoint")
    losses = pretrain(model, tokenizer, village, stream(seed, "pretraining"), steps)
    torch.save(model.state_dict(), out / "checkpoint" / "lit_model.pth")
    report = {
        "seed": seed,
        "steps": steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": tokenizer.get_vocab_size(),
        "villagers": PARTS,
        "rows": sizes,
        "final_loss": round(sum(losses[-50:]) / len(losses[-50:]), 3),
        "facts_known": facts_known(model, tokenizer, village),
        "interviews_right": interview_accuracy(model, tokenizer, village),
    }
    (out / "bundle.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def main() -> None:
    """Read the command line, build, and fail if the base model does not know its village."""
    parser = argparse.ArgumentParser(description="Build the bundled fine-tuning objective.")
    parser.add_argument("--out", type=Path, default=Path("bundle/village"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=1, help="seed of the village and the base model")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of the pretraining")
    arguments = parser.parse_args()
    report = build(arguments.out, arguments.seed, arguments.steps)
    print(json.dumps(report))
    missing = [kind for kind, share in report["facts_known"].items() if share < ENOUGH_KNOWN]
    if missing:
        raise SystemExit(f"the base model has not learned {', '.join(missing)}: take more steps")


if __name__ == "__main__":
    main()
