"""Advice on models, training methods and adapters. (test_advice.py says what a case is.)"""
import copy
import json

import pytest
import torch

import export
import lora as L
import model as M
from adapters import load_adapter, save_adapter
from adapters.loralib import loralib_tensors
from adapters.saving import adapter_of
from files import text
from files import weights as W
from methods import apply_method, load_trained, save_trained, start_from
from tests.advice import CASES, TOY, adapted, advises, base, edited, edited_tensors

# ---------------------------------------------------------------- the model, LoRA and other methods

@advises("lora.py", "load the base again to start another adapter")
def _(world):
    model = adapted(base())
    return lambda: L.add_lora(model, 2, 3), lambda: lambda: L.add_lora(base(), 2, 3)


@advises("lora.py", "call add_lora or load_adapter first")
def _(world):
    model = base()
    return lambda: L.merge(model), lambda: adapted(model) and None


@advises("lora.py", "the model is not merged: call merge(model) first")
def _(world):
    model = adapted(base())
    return lambda: L.unmerge(model), lambda: L.merge(model) and None


@advises("lora.py", "the model is merged already: call unmerge(model) first")
def _(world):
    model = L.merge(adapted(base()))
    return lambda: L.merge(model), lambda: L.unmerge(model) and None


@advises("lora.py", "call unmerge(model) before training")
def _(world):
    model = L.merge(adapted(base()))
    return lambda: model.train()(torch.tensor([[1, 2]])), lambda: L.unmerge(model.eval()) and None


@advises("model.py", "shorten the input")
def _(world):
    model, ids = base(), torch.zeros(1, 513, dtype=torch.long)
    return lambda: model(ids), lambda: lambda: model(ids[:, :512])


@advises("methods/apply.py", "load the base again to start another")
def _(world):
    model = adapted(base())
    return lambda: apply_method(model, "bitfit"), lambda: lambda: apply_method(base(), "bitfit")


@advises("methods/apply.py", "which has no {NEEDS[method]}; choose one of")
def _(world):
    return lambda: apply_method(base(), "head"), lambda: lambda: apply_method(base(), "last-layers")


def trained_by(world, method, **options):
    model = base()
    apply_method(model, method, **options)
    save_trained(model, world.folder / method, "toy", "e2e")
    return world.folder / method


def started(path, method, **options):
    model = base()
    apply_method(model, method, **options)
    return start_from(model, path)


@advises("methods/saving.py", "start it from one of its own")
def _(world):
    path = trained_by(world, "bitfit")
    return lambda: started(path, "full"), lambda: lambda: started(path, "bitfit")


@advises("methods/saving.py", ": give --")
def _(world):
    path = trained_by(world, "lora", rank=3, alpha=7)
    return lambda: started(path, "lora", rank=4, alpha=7), lambda: lambda: started(path, "lora", rank=3, alpha=7)


# ---------------------------------------------------------------- adapters

@advises("adapters/saving.py", "random: save the adapter together with it (in PEFT: modules_to_save=['pooler', 'classifier'])")
def _(world):
    """A base without a pooler, and an adapter whose file has the classifier alone."""
    config = {"vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20,
              "max_position_embeddings": 9, "type_vocab_size": 2, "model_type": "bert"}
    text.write_json(config, world.folder / "config.json")
    bare = M.BertClassifier(M.BertConfig(**{name: value for name, value in config.items() if name != "model_type"}))
    W.write_safetensors({name: tensor for name, tensor in bare.state_dict().items() if not name.startswith("classifier.")},
                        world.folder / "model.safetensors")
    whole, part = world.folder / "whole", world.folder / "part"
    for folder in (whole, part):
        save_adapter(adapted(M.load_pretrained(world.folder)), folder)
    edited_tensors(part / "adapter_model.safetensors", lambda found: {
        name: tensor for name, tensor in found.items() if "pooler" not in name})
    return lambda: load_adapter(M.load_pretrained(world.folder), part), lambda: lambda: load_adapter(
        M.load_pretrained(world.folder), whole)


@advises("adapters/saving.py", "the model has no LoRA to save: call add_lora first")
def _(world):
    model = base()
    return lambda: save_adapter(model, world.folder), lambda: adapted(model) and None


