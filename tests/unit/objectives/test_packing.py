"""Packed rows: the same losses and gradients as example by example in LitGPT's own model, in every family."""

from __future__ import annotations

import collections
import itertools
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from litgpt.config import Config as BaseConfig
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from hpo_cluster.objectives.lora import attention, dropout, memory
from hpo_cluster.objectives.lora.adamw import AdamW, Decay
from hpo_cluster.objectives.lora.packed_forward import PackedModel
from hpo_cluster.objectives.lora.packing import IGNORED, passes
from hpo_cluster.objectives.lora.ranks import Ranks

SMALL = {"block_size": 96, "vocab_size": 200, "padded_vocab_size": 256, "n_layer": 3, "n_embd": 32, "head_size": 16}
LORA = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, **{f"lora_{n}": True for n in ("query", "key", "value")}}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama-3.2": ("Llama-3.2-1B", {"n_head": 4, "n_query_groups": 2}),
    "Qwen2.5": ("Qwen2.5-0.5B", {"n_head": 4, "n_query_groups": 2}),
    "Qwen3": ("Qwen3-0.6B", {"n_head": 4, "n_query_groups": 2}),
    "Gemma 2": ("Gemma-2-2b", {"n_head": 4, "n_query_groups": 2, "sliding_window_size": 8}),
    "Gemma 3": ("Gemma-3-1b-it", {"n_head": 4, "n_query_groups": 1, "sliding_window_size": 8}),
    "Phi": ("phi-2", {"n_head": 4, "n_query_groups": 4}),
    "Pythia": ("pythia-70m", {"n_head": 4, "n_query_groups": 4}),
    "Falcon": ("falcon-7b", {"n_head": 4, "n_query_groups": 1}),
    "OLMo 2": ("OLMo-2-1124-7B", {"n_head": 4, "n_query_groups": 4}),
    "Mixtral": ("Mixtral-8x7B-v0.1", {"n_head": 4, "n_query_groups": 2, "n_expert": 4}),
    "Qwen3 MoE": ("Qwen3-30B-A3B", {"n_head": 4, "n_query_groups": 2, "n_expert": 4, "n_expert_per_token": 2}),
}
#: Rows of each micro-batch; the last ones are padded too much to lie side by side.
LENGTHS = ((9, 21), (14, 2), (17, 30))
UNEQUAL = ((3, 2), (3, 90), (4, 2), (5, 2), (2, 3), (3, 3))


def make(family: str = "Llama-3.2", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A small model of a family with random weights, the adapter's included."""
    torch.set_num_threads(1)
    name, sizes = FAMILIES[family]
    known = BaseConfig.from_name(name)
    layers = {key: [1, 1, 0] for key in ("sliding_window_indices", "rope_indices") if getattr(known, key)}
    small = {**SMALL, "intermediate_size": 48, **sizes, **layers}
    if known.moe_intermediate_size:
        small["moe_intermediate_size"] = 24
    torch.manual_seed(3)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    model = GPT(Config.from_name(name, **{**small, **LORA, **changes}))
    torch.set_default_dtype(before)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1 if "lora_" in name else 0.05)
        if "norm" in name or "ln_f" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    mark_only_lora_as_trainable(model)
    return model


