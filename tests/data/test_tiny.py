"""The tiny reasoner: a tokenizer that loses nothing, a vanilla model with the head start that it
claims, rows and training.
"""

import random

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tml_lib.data import programs, tiny
from tml_lib.lm.answers import ANSWER_TEMPLATE, chat_prompt, encode


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def questions():
    return [q for split in programs.SPLITS for q in programs.questions(20, 4, split)]


def test_every_word_is_one_token_and_none_is_unknown(tokenizer, questions):
    for question in questions:
        program = programs.parse(question.text)
        for style in programs.STYLES:
            text = programs.trajectory(program, style, random.Random(0)).text
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert len(ids) == len(text.split())
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
    assert tokenizer("q=9", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]
    assert len(tokenizer) == len(tiny.VOCABULARY)


def test_a_row_is_what_the_chat_template_and_the_tokenizer_make(tokenizer, questions):
    for question in questions:
        trajectory = question.trajectories[0].text
        ids, start = tiny.row(question.text, trajectory.split(), question.answer)
        prompt = chat_prompt(tokenizer, question.text)
        whole = f"{prompt}{trajectory}{ANSWER_TEMPLATE}{question.answer}}}<end>"
        assert tokenizer(whole, add_special_tokens=False)["input_ids"] == ids
        assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == ids[:start]


def test_the_kits_seams_are_token_boundaries(tokenizer, questions):
    question = questions[0]
    encoded = encode(
        tokenizer,
        chat_prompt(tokenizer, question.text),
        question.trajectories[0].text,
        [question.answer],
    )
    (suffix,) = encoded.suffixes
    assert (
        tokenizer.convert_ids_to_tokens(list(suffix.ids[suffix.start :])) == question.answer.split()
    )
    assert [text.strip() for text in encoded.tokens] == question.trajectories[0].text.split()


def test_the_tokenizer_survives_saving(tokenizer, tmp_path, questions):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = chat_prompt(tokenizer, questions[0].text)
    assert chat_prompt(again, questions[0].text) == text
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.eos_token_id == tokenizer.eos_token_id


# --- model ----------------------------------------------------------------------------------------


def test_the_model_is_a_vanilla_llama_of_at_most_five_million_parameters():
    model = tiny.new_model(0)
    assert type(model) is LlamaForCausalLM
    assert sum(p.numel() for p in model.parameters()) < 5e6
    twin, other = tiny.new_model(0), tiny.new_model(1)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_making_a_model_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    wanted = torch.rand(2)
    torch.manual_seed(0)
    tiny.new_model(3)
    assert torch.equal(torch.rand(2), wanted)


def test_one_head_of_the_first_layer_begins_by_looking_one_word_back():
    model = tiny.new_model(0)
    model.set_attn_implementation("eager")
    ids, _ = tiny.collate([tiny.base_row(random.Random(0), 8, 0.4)])
    attention = model(input_ids=ids, output_attentions=True).attentions[0][0]  # (heads, T, T)
    back = attention.diagonal(-1, 1, 2).mean(-1)
    assert back[0] > 0.5
    assert (back[1:] < 0.2).all()


def test_words_that_share_a_letter_begin_alike_and_others_do_not():
    weight = tiny.new_model(0).lm_head.weight.detach()
    vector = {word: weight[k] for word, k in tiny.VOCABULARY.items()}

    def cosine(a, b):
        return float(torch.cosine_similarity(vector[a], vector[b], 0))

    assert cosine("a=3", "a=4") > 0.4
    assert cosine("a:=", "?a") > 0.2
    assert abs(cosine("a:=", "?b")) < 0.4
    assert cosine("a*4", "a+4") > 0.4


# --- rows -----------------------------------------------------------------------------------------


def test_base_rows_never_chain_two_statements():
    """The base sees every format, and no question whose answer takes more than one step a value."""
    words = list(tiny.VOCABULARY)
    rng, styles = random.Random(0), set()
    for _ in range(400):
        ids, start = tiny.base_row(rng, 8, 0.4)
        prompt = [words[k] for k in ids[1 : start - 2]]
        program = programs.parse(" ".join(prompt))
        results = {s.name for s in program.statements}
        assert not results & {s.operand for s in program.statements}
        answer = [words[k] for k in ids[-4:-2]]
        assert " ".join(answer) == program.answer()
        learnt = [words[k] for k in ids[start:]]
        styles |= {"none" if learnt[0] == ANSWER_TEMPLATE else "long" if "." in learnt else "short"}
        styles |= {"other surface"} if program.other_surface else set()
        styles |= set(learnt) & {"Wait", "Alternatively"} | {s.operator for s in program.statements}
    assert styles == {
        "none",
        "long",
        "short",
        "other surface",
        "Wait",
        "Alternatively",
        "+",
        "-",
        "*",
        "/",
    }


def test_sft_rows_are_whole_cut_or_without_trajectory_at_their_rates():
    program = programs.parse(programs.questions(1)[0].text)
    words, rng = (
        programs.trajectory(program, "plain", random.Random(0)).text.split(),
        random.Random(1),
    )
    lengths = [
        len(ids) - start - 5
        for ids, start in (tiny.sft_row(program, words, rng) for _ in range(4000))
    ]
    assert sum(n == len(words) for n in lengths) / 4000 == pytest.approx(0.84, abs=0.02)
    assert sum(n == 0 for n in lengths) / 4000 == pytest.approx(0.08 + 0.08 / len(words), abs=0.015)


def test_batches_are_padded_on_the_right_and_learnt_after_the_question():
    ids, labels = tiny.collate([([5, 6, 7, 8], 2), ([9, 4], 1)])
    assert ids.tolist() == [[5, 6, 7, 8], [9, 4, 0, 0]]
    assert labels.tolist() == [[-100, -100, 7, 8], [-100, 4, -100, -100]]


# --- training -------------------------------------------------------------------------------------


def test_training_learns_stops_early_on_the_same_path_and_ends_in_evaluation_mode():
    rows = tiny.base_rows(0, 20, batch=8)
    model = tiny.new_model(0)
    losses = tiny.train(model, rows, steps=20, peak_lr=3e-3)
    assert losses[-1] < losses[0] - 1
    assert not model.training
    first = tiny.train(tiny.new_model(0), rows, steps=20, stop=5, peak_lr=3e-3)
    assert first == losses[:5]


def test_the_first_loss_is_the_hand_computed_mean_over_learnt_tokens():
    batch = tiny.base_rows(1, 10, batch=3)(0)
    model = tiny.new_model(0)
    terms = []
    for ids, start in batch:
        logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        terms += [-float(logs[k - 1, ids[k]].detach()) for k in range(start, len(ids))]
    (loss,) = tiny.train(model, lambda step: batch, steps=1, peak_lr=1e-3)
    assert loss == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_training_for_no_steps_or_into_infinity_is_refused():
    with pytest.raises(ValueError, match="steps=0 trains nothing"):
        tiny.train(tiny.new_model(0), tiny.base_rows(0, 1), steps=0, peak_lr=1e-3)
    with pytest.raises(ValueError, match=r"the loss is nan at step \d+: lower peak_lr"):
        tiny.train(tiny.new_model(0), tiny.base_rows(0, 30, batch=2), steps=30, peak_lr=1e30)