@advises("adapters/saving.py", "its adapter would be added twice: call unmerge(model) first")
def _(world):
    model = L.merge(adapted(base()))
    return lambda: save_adapter(model, world.folder), lambda: L.unmerge(model) and None


@advises("adapters/saving.py", "give the alpha that it was trained with")
def _(world):
    export.export_loralib(adapted(base()), world.folder / "lora.pt")
    return lambda: load_adapter(base(), world.folder / "lora.pt"), lambda: lambda: load_adapter(
        base(), world.folder / "lora.pt", alpha=7)


@advises("adapters/saving.py", "choose an adapter of this task")
def _(world):
    ours, other = world.adapter(task="e2e"), world.adapter(name="other", task="poems")
    return lambda: load_adapter(base(), other, task="e2e"), lambda: lambda: load_adapter(base(), ours, task="e2e")


def without_head(path):
    tensors_of(path, lambda found: {name: tensor for name, tensor in found.items() if "classifier" not in name})


@advises("adapters/saving.py", "save the adapter together with its head")
def _(world):
    path = world.adapter("roberta")
    without_head(path)
    return lambda: load_adapter(base("roberta"), path), lambda: world.adapter("roberta") and None


@advises("adapters/saving.py", "in Python, load the base with num_labels=")
def _(world):
    path = world.adapter("roberta", labels=3)
    return lambda: load_adapter(base("roberta"), path), lambda: lambda: load_adapter(base("roberta", num_labels=3), path)


def nudged(model):
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    return model


def own_adapter(spoil):
    """An adapter whose file is spoilt, and then saved again from its model."""
    def case(world):
        path = world.adapter()
        spoil(path)
        return lambda: load_adapter(base(), path), lambda: world.adapter() and None
    return case


def tensors_of(path, change, metadata=None):
    edited_tensors(path / "adapter_model.safetensors", change, metadata)


OTHERS = {"format": "pt"}                                                    # the metadata of PEFT's files


GONE = "none at all"


def own_section(path, change):
    """Change our section of the metadata, or replace it by a text."""
    file = path / "adapter_model.safetensors"
    content = file.read_bytes()
    own = json.loads(json.loads(content[8:8 + int.from_bytes(content[:8], "little")])["__metadata__"]["lora_from_scratch"])
    edited_tensors(file, lambda found: None, {"lora_from_scratch": change if isinstance(change, str) else json.dumps(
        {key: value for key, value in (own | change).items() if value != GONE})})


FIRST_A = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
FIRST_B = FIRST_A.replace("lora_A", "lora_B")


def first_gone(found):
    return {name: tensor for name, tensor in found.items() if ".h.0." not in name}


for file, words, spoil in [
        ("adapters/adapter.py", "under two spellings of its name; save it again", lambda path: tensors_of(
            path, lambda found: found | {FIRST_A.removeprefix("base_model.model."): found[FIRST_A]})),
        ("adapters/adapter.py", "stands without its other half; save it again", lambda path: tensors_of(
            path, lambda found: {name: tensor for name, tensor in found.items() if name != FIRST_A})),
        ("adapters/adapter.py", "expected one; save each alone", lambda path: tensors_of(path, lambda found: {
            name.replace(".weight", f".{adapter}.weight"): tensor.clone() for name, tensor in found.items()
            for adapter in ("one", "two")})),
        ("adapters/adapter.py", "load the base that it was trained on, or the whole file", lambda path: tensors_of(
            path, first_gone)),
        ("adapters/peft_settings.py", "load the base that it was trained on, or fetch the adapter again",
         lambda path: tensors_of(path, first_gone, OTHERS)),
        ("adapters/peft.py", "rank_pattern of adapter_config.json: use the two files of one adapter", lambda path: edited(
            path / "adapter_config.json", r=5)),
        ("adapters/adapter.py", "save the adapter again, from a run that did not diverge", lambda path: tensors_of(
            path, lambda found: found | {FIRST_A: found[FIRST_A] * torch.nan})),
        ("adapters/peft.py", "is none of its targets; save it again", lambda path: own_section(path, {"targets": ["o"]})),
        ("adapters/peft.py", "is missing in its metadata; save it again", lambda path: own_section(path, {"init": GONE})),
        ("adapters/peft.py", "save the adapter again", lambda path: own_section(path, {"alpha": 8})),
        ("adapters/peft.py", "has numbers outside the blocks of its targets", lambda path: tensors_of(
            path, lambda found: found | {FIRST_B: found[FIRST_B] + 1})),
        ("adapters/folder.py", "is not a JSON object; save the adapter again", lambda path: own_section(path, "[]")),
        ("adapters/folder.py", "expected one text or two and the labels' names: save the ", lambda path: own_section(
            path, {"form": {"texts": 3, "labels": None}})),
        ("adapters/folder.py", "which is never written so: save the ", lambda path: own_section(path, {"targets": "q"}))]:
    advises(file, words)(own_adapter(spoil))