def examples(lengths: tuple[tuple[int, ...], ...], prompt: int = 0) -> list[list[dict[str, torch.Tensor]]]:
    """Micro-batches of random tokens, the first of each example not learned."""
    generator, made = torch.Generator().manual_seed(1), []
    for batch in lengths:
        rows = [torch.randint(0, 200, (length,), generator=generator) for length in batch]
        labels = [torch.where(torch.arange(len(row)) < min(prompt, len(row) - 1), IGNORED, row) for row in rows]
        made.append([{"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=True)])
    return made


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Those of the adapter, which are taken from it."""
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


def one_by_one(model: Any, micro_batches: Any, weight: float) -> tuple[float, dict[str, torch.Tensor]]:
    """LitGPT's model, each example alone."""
    total = 0.0
    for batch in micro_batches:
        logits = [model(row["input_ids"][None])[0, :-1] for row in batch]
        targets = torch.cat([row["labels"][1:] for row in batch])
        loss = functional.cross_entropy(torch.cat(logits), targets, ignore_index=IGNORED) * weight
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def packed(
    model: Any, micro_batches: Any, weight: float, budget: int, logits: int = 2**20
) -> tuple[float, dict[str, torch.Tensor]]:
    """The same in packed rows."""
    row = PackedModel(model, nullcontext, half=False)
    row.logits_at_once = logits
    total = sum(row.loss(part, backward=True).item() for part in passes(micro_batches, weight, budget))
    return total, gradients(model)


def assert_same(mine: tuple[float, dict[str, torch.Tensor]], theirs: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert mine[0] == pytest.approx(theirs[0], abs=1e-5)
    largest = max(float(value.abs().max()) for value in theirs[1].values())
    assert largest > 1e-3
    for name, value in theirs[1].items():
        assert float((mine[1][name] - value).abs().max()) <= 1e-5 * max(1.0, largest), name


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_learn_what_the_examples_alone_do(family: str) -> None:
    changes = {"lora_projection": True, "lora_mlp": True, "lora_head": True}
    model = make(family, **changes)
    if "Gemma" in family:
        assert {rule.window for _, rule in PackedModel(model, nullcontext, half=False)._attention} == {8, None}
    micro_batches = examples(LENGTHS, prompt=5)
    expected = one_by_one(model, micro_batches, 1 / 3)
    for budget, logits in ((10**6, 2**20), (40, 256 * 7), (1, 1)):
        assert_same(packed(model, micro_batches, 1 / 3, budget, logits), expected)
    tokens = micro_batches[0][0]["input_ids"][None]
    assert torch.equal(model(tokens), make(family, **changes)(tokens)), "the model is left as it was"


@pytest.mark.parametrize("family", ["Llama-3.2", "Gemma 2", "Gemma 3", "Pythia"])
def test_lengths_too_unequal_to_lie_side_by_side(family: str) -> None:
    model = make(family)
    micro_batches = examples(UNEQUAL)
    assert_same(packed(model, micro_batches, 1.0, 10**6), one_by_one(model, micro_batches, 1.0))


@pytest.mark.parametrize("on", list(itertools.product([True, False], repeat=3))[:-1])
def test_updates_of_some_of_queries_keys_and_values(on: tuple[bool, ...]) -> None:
    model = make(**dict(zip(("lora_query", "lora_key", "lora_value"), on, strict=True)))
    micro_batches = examples(LENGTHS)
    assert_same(packed(model, micro_batches, 1.0, 10**6), one_by_one(model, micro_batches, 1.0))


@pytest.mark.parametrize("matrix", ["head", "mlp", "projection"])
def test_updates_elsewhere_alone(matrix: str) -> None:
    off = {"lora_query": False, "lora_key": False, "lora_value": False}
    model = make(**{**off, f"lora_{matrix}": True})
    micro_batches = examples(LENGTHS)
    assert_same(packed(model, micro_batches, 1.0, 30), one_by_one(model, micro_batches, 1.0))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_16_bits(family: str, mixed: bool) -> None:
    changes = {"lora_mlp": True, "lora_head": True}
    model = make(family, torch.float32 if mixed else torch.bfloat16, **changes)
    precision = partial(torch.autocast, "cpu", torch.bfloat16) if mixed else nullcontext
    micro_batches = examples(LENGTHS)
    exact, _ = one_by_one(make(family, **changes), micro_batches, 1.0)
    row = PackedModel(model, precision, half=True)
    for budget in (10**6, 1):  # side by side, and alone
        total = sum(row.loss(part, backward=True).item() for part in passes(micro_batches, 1.0, budget))
        assert total == pytest.approx(exact, rel=5e-3)
        assert all(value.isfinite().all() for value in gradients(model).values())


def test_passes_keep_order_weights_and_what_teaches_nothing() -> None:
    micro_batches = examples(((5, 1), (8,), (2, 4)), prompt=3)
    whole = passes(micro_batches, 0.5, 10**6)
    assert [part.lengths for part in whole] == [(4, 7, 1, 3)]
    assert whole[0].positions.tolist() == [0, 1, 2, 3, *range(7), 0, 0, 1, 2]
    assert whole[0].learned.tolist() == [2, 3, 6, 7, 8, 9, 10, 11, 14]
    assert whole[0].weights.tolist() == pytest.approx([0.25] * 2 + [0.1] * 5 + [0.25] * 2)
    for budget in (1, 5, 11, 14):
        parts = passes(micro_batches, 0.5, budget)
        assert all(len(part.tokens) <= budget or len(part.lengths) == 1 for part in parts)
        for name in ("tokens", "positions", "targets", "weights"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole[0], name))
        for places, numbers in (("places", "tokens"), ("learned_places", "learned")):
            sizes = [len(getattr(part, numbers)) for part in parts]
            ends = list(itertools.accumulate(sizes))
            assert [getattr(part, places) for part in parts] == [
                slice(end - size, end) for size, end in zip(sizes, ends, strict=True)
            ]
    assert passes([[{"input_ids": torch.ones(1, dtype=torch.long), "labels": torch.ones(1)}]], 1.0, 5) == []


# --- dropout ---------------------------------------------------------------------------------------------------------


def drawn(model: Any, source: Any, micro_batches: Any, budget: int, step: int = 4, **how: Any) -> Any:
    row = PackedModel(model.train(), nullcontext, half=False)
    row.logits_at_once = 256 * 7
    source.step(step, micro_batches)
    total = 0.0
    for part in passes(micro_batches, 1.0, budget, **how):
        source.give(part)
        total += row.loss(part, backward=True).item()
    return total, gradients(model)


def masks_of(model: Any, source: str) -> Any:
    """Masks of a model whose dropout is 0.4."""
    dropouts = dropout.replace_dropouts(model, 0.4)
    if source == "litgpt":
        return dropout.LitgptMasks(model, dropouts, nullcontext)
    return dropout.StepMasks(dropouts, 5, torch.device("cpu"))


@pytest.mark.parametrize("source", ["step", "litgpt"])
def test_masks_do_not_depend_on_the_passes(source: str) -> None:
    model = make(lora_dropout=0.4, lora_mlp=True, lora_head=True)
    masks = masks_of(model, source)
    micro_batches = examples(LENGTHS, prompt=5)

    def run(budget: int, step: int) -> Any:
        torch.manual_seed(step)
        return drawn(model, masks, micro_batches, budget, step)

    expected = run(10**6, 4)
    for budget in (50, 20, 1):
        assert_same(run(budget, 4), expected)
    assert run(10**6, 5)[0] != pytest.approx(expected[0], abs=1e-3)
    assert packed(model.eval(), micro_batches, 1.0, 1)[0] != pytest.approx(expected[0], abs=1e-3)


def test_step_masks_zero_the_share_they_should_and_differ_between_places() -> None:
    model = make(lora_dropout=0.3, lora_head=True)
    dropouts = dropout.replace_dropouts(model, 0.3)
    masks = dropout.StepMasks(dropouts, 5, torch.device("cpu"))
    part = passes(examples(LENGTHS), 1.0, 10**6)[0]
    masks.give(part)
    x = torch.ones(len(part.tokens), 32)
    seen = [masks.mask(one.site, x) for one in dropouts if one.site.kind == "tokens"]
    assert all(float(mask.float().mean()) == pytest.approx(0.7, abs=0.03) for mask in seen)
    assert all(float((a != b).float().mean()) > 0.3 for a, b in itertools.combinations(seen, 2))
    state = torch.get_rng_state()
    masks.give(part)
    assert torch.equal(masks.mask(dropouts[0].site, x), seen[0])
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


def test_experts_draw_by_micro_batch() -> None:
    model = make("Mixtral", lora_dropout=0.4, lora_mlp=True)
    dropouts = dropout.replace_dropouts(model, 0.4)
    assert not dropout.divisible(model, 0.4)
    assert {one.site.kind for one in dropouts} == {"tokens", "expert", "head"}
    masks = dropout.StepMasks(dropouts, 5, torch.device("cpu"))
    micro_batches = examples(LENGTHS)
    one, other = (drawn(model, masks, micro_batches, budget, whole_micro_batches=True) for budget in (1, 10**6))
    assert one[0] == other[0]
    with pytest.raises(ValueError, match="mixture of experts"):
        dropout.LitgptMasks(model, dropouts, nullcontext)


# --- ranks -----------------------------------------------------------------------------------------------------------


def has_experts(family: str) -> bool:
    return "Mixtral" in family or "MoE" in family


#: LitGPT's draws are refused for mixtures of experts, on any number of ranks.
DRAWS = [(family, source) for family in FAMILIES for source in ("step", "litgpt")]


@pytest.mark.parametrize(("family", "source"), [d for d in DRAWS if not (has_experts(d[0]) and d[1] == "litgpt")])
def test_ranks_share_a_step(family: str, source: str) -> None:
    """Sliding windows and mixtures of experts too: the parts of the ranks add up to the whole."""
    experts = has_experts(family)
    model = make(family, lora_dropout=0.4, lora_mlp=True, lora_head=True)
    masks = masks_of(model, source)
    micro_batches = examples(LENGTHS, prompt=5)

    def run(budget: int, ranks: Ranks) -> Any:
        torch.manual_seed(4)
        loss, found = drawn(model, masks, micro_batches, budget, whole_micro_batches=experts, ranks=ranks)
        zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
        return loss, {name: zeros[name] if value is None else value for name, value in found.items()}

    expected = run(10**6, Ranks())
    for count in (2, 3, 8):  # more ranks than examples too
        parts = [run(50, Ranks(rank, count)) for rank in range(count)]
        loss = sum(part[0] for part in parts)
        assert_same((loss, {name: sum(part[1][name] for part in parts) for name in expected[1]}), expected)


def test_a_rank_takes_its_own_examples() -> None:
    micro_batches = examples(LENGTHS, prompt=5)
    seen = [passes(micro_batches, 1.0, 30, ranks=Ranks(rank, 2)) for rank in range(2)]
    members = [[member for part in parts for member in part.members] for parts in seen]
    assert sorted(members[0] + members[1]) == [(batch, row) for batch in range(3) for row in range(2)]
    tokens = [sum(len(part.tokens) for part in parts) for parts in seen]
    assert tokens == [29 + 13 + 1, 20 + 16 + 8]


# --- what it costs ---------------------------------------------------------------------------------------------------


class Operators(TorchDispatchMode):
    """Counts the operators that compute or copy, the kernels that a GPU would launch; views are none."""

    VIEWS = (
        "view", "_unsafe_view", "t", "transpose", "expand", "slice", "select", "split", "split_with_sizes", "unsqueeze",
        "squeeze", "permute", "detach", "alias", "as_strided", "unbind", "empty", "empty_like", "empty_strided",
        "new_empty", "new_empty_strided", "lift_fresh",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.split("::")[1]
        if name not in self.VIEWS:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


EVERYWHERE = {"lora_projection": True, "lora_mlp": True, "lora_head": True}


def operators_of_a_step(**changes: Any) -> collections.Counter[str]:
    """Those of a step of 16 examples: 16 layers, bf16, dropout."""
    model = make(dtype=torch.bfloat16, n_layer=16, lora_dropout=0.05, block_size=256, **changes).train()
    dropouts = dropout.replace_dropouts(model, 0.05)
    masks = dropout.StepMasks(dropouts, 5, torch.device("cpu"))
    micro_batches = examples(tuple((length,) for length in (60, 80, 100, 120, 140, 90, 70, 200) * 2))
    row = PackedModel(model, nullcontext, half=True)
    optimizer = AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], Decay())
    with Operators() as operators:
        masks.step(0, micro_batches)
        for part in passes(micro_batches, 1 / 16, 10**6):
            masks.give(part)
            row.loss(part, backward=True)
        optimizer.step(1e-3)
        optimizer.zero_grad()
    return operators.counts


@pytest.mark.parametrize(("changes", "most"), [({"lora_head": True}, 1300), (EVERYWHERE, 1850)])
def test_a_step_of_sixteen_examples_takes_few_kernels(changes: dict[str, bool], most: int) -> None:
    """Updates of query, key, value and head: one by one 35 900, padded together 4 390."""
    counts = operators_of_a_step(**changes)
    assert counts.total() <= most, counts.most_common()


@pytest.mark.parametrize(("changes", "most"), [({"lora_head": True}, 900), (EVERYWHERE, 1500)])
def test_a_step_takes_fewer_kernels_on_a_gpu(
    changes: dict[str, bool], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There torch has one kernel for a norm and one for the attention of a row: others with one stand for them."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, enable_gqa: bool, **__: Any) -> torch.Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, enable_gqa=enable_gqa)
        return out.squeeze(0).transpose(0, 1)

    def norm(weight: torch.Tensor, _: torch.Tensor, eps: float, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, weight.shape, weight, None, eps)

    monkeypatch.setattr(attention, "varlen_attn", attend)
    monkeypatch.setattr("hpo_cluster.objectives.lora.packed_forward._rms_norm", norm)
    for module in ("attention", "packed_forward"):
        monkeypatch.setattr(f"hpo_cluster.objectives.lora.{module}.flash_is_right", lambda *_: True)
    counts = operators_of_a_step(**changes)
    assert counts["native_layer_norm"] == 33
    assert counts.total() <= most, counts.most_common()


def test_bytes_of_a_token_are_what_the_backward_pass_keeps() -> None:
    few, many = (memory.kept_bytes_per_token(PackedModel(make(n_layer=n), nullcontext, half=False), torch.device("cpu"))
                 for n in (1, 3))  # fmt: skip
    wide = make(n_layer=1, n_embd=64)
    wider = memory.kept_bytes_per_token(PackedModel(wide, nullcontext, half=False), torch.device("cpu"))
    assert 2.5 * few < many < 3.5 * few
    assert 1.1 * few < wider < 2 * few
    # at least what one layer cannot do without: two norms' inputs, queries, keys, values, the MLP's three products
    assert few > 4 * (2 * 32 + 3 * 64 + 3 * 48)
    assert memory.tokens_that_fit(PackedModel(wide, nullcontext, half=False), torch.device("cpu")) == 1024


# --- flash attention, by a stand-in ----------------------------------------------------------------------------------


def reference(q: Any, k: Any, v: Any, ends: Any, ends_k: Any, longest: int, longest_k: int, **how: Any) -> torch.Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` documents, slowly."""
    assert q.dim() == k.dim() == v.dim() == 3
    assert ends.dtype == torch.int32
    assert longest == longest_k == int(ends.diff().max())
    assert how["enable_gqa"] == (q.shape[1] != k.shape[1])
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    left, right = how["window_size"]
    assert right == 0
    out = []
    for begin, end in itertools.pairwise(ends.tolist()):
        scores = torch.einsum("qhd,khd->hqk", q[begin:end], k[begin:end]) * how["scale"]
        distance = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
        seen = (distance >= 0) & ((distance <= left) | (left < 0))
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v[begin:end]))
    return torch.cat(out)


@pytest.mark.parametrize("family", ["Llama-3.2", "Gemma 3", "Pythia", "OLMo 2"])
def test_flash_attention_is_asked_for_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(family)
    micro_batches = examples(LENGTHS)
    expected = one_by_one(model, micro_batches, 1.0)
    asked = []

    def flash(*arguments: Any, **how: Any) -> torch.Tensor:
        asked.append(1)
        return reference(*arguments, **how)

    monkeypatch.setattr(attention, "varlen_attn", flash)
    for module in ("attention", "packed_forward"):
        monkeypatch.setattr(f"hpo_cluster.objectives.lora.{module}.flash_is_right", lambda *_: True)
    assert_same(packed(model, micro_batches, 1.0, 10**6), expected)
    assert len(asked) == 3, "once a layer"


def test_flash_attention_is_tried_before_it_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    what = (torch.device("cpu"), torch.float32, 16, 4, 2, attention.Rule(0.25, 6))
    monkeypatch.setattr(attention, "varlen_attn", reference)
    assert attention.flash_error(*what) < 1e-5
    monkeypatch.setattr(attention, "varlen_attn", lambda *a, **how: reference(*a, **{**how, "scale": 1.0}))
    assert attention.flash_error(*what) > 0.05
