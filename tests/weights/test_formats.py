"""One file of every row of formats.md: opened without its code, equal tensors, the original module's logits."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from torch import Tensor

from sharpscope.clip.evaluate import evaluate
from sharpscope.clip.export import convert
from sharpscope.clip.head import Classifier
from sharpscope.clip.inspect import fitting_models, inspect
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import load_pair
from sharpscope.errors import CheckpointError, ConfigError, CorruptCheckpoint, PairMismatch
from sharpscope.weights.checkpoint import Checkpoint, checkpoint_of, read_checkpoint, write_checkpoint

Made = Any


def _read(made: Made) -> Checkpoint:
    assert not [name for name in sys.modules if name.startswith("src.models")]
    read = read_checkpoint(made.path, **made.read)
    assert not [name for name in sys.modules if name.startswith("src.models")]
    return read


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 * max(1.0, float(b.abs().max())))


def test_every_system_s_file_gives_its_tensors(made: Made) -> None:
    read = _read(made)
    exact = read.facts["adapter"] == 0
    assert {*read.tensors} == {*made.tensors}
    for name, expected in made.tensors.items():
        found = read.tensors[name]
        assert found.dtype == expected.dtype and found.shape == expected.shape, name
        assert torch.equal(found, expected) if exact else _close(found, expected), name
    assert (read.facts["container"], read.facts["producer"]) == (made.container, made.producer)
    assert {k: read.facts[k] for k in made.facts} == made.facts


def test_every_system_s_file_gives_its_logits(made: Made, tiny_paths: dict[str, Path]) -> None:
    read = _read(made)
    model = ClipModel.load(str(tiny_paths[made.kind]))
    theta = {n: t.float() if t.is_floating_point() else t for n, t in read.tensors.items()}
    if made.features is not None:
        unit = torch.nn.functional.normalize(made.features, dim=-1)
        assert _close(model.encode_image(theta, made.images), unit)
    if made.text is not None:
        tokens, features = made.text
        assert _close(model.encode_text(theta, tokens), torch.nn.functional.normalize(features, dim=-1))
    if made.logits is not None:
        facts = read.facts["head"]
        head = Classifier(
            model, "stored", list("abcde"), scale_baked=facts["scale_baked"], normalize=facts["normalize"]
        )
        assert _close(head.logits(theta, made.images), made.logits)
    assert made.features is not None or made.logits is not None


def test_inspect_says_what_every_file_is(made: Made, tiny_paths: dict[str, Path], tmp_path: Path) -> None:
    """Format, producer, safety, classes, towers, architecture confirmed against a config, activation, head."""
    model = str(tiny_paths[made.kind])
    if base := made.read.get("base"):
        text = inspect(made.path)
        assert "only the tuned tensors; they are laid over zero-shot weights" in text
        write_checkpoint(tmp_path / "base.safetensors", base.tensors)
        text = inspect(tmp_path / "base.safetensors", made.path, model).split("\n\n")[1]
    else:
        text = inspect(made.path, None, model)
    lines = {line[2:16].strip(): line[16:] for line in text.splitlines()[1:]}
    facts = _read(made).facts
    assert lines["format"] == f"{made.container}, read without running any of its code"
    assert lines["written by"] == made.producer
    assert lines["sha256"] == read_checkpoint(made.path, **made.read).sha256
    assert ("its own" in lines["checksum"]) == (made.container in ("torch zip", "TorchScript archive"))
    assert (lines["safety"] == "plain tensors") == facts["safe"]
    assert all(name in lines.get("classes", "") for name in facts["classes"][:30])
    assert ("classes" in lines) == bool(facts["classes"])
    towers = [t for t in facts["towers"] if t != "head" or "head" not in made.read]
    assert lines["holds"] == ", ".join(towers)
    assert lines["looks like"].startswith("a ViT (width 16, 2 blocks, patch 8, 16 px), embedding 12")
    activation = "GELU" if made.kind in ("vit", "customtext") else "QuickGELU"
    assert lines["fits"] == f"{model}, {activation}, every tensor of its image tower"
    told = facts["quick_gelu"]
    known = {True: "QuickGELU (stated in the file)", False: "GELU (stated in the file)"}
    assert lines["activation"].startswith(known.get(told, ("QuickGELU is a guess", "unknown: not stated in the file")))
    if "head" in towers:
        baked = "" if facts["head"]["scale_baked"] else "not "
        assert lines["head"].startswith(f"5 classes x 12, logit scale {baked}baked in, features normalised")
        assert ("a guess" in lines["head"]) == bool(facts["head"]["assumed"])
    else:
        assert lines["head"] == "none stored: built from the text tower"


def test_inspect_of_a_head_alone(systems: Callable[[str], Made]) -> None:
    made = systems("task_vectors")
    text = inspect(made.read["head"])
    assert "5 classes x 12, logit scale baked in, features normalised" in text and "ClassificationHead" in text
    with pytest.raises(ConfigError, match="holds only a classification head"):
        inspect(made.read["head"], made.path)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14-336", "RN50", "ViT-B-16-plus-240"])
def test_the_architecture_is_guessed_among_open_clip_s_and_confirmed(name: str) -> None:
    tensors = {n: torch.empty(s, device="meta") for n, s in ClipModel.load(name).shapes.items()}
    found = fitting_models(tensors)
    assert name in found and all(n.removesuffix("-quickgelu") == name for n in found)
    assert all("quickgelu" in n for n in fitting_models(tensors, True))
    del tensors["visual.ln_post.weight" if "ViT" in name else "visual.bn1.weight"]
    assert fitting_models(tensors) == []


def test_the_embedded_world_s_architecture_is_found_too() -> None:
    assert fitting_models({n: torch.empty(s, device="meta") for n, s in ClipModel.load("mini").shapes.items()}) == [
        "mini"
    ]


def test_convert_writes_every_file_in_open_clip_s_names(made: Made, tmp_path: Path) -> None:
    out, base = tmp_path / "out" / "x.safetensors", None
    out.parent.mkdir()
    if made.read.get("base"):
        base = tmp_path / "base.safetensors"
        write_checkpoint(base, made.read["base"].tensors)
    convert(made.path, out, base=base, head_file=made.read.get("head"))
    before, after = _read(made), read_checkpoint(out)
    assert after.facts["naming"] == "open_clip" and after.facts["safe"] and not after.facts["partial"]
    assert {*after.tensors} == {*before.tensors}
    assert all(torch.equal(after.tensors[n], before.tensors[n]) for n in before.tensors)
    assert after.facts["quick_gelu"] == before.facts["quick_gelu"]
    told = json.loads(after.facts["metadata"]["sharpscope.converted_from"])
    assert (told["container"], told["sha256"]) == (before.facts["container"], before.sha256)
    kept = ("scale_baked", "normalize")
    if before.facts["head"]:
        assert all(after.facts["head"][k] == before.facts["head"][k] for k in kept)
    assert [p.name for p in out.parent.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("system", ["OpenAI", "model-soups", "Hugging Face", "FLYP"])
def test_convert_to_hugging_face_s_names_and_back(systems: Callable[[str], Made], system: str, tmp_path: Path) -> None:
    made = systems(system)
    convert(made.path, tmp_path / "hf.safetensors", names="huggingface")
    back = read_checkpoint(tmp_path / "hf.safetensors")
    assert back.facts["naming"] == "Hugging Face"
    assert {*back.tensors} == {*made.tensors}
    assert all(torch.equal(back.tensors[n], t) for n, t in made.tensors.items())


def test_transformers_reads_what_is_converted_to_its_names(systems: Callable[[str], Made], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    made = systems("Hugging Face")
    original = load_file(Path(made.path.removeprefix("local-dir:")) / "model.safetensors")
    convert(made.path, tmp_path / "hf.safetensors", names="huggingface")
    written = load_file(tmp_path / "hf.safetensors")
    assert {*written} == {*original}
    assert all(torch.equal(written[n], original[n]) for n in original)


def test_resnets_have_no_hugging_face_names(tmp_path: Path, tiny_thetas: Any) -> None:
    torch.save(tiny_thetas["resnet"][1], tmp_path / "rn.pt")
    with pytest.raises(CheckpointError, match="no place in Hugging Face"):
        convert(tmp_path / "rn.pt", tmp_path / "x.safetensors", names="huggingface")
    assert not (tmp_path / "x.safetensors").exists()


# ------------------------------------------------------------------ paths between systems


def _names(tmp_path: Path) -> Path:
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    return tmp_path / "classes.txt"


def test_the_path_from_an_openai_archive_to_a_wise_ft_pickle(
    systems: Callable[[str], Made], modeling: Any, tiny_paths: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("src", "src.models", "src.models.modeling"):
        sys.modules[name] = modeling
    tuned = systems("WiSE-FT")
    zero = systems("OpenAI")
    model = str(tiny_paths["quickgelu"])
    pair = load_pair(zero.path, tuned.path, model=model, classnames=_names(tmp_path))
    assert pair.classifier.mode == "stored" and pair.classifier.scale_baked
    assert pair.facts["promoted"] and pair.facts["filled"] == {"text": 12}
    end = pair.classifier.logits(pair.path().at(1.0), tuned.images)
    assert _close(end, tuned.logits)
    assert torch.isfinite(pair.classifier.logits(pair.path().at(0.5), tuned.images)).all()
    with pytest.raises(PairMismatch, match="trained with QuickGELU"):
        load_pair(zero.path, tuned.path, model=str(tiny_paths["vit"]), classnames=_names(tmp_path))


def test_two_wise_ft_files_without_a_text_tower_are_a_pair(
    tiny_thetas: Any, tiny_paths: dict[str, Path], tmp_path: Path
) -> None:
    theta = tiny_thetas["vit"][1]
    body = {f"model.{n}": t for n, t in theta.items() if not n.startswith("transformer.")}
    zero = {**body, "classification_head.weight": torch.randn(5, 12)}
    one = {
        n: t + 0.01 if n.startswith(("model.visual", "class")) and t.is_floating_point() else t for n, t in zero.items()
    }
    torch.save(zero, tmp_path / "0.pt")
    torch.save(one, tmp_path / "1.pt")
    pair = load_pair(tmp_path / "0.pt", tmp_path / "1.pt", model=str(tiny_paths["vit"]), classnames=_names(tmp_path))
    assert pair.classifier.mode == "stored" and "transformer.resblocks.0.ln_1.weight" not in pair.theta_0
    with pytest.raises(PairMismatch, match="missing"):
        load_pair(
            tmp_path / "0.pt", tmp_path / "1.pt", model=str(tiny_paths["vit"]), head="zeroshot",
            classnames=_names(tmp_path),
        )  # fmt: skip


def test_a_partial_file_is_laid_over_the_zero_shot_end(
    systems: Callable[[str], Made], tiny_paths: dict[str, Path], tmp_path: Path
) -> None:
    made = systems("Dassl")
    with pytest.raises(CheckpointError, match="only what was tuned"):
        read_checkpoint(made.path)
    torch.save(made.read["base"].tensors, tmp_path / "zero.pt")
    pair = load_pair(
        tmp_path / "zero.pt", made.path, model=str(tiny_paths["quickgelu"]), classnames=_names(tmp_path), head="text"
    )
    assert all(torch.equal(pair.theta_1[n], made.tensors[n]) for n in pair.theta_1)


def test_class_names_that_are_not_those_of_the_stored_head_are_refused(tmp_path: Path) -> None:
    """A name may stand twice (iWildCam's English names do), but not in place of the head's own names."""
    (tmp_path / "other.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(PairMismatch, match="names the 16 classes of its head"):
        load_pair("mini:zeroshot", "mini:success", model="mini", classnames=tmp_path / "other.txt")


# ------------------------------------------------------------------ adapters, heads, hubs


@pytest.mark.parametrize("missing", [None, "1", "shape"])
def test_an_array_that_flax_cut_into_pieces_is_joined(tmp_path: Path, missing: str | None) -> None:
    """flax cuts arrays of more than 1 GB: {__msgpack_chunked_array__, shape: {"0": n, ...}, chunks: {"0": ...}}."""
    whole = torch.randn(4, 6)
    chunks = {str(i): piece.numpy() for i, piece in enumerate(whole.reshape(-1).split(10))}
    array: dict[str, Any] = {"__msgpack_chunked_array__": True, "shape": {"0": 4, "1": 6}, "chunks": chunks}
    if missing == "shape":
        array["shape"] = {"0": 4, "1": 5}
    elif missing:
        del chunks[missing]

    def leaf(value: Any) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((value.shape, "float32", value.tobytes()), use_bin_type=True))

    tree = {"ext": {"visual_projection": {"kernel": array}}}
    (tmp_path / "a.ckpt").write_bytes(msgpack.packb(tree, default=leaf, use_bin_type=True))
    if missing:
        with pytest.raises(CorruptCheckpoint, match="chunked array"):
            read_checkpoint(tmp_path / "a.ckpt")
    else:
        assert torch.equal(read_checkpoint(tmp_path / "a.ckpt").tensors["visual.proj"], whole)


def test_lora_without_alpha_is_refused(systems: Callable[[str], Made], tmp_path: Path) -> None:
    made = systems("LoRA")
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match="without alpha"):
        read_checkpoint(made.path, **made.read)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"alpha_pattern": {"fc1": 3}}, "alpha for each module"),
        ({"init_lora_weights": "pissa_niter_4"}, "may change the base weights too"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"init_lora_weights": "of_next_year"}, "of_next_year"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_alpha": None, "alpha": 3}, "without alpha"),  # alpha of anything
    ],
)
def test_lora_that_is_more_than_one_product_is_refused(
    systems: Callable[[str], Made], tmp_path: Path, config: dict[str, Any], word: str
) -> None:
    made = systems("LoRA")
    told = json.loads((tmp_path / "adapter_config.json").read_text()) | config
    if "alpha" in told:
        del told["r"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=word):
        read_checkpoint(made.path, **made.read)


def test_the_scale_of_an_adapter_may_be_given(systems: Callable[[str], Made], tmp_path: Path) -> None:
    made = systems("LoRA")
    (tmp_path / "adapter_config.json").unlink()
    read = read_checkpoint(made.path, **made.read, adapter_scale=4.0)  # alpha 8, rank 2
    assert all(_close(read.tensors[n], t) for n, t in made.tensors.items())
    made = systems("R-Adapter")
    content = torch.load(made.path, weights_only=True)
    del content["args"]
    torch.save(content, made.path)
    with pytest.raises(CheckpointError, match=r"without eval_scale[^~]*--adapter-scale"):
        read_checkpoint(made.path)
    read = read_checkpoint(made.path, adapter_scale=0.5)
    assert all(_close(read.tensors[n], t) for n, t in made.tensors.items())


class StochasticAdapter(torch.nn.Module):
    """As R-Adapter's: a matrix, a learnt scale, and the share of it that evaluation takes as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.f = torch.nn.Linear(16, 16)
        self.s = torch.nn.Parameter(torch.full((1,), 0.1))
        self.eval_scale = 0.8


def test_a_pickled_r_adapter_tells_its_own_scale(tiny_theta: Any, tmp_path: Path) -> None:
    state = {n: t for n, t in tiny_theta.items() if n.startswith("visual.")}
    module, adapter = torch.nn.Module(), StochasticAdapter()
    for name, value in state.items():
        *path, leaf = name.split(".")
        owner = module
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, torch.nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(leaf, torch.nn.Parameter(value))
    module.get_submodule("visual.transformer.resblocks.0").add_module("adapter_mlp", adapter)
    torch.save(module, tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    layer = "visual.transformer.resblocks.0.mlp.c_proj"
    whole = torch.eye(16) + 0.08 * adapter.f.weight.detach()
    assert _close(read.tensors[f"{layer}.weight"], whole @ state[f"{layer}.weight"])
    assert _close(read.tensors[f"{layer}.bias"], whole @ state[f"{layer}.bias"] + 0.08 * adapter.f.bias.detach())


def test_clip_lora_of_rank_2_does_not_say_its_scale(systems: Callable[[str], Made], tmp_path: Path) -> None:
    made = systems("CLIP-LoRA")
    content = torch.load(made.path, weights_only=True)
    for position, word in (("all", "by r or by its square root"), ("top3", "says which blocks these are")):
        for parts in content["weights"].values():
            for pair in parts.values():
                pair["w_lora_A"] = pair["w_lora_A"][:1].repeat(2, 1)
                pair["w_lora_B"] = pair["w_lora_B"][:, :1].repeat(1, 2)
        content["metadata"]["position"] = position
        torch.save(content, made.path)
        with pytest.raises(CheckpointError, match=word):
            read_checkpoint(made.path, **made.read)


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["visual.transformer.resblocks.0.adapter_1.weight"], "does not say where"),
        (["visual.transformer.resblocks.0.mlp.c_fc.lora_A.weight"], "only one of its two"),
        (["visual.transformer.resblocks.0.attn.lora_q"], "cannot be merged"),
    ],
)
def test_adapters_that_say_too_little_are_refused(tiny_theta: Any, tmp_path: Path, names: list[str], word: str) -> None:
    torch.save({**tiny_theta, **{n: torch.ones(2, 16) for n in names}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=word):
        read_checkpoint(tmp_path / "a.pt")


def test_lora_beside_its_weights_is_merged_once(tiny_theta: Any, tmp_path: Path) -> None:
    """A law: merged already or not, W + scale B A comes out once, if the user's word or the base tells which it is."""
    target = "visual.transformer.resblocks.0.mlp.c_fc"
    down, up = torch.randn(4, 16), torch.randn(32, 4)
    extra = {f"{target}.lora_A": down, f"{target}.lora_B": up, f"{target}.alpha": torch.tensor(2.0)}
    right = tiny_theta[f"{target}.weight"] + 0.5 * up @ down
    base = checkpoint_of(tiny_theta, "base")
    for inside, weight in ((False, tiny_theta[f"{target}.weight"]), (True, right)):
        torch.save({**tiny_theta, f"{target}.weight": weight, **extra}, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=r"already contain[^~]*--adapter-merged"):
            read_checkpoint(tmp_path / "a.pt")
        for known in ({"adapter_merged": inside}, {"base": base}):
            read = read_checkpoint(tmp_path / "a.pt", **known)
            assert _close(read.tensors[f"{target}.weight"], right)
            assert {*read.tensors} == {*tiny_theta} and read.facts["adapter"] == 1
            assert read.facts["adapter_inside"] is inside
        assert read_checkpoint(tmp_path / "a.pt", partial=True).facts["adapter_inside"] is None  # inspect shows it
    torch.save({**tiny_theta, f"{target}.weight": right + 0.1, **extra}, tmp_path / "a.pt")  # trained too
    with pytest.raises(CheckpointError, match="--adapter-merged"):
        read_checkpoint(tmp_path / "a.pt", base=base)


def test_a_pickled_loralib_layer_says_whether_it_is_merged(tiny_theta: Any, tmp_path: Path) -> None:
    module = torch.nn.Module()
    module.visual = torch.nn.Module()
    layer = torch.nn.Linear(3, 3, bias=False)
    layer.lora_A, layer.lora_B = (torch.nn.Parameter(torch.ones(*s)) for s in ((1, 3), (3, 1)))
    module.visual.add_module("c_fc", layer)
    for merged in (True, False):
        layer.merged = merged
        torch.save(module, tmp_path / "a.pt")
        read = read_checkpoint(tmp_path / "a.pt", adapter_scale=2.0)
        added = read.tensors["visual.c_fc.weight"] - layer.weight.detach()
        assert _close(added, torch.full((3, 3), 0.0 if merged else 2.0))


def test_a_hub_id_without_a_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="cannot be downloaded from the Hugging Face hub") as error:
        read_checkpoint("hf-hub:nobody/nothing")
    assert len(str(error.value).splitlines()) <= 2


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights in it"):
        read_checkpoint(f"local-dir:{tmp_path}")


