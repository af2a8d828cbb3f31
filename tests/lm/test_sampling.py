"""Sampling: fixed by its seed, indifferent to padding, honest about texts that do not end."""

import numpy as np
import pytest
import torch

from tml_lib.data import programs, tiny
from tml_lib.lm import sampling
from tml_lib.lm.answers import chat_prompt
from tml_lib.lm.models import LanguageModel


@pytest.fixture(scope="module")
def prompts(lm):
    """Two prompts of different lengths, whose greedy continuations end after a few tokens."""
    questions = ("Thank you, bye!", "What is the capital of France? Answer with one word.")
    return [chat_prompt(lm.tokenizer, q, instruction="") for q in questions]


def greedy(lm, prompts, **settings):
    return sampling.sample(
        lm, prompts, [0] * len(prompts), temperature=0, **{"max_new_tokens": 16} | settings
    )


def generated(lm, prompt, most):
    """Greedily, by transformers' own loop: token ids, the end token included."""
    ids = torch.tensor([lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    settings = {
        "attention_mask": torch.ones_like(ids),
        "pad_token_id": 0,
        "repetition_penalty": 1.0,
    }
    return lm.model.generate(ids, max_new_tokens=most, do_sample=False, **settings)[
        0, ids.shape[1] :
    ].tolist()


def test_left_padding_does_not_change_greedy_samples(lm, prompts):
    lengths = {len(lm.tokenizer(p)["input_ids"]) for p in prompts}
    assert len(lengths) == 2
    assert sampling.texts(lm, greedy(lm, prompts)) == ["Bye!", "The capital of France is Paris."]
    assert greedy(lm, prompts, batch_size=1) == greedy(lm, prompts)


def test_the_greedy_continuation_is_the_argmax_of_each_step(lm, prompts):
    ids = lm.tokenizer(prompts[0], add_special_tokens=False)["input_ids"]
    written = []
    with torch.inference_mode():
        while not written or written[-1] != lm.tokenizer.eos_token_id:
            written.append(
                int(lm.model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
            )
    assert greedy(lm, prompts[:1]) == [sampling.Sampled(tuple(written[:-1]), written[-1])]


@pytest.mark.parametrize("most", [4, 16])
def test_greedy_tokens_are_those_of_generate(lm, prompts, most):
    for prompt, one in zip(prompts, greedy(lm, prompts, max_new_tokens=most), strict=True):
        assert [*one.ids] + [one.end] * (not one.cut) == generated(lm, prompt, most)


def test_what_does_not_end_in_time_is_cut_beside_what_does(lm, prompts):
    found = greedy(lm, prompts, max_new_tokens=4)
    assert [one.cut for one in found] == [False, True]
    assert sampling.texts(lm, found) == ["Bye!", "The capital of France"]
    assert sampling.texts(lm, found, whole=True) == ["Bye!", ""]


def test_without_an_end_token_every_row_has_all_its_tokens(lm, prompts):
    """The rows that end otherwise go on past their end, and the others are the same."""
    encoded = [lm.tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
    settings = {"temperature": 0, "max_new_tokens": 8}
    found = sampling.sample_ids(lm.model, encoded, [0, 0], [], **settings)
    assert [(len(one.ids), one.cut) for one in found] == [(8, True)] * 2
    for one, ended in zip(found, greedy(lm, prompts, max_new_tokens=8), strict=True):
        wanted = (*ended.ids, ended.end) if ended.end is not None else ended.ids
        assert one.ids[: len(wanted)] == wanted


def test_samples_are_fixed_by_their_seeds_and_differ_between_seeds(lm, prompts):
    seeds = [sampling.row_seeds(s, 3) for s in (0, 0, 1)]
    assert sampling.row_seeds(0, 2) == seeds[0][:2]
    found = [
        sampling.sample(lm, prompts[1:] * 3, rows, top_k=50, max_new_tokens=16) for rows in seeds
    ]
    assert found[0] == found[1] != found[2]
    assert not all(one.cut for one in found[0])


def test_sampling_leaves_the_global_generator_alone(tiny_lm):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    sampling.sample(tiny_lm, ["one two"], [5], max_new_tokens=3)
    assert torch.equal(torch.rand(3), wanted)


# --- many samples ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words_lm():
    """A random tiny reasoner: its samples are noise of many lengths, which is what padding and
    stopping must survive.
    """
    model = tiny.new_model(2)
    model.generation_config.eos_token_id = list(range(2, 40))  # or few of its samples would end
    return LanguageModel(model, tiny.tokenizer(), "random")


@pytest.fixture(scope="module")
def word_prompts():
    texts = [
        programs.questions(1, seed, steps=steps)[0].text for seed in range(4) for steps in (1, 2, 3)
    ]
    return [chat_prompt(tiny.tokenizer(), text) for text in texts]


def alone(lm, prompt, seed, **settings):
    return sampling.sample(lm, [prompt], [seed], **settings)[0]


SETTINGS = [
    {},
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_p": 0.7},
    {"temperature": 0},
    {"top_k": 40, "top_p": 0.9},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_rows_sample_does_not_depend_on_its_neighbours(words_lm, word_prompts, settings):
    settings |= {"max_new_tokens": 40}
    seeds = list(range(100, 100 + len(word_prompts)))
    together = sampling.sample(words_lm, word_prompts, seeds, **settings)
    assert together == [
        alone(words_lm, p, s, **settings) for p, s in zip(word_prompts, seeds, strict=True)
    ]
    turned = sampling.sample(words_lm, word_prompts[::-1], seeds[::-1], batch_size=5, **settings)
    assert turned[::-1] == together


@pytest.mark.parametrize("batch_size", [256, 5])
def test_copies_of_a_prompt_are_read_once_a_batch_and_drawn_each_by_its_seed(
    words_lm, word_prompts, monkeypatch, batch_size
):
    """Also where they do not stand side by side, and where a batch ends among them."""
    prompts, seeds = word_prompts[:3] * 4, list(range(12))
    wanted = [alone(words_lm, p, s, max_new_tokens=40) for p, s in zip(prompts, seeds, strict=True)]
    sampling.sample(words_lm, word_prompts, range(12), max_new_tokens=40)  # its checks of first use
    read, forward = [], words_lm.model.forward

    def watched(**settings):
        if settings["input_ids"].shape[1] > 1:
            read.append(len(settings["input_ids"]))
        return forward(**settings)

    monkeypatch.setattr(words_lm.model, "forward", watched)
    assert (
        sampling.sample(words_lm, prompts, seeds, max_new_tokens=40, batch_size=batch_size)
        == wanted
    )
    assert read == {256: [3], 5: [2, 2, 1]}[batch_size]
    assert len(set(wanted)) > 8


def test_any_of_the_end_tokens_ends_a_row_and_is_told(words_lm, word_prompts):
    ids = [
        words_lm.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in word_prompts
    ]
    found = sampling.sample_ids(
        words_lm.model, ids * 3, range(36), ends := [26, 3, 4, 16], max_new_tokens=40
    )
    told = {one.end for one in found}
    assert None in told
    assert 2 < len(told) == len(told & {None, *ends})
    assert not {*ends} & {token for one in found for token in one.ids}
    assert {len(one.ids) for one in found if one.cut} == {40}


def test_samples_differ_by_seed_and_end_at_different_lengths(words_lm, word_prompts):
    found = [
        one.ids
        for one in sampling.sample(words_lm, word_prompts[:1] * 40, range(40), max_new_tokens=60)
        if not one.cut
    ]
    assert len(set(found)) > 20
    assert len({len(ids) for ids in found}) > 5
    assert all(words_lm.tokenizer.eos_token_id not in ids for ids in found)


def test_a_sample_follows_the_filtered_distribution(words_lm, word_prompts):
    """First tokens of 4000 samples against the softmax that is computed here, within four standard
    errors.
    """
    prompt, settings = word_prompts[0], {"temperature": 0.3, "top_k": 12, "top_p": 0.9}
    ids = words_lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        chances = (words_lm.model(input_ids=torch.tensor([ids])).logits[0, -1] / 0.3).softmax(-1)
    ordered = sorted(chances.tolist(), reverse=True)
    kept = next(n for n in range(1, 13) if n == 12 or sum(ordered[:n]) >= 0.9)
    allowed = set(chances.topk(kept).indices.tolist())
    uniform = torch.from_numpy(
        np.array([np.random.default_rng(seed).random() for seed in range(4000)])
    )
    firsts = sampling._choose(
        chances.log()[None].expand(4000, -1), uniform, sampling._Draw((), 1.0, 12, 0.9)
    ).tolist()
    drawn = sampling.sample(words_lm, [prompt] * 400, range(400), max_new_tokens=3, **settings)
    assert [[*one.ids, one.end][0] for one in drawn] == firsts[:400]
    assert set(firsts) <= allowed
    total = sum(chances[token].item() for token in allowed)
    for token in allowed:
        wanted = chances[token].item() / total
        assert firsts.count(token) / 4000 == pytest.approx(
            wanted, abs=4 * (wanted * (1 - wanted) / 4000) ** 0.5
        )


@pytest.mark.parametrize(
    ("seeds", "settings", "message"),
    [
        ([1], {}, "2 prompts need as many seeds, got 1"),
        ([1, 2], {"temperature": -1}, "temperature=-1"),
        ([1, 2], {"top_p": 0}, "top_p=0"),
        ([1, 2], {"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_settings_out_of_range_are_refused(words_lm, seeds, settings, message):
    with pytest.raises(ValueError, match=message):
        sampling.sample(words_lm, ["a=1", "b=2"], seeds, **settings)


def test_an_empty_prompt_is_refused_and_no_prompts_give_nothing(words_lm):
    with pytest.raises(ValueError, match="prompt 1 tokenises to nothing"):
        sampling.sample(words_lm, ["a=1", ""], [1, 2])
    assert sampling.sample(words_lm, [], []) == []


def test_right_answers_are_counted_per_question(words_lm, monkeypatch):
    questions = programs.questions(3, 0)
    written = {0: "x", 1: "right", 2: None}

    def scripted(lm, prompts, seeds, **settings):
        assert len(set(seeds)) == 12
        assert all(prompt.endswith("<assistant>begin") for prompt in prompts)
        texts = [written[k // 4] if k % 4 else "right" for k in range(12)]
        return [
            sampling.Sampled((), None)
            if text is None
            else sampling.Sampled(tuple(range(len(text))), 0)
            for text in texts
        ]

    monkeypatch.setattr(sampling, "sample", scripted)
    judge = {"begin": False}

    def graded(text, answer):
        judge["begin"] = text.startswith("begin")
        return len(text.removeprefix("begin").split()) == 5

    counts, tokens, ended = sampling.right_counts(
        words_lm, questions, graded, samples=4, seed=1, begin="begin"
    )
    assert counts == [1, 4, 1]
    assert ended == 9 / 12
    assert judge["begin"]
    assert tokens == pytest.approx((1 * 5 + 3 * 1 + 4 * 5 + 1 * 5) / 9)


def test_the_head_gets_the_rows_of_a_batch_in_one_piece(words_lm, word_prompts, monkeypatch):
    """torch's CPU build copies frozen weights in bfloat16 once per row of a slice."""
    head, pieces = words_lm.model.get_output_embeddings(), []

    def forward(rows):
        pieces.append(rows.is_contiguous())
        return torch.nn.functional.linear(rows, head.weight)

    monkeypatch.setattr(head, "forward", forward)
    sampling.sample(words_lm, word_prompts[:3], range(3), max_new_tokens=2)
    assert pieces
    assert all(pieces)
    assert not head._forward_pre_hooks
