"""Text to ids and back on small tokenizers of every kind, made here."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from tml_lib.data import gsm, tiny
from tml_lib.lm import answers, sampling
from tml_lib.lm.answers import ANSWER_TEMPLATE, encode, token_ids
from tml_lib.lm.models import LanguageModel, random_model

PROMPT = "What is 6 times 7?\n"
TRAJECTORY = "6 * 7 means 7+7, which is 42. So: 42 🤖 été"
CHAT = "{{ bos_token }}[user]{{ messages[0]['content'] }}[assistant]"
CHAT_WITHOUT = CHAT.removeprefix("{{ bos_token }}")
BYTES = [f"<0x{k:02X}>" for k in range(256)]
LETTERS = ["▁", *map(chr, range(33, 127))]
WORDS = ["▁W", "▁Wh", "▁i", "▁is", "4", "▁4", "**", "Fi", "in", "al"]


def bpe(prefix, *, by_normaliser=False):
    vocabulary = ["<unk>", "<s>", "</s>", *BYTES, *LETTERS, *(w for w in WORDS if len(w) > 1)]
    merges = [("▁", "W"), ("▁W", "h"), ("▁", "i"), ("▁i", "s"), ("▁", "4"), ("*", "*")]
    merges += [("F", "i"), ("i", "n"), ("a", "l")]
    core = Tokenizer(
        models.BPE(
            {token: k for k, token in enumerate(dict.fromkeys(vocabulary))},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    if by_normaliser:  # as Llama 2's and Mistral's files do
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence(steps)
    return core


def unigram():
    scores = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((token, -8.0) for token in BYTES)]
    scores += [(token, -4.0) for token in LETTERS]
    scores += [(token, -3.0) for token in WORDS if len(token) > 1]
    core = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence(steps)
    return core


def byte_level(prefix=False):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: k for k, token in enumerate(["<unk>", "<s>", "</s>", *alphabet, "**"])}
    core = Tokenizer(models.BPE(vocabulary, [("*", "*")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    core.decoder = decoders.ByteLevel()
    return core


def wrapped(core, *, bos=False, chat=None, of=PreTrainedTokenizerFast):
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if bos:
        core.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    made.chat_template = chat
    return made


KINDS = {
    "SentencePiece BPE": lambda: bpe("always"),
    "SentencePiece BPE, first word": lambda: bpe("first"),
    "SentencePiece BPE, by normaliser": lambda: bpe("", by_normaliser=True),
    "SentencePiece unigram": unigram,
    "byte-level BPE": byte_level,
    "byte-level BPE with a space": lambda: byte_level(True),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys(), scope="module")
def core(request):
    return request.param


def plain(tokenizer, ids):
    """What ids stand for, by the tokens themselves: no decoder drops a space here."""
    return tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("text", ["}", "42", ANSWER_TEMPLATE, " a b", "été 🤖", "C"])
def test_a_text_inside_another_has_no_stray_space_and_no_first_token(core, bos, text):
    tokenizer = wrapped(core(), bos=bos)
    assert plain(tokenizer, token_ids(tokenizer, text, begins=False)) == text


@pytest.mark.parametrize("answer", ["42", "-7", "x^2+1", "7 pens", "C"])
def test_a_suffix_is_the_template_and_the_answer_and_nothing_else(core, answer):
    tokenizer = wrapped(core(), bos=True)
    (suffix,) = encode(tokenizer, PROMPT, TRAJECTORY, [answer]).suffixes
    assert plain(tokenizer, suffix.ids) == ANSWER_TEMPLATE + answer
    assert plain(tokenizer, suffix.ids[suffix.start :]) == answer


def test_prompt_and_trajectory_are_what_the_tokenizer_itself_makes_of_them(core):
    for bos in (True, False):
        tokenizer = wrapped(core(), bos=bos)
        found = encode(tokenizer, PROMPT, TRAJECTORY, ["42"])
        assert [*found.prompt, *found.trajectory] == tokenizer(PROMPT + TRAJECTORY)["input_ids"]
        assert plain(tokenizer, found.trajectory) == TRAJECTORY == "".join(found.tokens)
        assert plain(tokenizer, found.prompt).removeprefix("<s>").lstrip(" ") == PROMPT
        assert (found.prompt[0] == 1) == bos
        assert found.ends[-1] == len(TRAJECTORY)


@pytest.mark.parametrize(
    ("bos", "chat", "begins"),
    [
        (True, None, True),
        (True, CHAT, True),
        (False, None, False),
        (False, CHAT, True),
        (True, CHAT_WITHOUT, False),
        (False, CHAT_WITHOUT, False),
    ],
)
def test_a_prompt_begins_with_one_first_token_where_the_model_wants_one(core, bos, chat, begins):
    tokenizer = wrapped(core(), bos=bos, chat=chat)
    prompt = answers.chat_prompt(tokenizer, "What is 6 times 7?")
    ids = encode(tokenizer, prompt, TRAJECTORY, ["42"]).prompt
    assert (ids[:1] == (1,), ids.count(1)) == (begins, int(begins))


def test_plain_text_for_a_chat_model_begins_with_the_first_token_too():
    tokenizer = wrapped(byte_level(), bos=True, chat=CHAT)
    assert encode(tokenizer, PROMPT, TRAJECTORY, ["42"]).prompt[:2] == (
        1,
        tokenizer.convert_tokens_to_ids("W"),
    )


def test_nothing_before_the_trajectory_is_the_first_token_alone():
    tokenizer = wrapped(byte_level(), bos=True)
    assert encode(tokenizer, "", TRAJECTORY, ["42"]).prompt == (1,)
    assert encode(wrapped(byte_level()), "", TRAJECTORY, ["42"]).prompt == ()


def test_several_first_tokens_are_kept_together():
    core = byte_level()
    core.post_processor = processors.TemplateProcessing(
        "<s> </s> $A", None, [("<s>", 1), ("</s>", 2)]
    )
    tokenizer = wrapped(core)
    assert token_ids(tokenizer, "ab")[:2] == [1, 2]
    assert token_ids(tokenizer, "<s></s>ab") == token_ids(tokenizer, "ab")


def test_transformers_own_llama_tokenizer_adds_no_space_to_a_suffix():
    vocabulary = ["<unk>", "<s>", "</s>", *BYTES, *LETTERS]
    tokenizer = LlamaTokenizer(vocab={token: k for k, token in enumerate(vocabulary)}, merges=[])
    assert tokenizer.convert_ids_to_tokens(tokenizer("}", add_special_tokens=False).input_ids) == [
        "▁",
        "}",
    ]
    (suffix,) = encode(tokenizer, PROMPT, TRAJECTORY, ["42"]).suffixes
    tokens = tokenizer.convert_ids_to_tokens(suffix.ids)
    assert tokens[:3] == ["<0x0A>", "<0x0A>", "*"]
    assert tokens[suffix.start :] == ["4", "2"]
    assert len(tokens) == len(ANSWER_TEMPLATE + "42")


def test_words_added_later_are_known_inside_another_text():
    tokenizer = wrapped(bpe("always"))
    assert len(token_ids(tokenizer, "[new]", begins=False)) == 5
    tokenizer.add_tokens("[new]")
    assert token_ids(tokenizer, "[new]", begins=False) == [len(tokenizer) - 1]


# --- words that a tokenizer does not know ---------------------------------------------------------


def test_the_tiny_reasoner_refuses_a_word_problem_and_names_its_words():
    question = gsm.gsm_symbolic(1)[0]
    with pytest.raises(ValueError, match=f"no tokens for .*'{question.text.split()[0]}'"):
        encode(tiny.tokenizer(), question.text, "", [question.answer])


@pytest.mark.parametrize("place", ["prompt", "trajectory", "answer"])
def test_an_unknown_word_is_refused_wherever_it_stands(place):
    words = {"prompt": "a=3 ", "trajectory": "a=3", "answer": "3"} | {place: "eleven "}
    with pytest.raises(ValueError, match="no tokens for 'eleven'"):
        encode(tiny.tokenizer(), words["prompt"], words["trajectory"], [words["answer"]])


def test_a_character_that_a_tokenizer_drops_is_refused():
    core = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    with pytest.raises(ValueError, match="no tokens for 'ü'"):
        token_ids(tokenizer, "abüa")
    assert token_ids(tokenizer, "aba") == [0, 1, 0]


def test_the_unknown_token_written_out_is_a_word_like_others():
    tokenizer = tiny.tokenizer()
    assert token_ids(tokenizer, "<unk>") == [tokenizer.unk_token_id]


@pytest.mark.parametrize(
    "text", ["e\u0301 ü 漢字 한국어 🤖👩‍🚀", "\x00\x07 a\u200b", "a\r\n\tb  c"]
)
def test_strange_text_is_known_to_a_tokenizer_of_bytes(tokenizer, text):
    assert tokenizer.decode(token_ids(tokenizer, text)) == text


def test_sampling_reads_a_prompt_with_its_first_token():
    tokenizer = wrapped(byte_level(), bos=True)
    model = random_model("llama", vocab_size=len(tokenizer), eos_token_id=2)
    lm = LanguageModel(model, tokenizer, "random")
    ids = tokenizer("ab")["input_ids"]
    (read,) = sampling.sample(lm, ["ab"], [0], max_new_tokens=4)
    assert read == sampling.sample_ids(model, [ids], [0], [2], max_new_tokens=4)[0]
    (other,) = sampling.sample_ids(model, [ids[1:]], [0], [2], max_new_tokens=4)
    assert read != other