for file, words, metadata in [
        ("adapters/adapter.py", "has no update: load the base that it was trained on", None),
        ("adapters/peft_settings.py", "for which the file has no update: load the base that it was trained on", OTHERS)]:
    def case(world, metadata=metadata):
        smaller, path = M.GPT2(M.GPT2Config(vocab_size=1025, n_positions=512, n_embd=128, n_layer=2, n_head=4)), world.folder
        save_adapter(adapted(copy.deepcopy(smaller)), path)
        tensors_of(path, lambda found: None, metadata)
        return lambda: load_adapter(base(), path), lambda: lambda: load_adapter(smaller, path)
    advises(file, words)(case)


@advises("adapters/peft.py", "which do not fit enable_lora {str(enabled)[:60]}: fetch the adapter again")
def _(world):
    """A MergedLinear of PEFT until 0.2, of q and v."""
    path = world.adapter()
    config = path / "adapter_config.json"
    tensors_of(path, lambda found: {name: torch.cat([tensor[:128, :3], tensor[256:, 3:]]) if "lora_B" in name else tensor
                                    for name, tensor in found.items()}, OTHERS)
    edited(config, r=3, lora_alpha=7, enable_lora=[True, True, True])
    return lambda: load_adapter(base(), path), lambda: edited(config, enable_lora=[True, False, True])


@advises("adapters/peft_settings.py", "which the file does not hold: fetch the adapter again")
def _(world):
    path, norm = world.adapter(), base().transformer.ln_f
    edited(path / "adapter_config.json", modules_to_save=["ln_f"])
    tensors_of(path, lambda found: None, OTHERS)
    return lambda: load_adapter(base(), path), lambda: tensors_of(path, lambda found: found | {
        f"transformer.ln_f.{name}": tensor for name, tensor in norm.state_dict().items()}, OTHERS)


@advises("adapters/base.py", "biases alone: load the base it is of")
def _(world):
    path, other = world.adapter(), nudged(base())
    tensors_of(path, lambda found: found | {"transformer.wte.weight": other.transformer.wte.weight.detach()}, OTHERS)
    return lambda: load_adapter(base(), path), lambda: lambda: load_adapter(other, path)


@advises("methods/saving.py", "save the adapter again, from a run that did not diverge")
def _(world):
    path = trained_by(world, "bitfit")
    tensors_of(path, lambda found: {name: tensor * torch.nan for name, tensor in found.items()})
    return lambda: load_trained(base(), path), lambda: trained_by(world, "bitfit") and None


@advises("adapters/loralib.py", "load_adapter(model, path, alpha, targets=...), and save it again")
def _(world):
    path = world.folder / "lora.safetensors"
    W.write_safetensors(loralib_tensors(adapter_of(adapted(base(), targets=("v",)))), path)

    def mend():
        save_adapter(load_adapter(base(), path, alpha=7, targets=("v",)), world.folder / "again")
        return lambda: load_adapter(base(), world.folder / "again")
    return lambda: load_adapter(base(), path, alpha=7), mend