def test_q_without_k_and_v_is_refused(systems: Callable[[str], Made], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made = systems("Hugging Face")
    state = load_file(Path(made.path.removeprefix("local-dir:")) / "model.safetensors")
    del state["vision_model.encoder.layers.0.self_attn.k_proj.weight"]
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="needs q, k and v"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_classes_found_in_a_pickle_are_listed(systems: Callable[[str], Made]) -> None:
    made = systems("WiSE-FT")
    read = _read(made)
    assert "src.models.modeling.ImageClassifier" in read.facts["classes"]
    assert "torch.nn.modules.normalization.LayerNorm" in read.facts["classes"] or read.facts["classes"]
    text = inspect(made.path)
    assert "src.models.modeling.ImageClassifier" in text and "other programs would import" in text


def test_class_names_beside_the_state_dict_are_kept(tiny_theta: Any, tmp_path: Path) -> None:
    state = {**tiny_theta, "head.weight": torch.randn(3, 12)}
    for names, kept in ((["a", "b", "c"], ["a", "b", "c"]), (["a", "b"], None), ([1, 2, 3], None)):
        torch.save({"state_dict": state, "classnames": names}, tmp_path / "a.pt")
        assert read_checkpoint(tmp_path / "a.pt").facts["head"]["classnames"] == kept


def test_the_command_line_converts_and_inspects(
    systems: Callable[[str], Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sharpscope.cli import main as cli

    made = systems("task_vectors")
    out, names = tmp_path / "x.safetensors", _names(tmp_path)
    assert cli.main(["convert", made.path, str(out), "--head", made.read["head"], "--classnames", str(names)]) == 0
    assert "task_vectors" in capsys.readouterr().out
    assert read_checkpoint(out).facts["head"]["classnames"] == list("abcde")
    assert cli.main(["inspect", str(out), made.path]) == 0  # a converted file beside the pickle that it came from
    assert cli.main(["inspect", str(out)]) == 0
    assert "5 classes x 12, logit scale baked in" in capsys.readouterr().out
    assert cli.main(["convert", made.path, str(tmp_path / "x.pt")]) == 2
    assert cli.main(["convert", str(out), str(out)]) == 2
    (tmp_path / "evil.pt").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
    assert cli.main(["convert", str(tmp_path / "evil.pt"), str(tmp_path / "y.safetensors")]) == 3
    assert not (tmp_path / "y.safetensors").exists() and "os.system" in capsys.readouterr().err


def test_evaluate_believes_what_a_file_tells_of_its_activation(
    systems: Callable[[str], Made], tiny_paths: dict[str, Path]
) -> None:
    made = systems("FLYP")
    with pytest.raises(PairMismatch, match="QuickGELU"):
        evaluate(made.path, str(tiny_paths["vit"]), ["mini:photo"], classnames=list("ab"), head="zeroshot")
