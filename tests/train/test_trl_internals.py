"""What `train/grpo_trainer.py` relies on inside trl, item by item: a test that fails here after an
upgrade of trl says which item has changed.
"""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset

from tml_lib.data import programs
from tml_lib.lm import adapters
from tml_lib.train import grpo, grpo_trainer

pytestmark = pytest.mark.slow  # trains

SETTINGS = grpo.GRPOSettings(
    steps=2, peak_lr=1e-4, prompts=2, group=4, accumulate=2, most_tokens=12, beta=0.1
)
ROWS = SETTINGS.prompts * SETTINGS.group


def changed(item, what):
    """The message of a failure."""
    return (
        f"trl {trl.__version__} differs in item {item} of tml_lib/train/grpo_trainer.py: {what}; "
        "adapt Trainer, or install trl 1.16"
    )


def reward(text, answer):
    return len(text) / 10


class Spy(grpo_trainer.Trainer):
    """The kit's trainer, which notes what trl hands over."""

    def __init__(self, *given, **settings):
        self.seen = {name: [] for name in ("batches", "scored", "tokenized", "turns", "passes")}
        self.seen |= {"models": [], "rewarded": [], "losses": []}
        super().__init__(*given, **settings)

    def _prepare_inputs(self, batch):
        self.seen["batches"].append((self._step, len(batch)))
        found = super()._prepare_inputs(batch)
        self.seen["passes"].append(len(self._buffered_inputs))
        return found

    def _generate_and_score_completions(self, inputs):
        self.seen["scored"].append(super()._generate_and_score_completions(inputs))
        return self.seen["scored"][-1]

    def _tokenize_prompts(self, prompts):
        self.seen["tokenized"].append(prompts)
        return super()._tokenize_prompts(prompts)

    def _generate_single_turn(self, prompt_ids, *more, **named):
        self.seen["turns"].append((prompt_ids, super()._generate_single_turn(prompt_ids)[0]))
        return self.seen["turns"][-1][1], None

    def reward(self, prompts, completions, completion_ids, **columns):
        self.seen["rewarded"].append((prompts, completions, completion_ids, columns))
        return super().reward(prompts, completions, completion_ids, **columns)

    def _get_per_token_logps_and_entropies(self, model, *given, **settings):
        def noted(**named):
            self.seen["models"].append(set(named))
            return model(**named)

        return super()._get_per_token_logps_and_entropies(noted, *given, **settings)


@pytest.fixture(scope="module")
def trainer(reasoner, tmp_path_factory):
    """After two steps of two passes each."""
    folder = tmp_path_factory.mktemp("trl")
    rows = [grpo._row(reasoner, question, 12) for question in programs.questions(4)]
    trainer = Spy(
        adapters.copy_to_train(reasoner, lora_rank=0, seed=0),
        reasoner,
        reward,
        kept=SETTINGS.kept,
        beta=SETTINGS.beta,
        args=grpo._arguments(reasoner, folder, SETTINGS, SETTINGS.prompts),
        train_dataset=Dataset.from_list(rows),
    )
    with grpo._quietly():
        trainer.train()
    yield trainer
    adapters.without_patches(reasoner)


def test_item_1_a_step_is_drawn_at_once_and_passed_on_in_parts(trainer):
    said = changed(1, "_prepare_inputs, _step or _buffered_inputs")
    assert trainer.seen["batches"] == [(k, ROWS) for k in range(4)], said
    assert trainer.seen["passes"] == [2] * 4 == [trainer.args.steps_per_generation] * 4, said
    assert len(trainer.seen["scored"]) == 2, said


def test_item_2_scored_samples_are_a_dict_of_rows(trainer):
    said = changed(2, "the dict that _generate_and_score_completions returns")
    output = trainer.seen["scored"][0]
    assert output["advantages"].shape == (ROWS,), said
    assert output["completion_ids"].shape == output["completion_mask"].shape, said
    assert len(output["completion_ids"]) == ROWS, said
    assert output["num_items_in_batch"].ndim == 0, said
    assert int(output["num_items_in_batch"]) == int(output["completion_mask"].sum()), said
    rows = {key: value.shape[0] for key, value in output.items() if value.ndim}
    assert set(rows.values()) == {ROWS}, said


def test_item_3_prompts_are_handed_over_as_texts(trainer):
    said = changed(3, "what _tokenize_prompts is given")
    for prompts in trainer.seen["tokenized"]:
        assert [type(prompt) for prompt in prompts] == [str] * ROWS, said


