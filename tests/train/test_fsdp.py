"""The settings for FSDP: accelerate takes them, and its policy finds a model's decoder layers."""

import dataclasses
from pathlib import Path

import pytest
from accelerate.commands import launch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_multi_gpu_env

from tml_lib import files
from tml_lib.lm import models
from tml_lib.lm.adapters import copy_to_train
from tml_lib.train import sft

FILE = Path(sft.__file__).with_name("fsdp.yaml")


@pytest.fixture
def plugin(monkeypatch):
    """accelerate's settings of FSDP in a launched process, by way of the launcher's variables."""
    parser = launch.launch_command_parser()
    options = parser.parse_args(["--config_file", str(FILE), "script.py"])
    options, *_ = launch._validate_launch_command(options)
    assert options.use_fsdp
    for name, value in prepare_multi_gpu_env(options).items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    return FullyShardedDataParallelPlugin()


def test_accelerate_reads_the_file():
    config = load_config_from_file(str(FILE))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == DistributedType.FSDP


def test_every_name_in_it_is_one_that_accelerate_knows():
    held = files.table(FILE, files.COMMITTED)
    assert set(held) <= {field.name for field in dataclasses.fields(ClusterConfig)}
    known = {action.dest for action in launch.launch_command_parser()._actions}
    assert set(held["fsdp_config"]) <= known


def test_the_launcher_hands_the_settings_on(plugin):
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.cpu_ram_efficient_loading is False


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_each_decoder_layer_is_a_unit_of_its_own(plugin, start, kind, rank):
    lm = models.LanguageModel(models.random_model(kind), start.tokenizer, kind)
    model = copy_to_train(lm, rank, 0)
    plugin.set_auto_wrap_policy(model)
    policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
    found = [type(module).__name__ for module in model.modules() if policy(module)]
    layers = [name for name in found if name.endswith("DecoderLayer")]
    assert len(layers) == model.config.num_hidden_layers
    assert found == layers