def saved_by_peft(world, kind="gpt2", change=lambda model: None, **settings):
    """transformers' model, changed, with an adapter of PEFT whose B is not zero; world.folder / "adapter" is its file."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    auto = transformers.AutoModelForCausalLM if kind == "gpt2" else transformers.AutoModelForSequenceClassification
    theirs = auto.from_pretrained(TOY / kind, dtype="float32")
    change(theirs)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(
        r=3, lora_alpha=7, task_type="CAUSAL_LM" if kind == "gpt2" else "SEQ_CLS", fan_in_fan_out=kind == "gpt2", **settings))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(0.01)
    theirs.save_pretrained(world.folder / "adapter")
    return theirs


def merged(theirs, folder):
    """What is to be tried when PEFT has merged the adapter into its base: that it loads and computes the same."""
    model, x = theirs.merge_and_unload().eval(), torch.tensor([[5, 6, 7], [8, 9, 10]])
    model.save_pretrained(folder)

    def loaded():
        with torch.inference_mode():
            torch.testing.assert_close(M.load_pretrained(folder)(x), model(input_ids=x).logits, atol=1e-4, rtol=1e-4)
    return loaded


def merged_by_peft(kind: str, settings: dict, change=lambda model: None):
    """An adapter of PEFT that this project does not compute, and the model into which PEFT has merged it."""
    def case(world):
        theirs = saved_by_peft(world, kind, change, **settings)
        return lambda: load_adapter(base(kind), world.folder / "adapter"), lambda: merged(theirs, world.folder / "merged")
    return case


MERGING = [merged_by_peft(kind, settings) for kind, settings in [
    ("gpt2", {"use_dora": True}), ("roberta", {"use_dora": True}), ("gpt2", {"lora_bias": True}),
    ("gpt2", {"init_lora_weights": "pissa"}), ("roberta", {"init_lora_weights": "olora"})]]
CASES["adapters/peft_settings.py", "merge it with PEFT and load the merged"] = MERGING[0]
advises("adapters/base.py", "merge it with PEFT on the resized base and load the merged model")(merged_by_peft(
    "gpt2", {}, lambda model: model.resize_token_embeddings(1027, mean_resizing=False)))


for file, words, bad, good in [
        ("adapters/adapter.py", "train without the target_modules or modules_to_save that it comes from",
         {"target_modules": ["c_attn", "wte"]}, {}),
        ("adapters/adapter.py", "target_modules named it: train without it", {"target_modules": ["c_attn", "lm_head"]}, {}),
        ("adapters/base.py", "load the base it is of, or train it without", {"modules_to_save": ["ln_f"]}, {}),
        ("adapters/peft.py", "no layer with two patterns", {"rank_pattern": {"h.0.attn.c_attn": 5, "attn.c_attn": 4}},
         {"rank_pattern": {"h.0.attn.c_attn": 5, "h.[123].attn.c_attn": 4}})]:
    def case(world, bad=bad, good=good):
        saved_by_peft(world, **bad)
        return lambda: load_adapter(base(), world.folder / "adapter"), lambda: saved_by_peft(world, **good) and None
    advises(file, words)(case)


@advises("files/pretrained.py", "an update that is not merged: merge it with PEFT (merge_and_unload) and save the model again")
def _(world):
    theirs, folder = saved_by_peft(world), world.base()
    W.write_safetensors({name: tensor.clone() for name, tensor in theirs.state_dict().items()}, folder / "model.safetensors")
    return lambda: M.load_pretrained(folder), lambda: merged(theirs, folder)


@advises("adapters/adapter.py", "base weights of another kind or size: load those")
def _(world):
    path, smaller = world.adapter(), M.GPT2(M.GPT2Config(vocab_size=1025, n_positions=512, n_embd=128, n_layer=2, n_head=4))
    return lambda: load_adapter(smaller, path), lambda: lambda: load_adapter(base(), path)


@advises("adapters/base.py", "load the weights that it was trained on")
def _(world):
    path = world.adapter()
    return lambda: load_adapter(nudged(base()), path), lambda: lambda: load_adapter(base(), path)


@advises("adapters/saving.py", "'; save it again")
def _(world):
    path = world.adapter("roberta")
    tensors_of(path, lambda found: {name: tensor for name, tensor in found.items() if not name.endswith("dense.bias")})
    return lambda: load_adapter(base("roberta"), path), lambda: world.adapter("roberta") and None