def test_item_4_samples_are_taken_as_they_are_written(trainer):
    said = changed(4, "what _generate_single_turn is given, or how its samples are padded")
    for (prompts, samples), output in zip(
        trainer.seen["turns"], trainer.seen["scored"], strict=True
    ):
        assert all(isinstance(token, int) for ids in prompts for token in ids), said
        held = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(output["completion_ids"], output["completion_mask"], strict=True)
        ]
        assert held == samples, said


def test_item_5_log_probabilities_are_of_the_model_that_is_passed_in(trainer):
    said = changed(5, "how _get_per_token_logps_and_entropies calls its model")
    assert trainer.seen["models"], said
    for named in trainer.seen["models"]:
        assert {"input_ids", "attention_mask", "position_ids"} <= named, said


def test_item_6_a_reward_gets_texts_ids_and_columns(trainer):
    said = changed(6, "the arguments of a reward function")
    for (prompts, completions, ids, columns), (_, samples) in zip(
        trainer.seen["rewarded"], trainer.seen["turns"], strict=True
    ):
        assert len(prompts) == len(completions) == ROWS, said
        assert ids == samples, said
        assert len(columns["answer"]) == len(columns["name"]) == ROWS, said


def loss_of(trainer, inputs):
    """trl's loss of these rows for one pass, as a number."""
    trainer.current_gradient_accumulation_steps = 2
    trainer.model.train()
    with torch.no_grad():
        return float(trainer._compute_loss(trainer.model, inputs))


def test_item_7_the_loss_is_a_mean_over_rows_of_means_over_tokens(trainer):
    """At rows alike in all but their lengths, each weighs the same; doubling
    num_items_in_batch changes nothing.
    """
    said = changed(7, "loss_type='grpo'")
    output = dict(trainer.seen["scored"][-1])
    output["advantages"] = torch.arange(1.0, ROWS + 1)
    output.pop("ref_per_token_logps")
    beta, trainer.beta = trainer.beta, 0.0
    try:
        found = loss_of(trainer, output)
        again = loss_of(trainer, output | {"num_items_in_batch": torch.tensor(1.0)})
    finally:
        trainer.beta = beta
    # ratio 1: a row's mean over tokens is its advantage; two passes share a step
    assert found == pytest.approx(-float(output["advantages"].mean()) / 2, rel=1e-4), said
    assert again == found, said


def test_item_8_advantages_are_of_a_group_with_its_own_deviation(trainer):
    said = changed(8, "scale_rewards='group'")
    decode = trainer.processing_class.decode
    for (_, samples), output in zip(trainer.seen["turns"], trainer.seen["scored"], strict=True):
        ends = trainer.eos_token_ids
        texts = [decode(ids[:-1] if ids[-1] in ends else ids) for ids in samples]
        r = np.array([reward(text, "") for text in texts]).reshape(-1, SETTINGS.group)
        wanted = (r - r.mean(1, keepdims=True)) / (r.std(1, ddof=1, keepdims=True) + 1e-4)
        assert output["advantages"].tolist() == pytest.approx(
            wanted.ravel().tolist(), rel=1e-3, abs=1e-3
        ), said


def test_item_9_the_log_has_what_the_trainer_notes(trainer):
    said = changed(9, "_metrics")
    (first, *_) = [entry for entry in trainer.state.log_history if "reward" in entry]
    parts = {f"seconds_{part}" for part in ("sampling", "scoring", "update")}
    assert parts | {"frac_reward_zero_std", "reward", "kl"} <= set(first), said


def test_item_10_attributes_are_read_when_a_step_is_taken(trainer):
    said = changed(10, "the attributes of GRPOTrainer")
    assert trainer.num_generations == SETTINGS.group, said
    assert trainer.max_completion_length == SETTINGS.most_tokens, said
    assert trainer.temperature == SETTINGS.temperature, said
    assert set(trainer.eos_token_ids) >= {trainer.processing_class.eos_token_id}, said
    # beta was set after the constructor, and the KL term is there
    assert "ref_per_token_logps" in trainer.seen["scored"][0], said


def test_item_11_a_groups_rows_lie_together_in_the_order_of_the_data(trainer):
    said = changed(11, "the sampler of rows")
    asked = [row["prompt"] for row in trainer.train_dataset]
    for step, prompts in enumerate(trainer.seen["tokenized"]):
        shown = asked[step * SETTINGS.prompts : (step + 1) * SETTINGS.prompts]
        assert prompts == [prompt for prompt in shown for _ in range(SETTINGS.group)], said


def test_item_12_a_checkpoint_is_written_under_its_step(trainer):
    said = changed(12, "_save_checkpoint")
    assert list(inspect.signature(trainer._save_checkpoint).parameters) == ["model", "trial"], said
    trainer._save_checkpoint(trainer.model, None)
    assert (Path(trainer.args.output_dir) / "checkpoint-2" / "trainer_state.json").is_file(), said
