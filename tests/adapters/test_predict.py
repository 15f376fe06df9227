"""predict.py on the toy models: the answers of each task alone, order, bad lines, a bounded window, and refusals."""
import io
import json
import random
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import data
import export
import lora as L
import model as M
import predict
import train
from adapters import AdapterBank, bank, load_adapter, save_adapter
from experiments.bench_requests import differing, write_adapters
from files import weights as W
from generation import generate
from generation.e2e import clean, decode_e2e, e2e_prompt, end_tokens
from toy.fresh import init_weights


def drawn(model, rank, alpha, targets=("q", "v")):
    """The model with an update and, on RoBERTa, a head as if trained: from random numbers, none of them zero."""
    L.add_lora(model, rank, alpha, targets)
    generator = torch.Generator().manual_seed(rank)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name or name.startswith("classifier."):
                parameter.normal_(0, 0.1, generator=generator)
    return model


@pytest.fixture(scope="module")
def adapters(repository, toy_data, tmp_path_factory):
    """Adapter folders: mrpc really trained on the toy RoBERTa, the others drawn."""
    folder, toy = tmp_path_factory.mktemp("runs"), repository / "toy"
    train.main(["--model", str(toy / "roberta"), "--task", "mrpc", "--data-dir", str(toy_data), "--out-dir", str(folder),
                "--max-steps", "30", "--limit-train", "240", "--limit-eval", "4", "--lr", "0.005", "--batch-size", "8",
                "--rank", "4", "--alpha", "32"])
    save_adapter(drawn(M.load_pretrained(toy / "roberta", num_labels=3), 2, 9, ("k", "fc")), folder / "mnli", task="mnli")
    save_adapter(drawn(M.load_pretrained(toy / "roberta", num_labels=1), 3, 7), folder / "stsb", task="stsb")
    save_adapter(drawn(M.load_pretrained(toy / "gpt2"), 6, 14), folder / "e2e", task="e2e")
    return {name: folder / name for name in ("mnli", "stsb", "e2e")} | {"mrpc": next((folder / "mrpc").rglob("adapter"))}


def run(repository, adapters, kind, lines, tmp_path, *options, names=("mrpc", "mnli", "stsb")):
    """predict.main on these lines; its status and the answers."""
    requests, out = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    requests.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    chosen = [part for name in names for part in ("--adapter", f"{name}={adapters[name]}")]
    status = predict.main(["--model", str(repository / "toy" / kind), *chosen, str(requests), "--out", str(out), *options])
    return status, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def mixed_requests(toy_data, count):
    """(adapter, example) in turn, with pairs of very different lengths."""
    mrpc, mnli = data.read_glue("mrpc", "dev", toy_data), data.read_glue("mnli", "dev_matched", toy_data)
    sources = {"mrpc": mrpc, "mnli": mnli, "stsb": mrpc[::-1]}
    return [(name, sources[name][index // 3]) for index, name in zip(range(count), ("mrpc", "mnli", "stsb") * count,
                                                                    strict=False)]


@pytest.mark.parametrize("batch_size", ["1", "5", "32"])
def test_mixed_answers_are_those_of_each_task_alone(repository, adapters, toy_data, tmp_path, batch_size):
    requests = mixed_requests(toy_data, 60)
    lines = [{"id": index, "adapter": name, "text": [example.text, example.pair]}
             for index, (name, example) in enumerate(requests)]
    status, answers = run(repository, adapters, "roberta", lines, tmp_path, "--batch-size", batch_size, "--precision", "fp32")
    assert status == 0 and [answer["id"] for answer in answers] == list(range(60))
    tokenizer = data.load_tokenizer(repository / "toy/roberta")
    for task, labels in (("mrpc", 2), ("mnli", 3), ("stsb", 1)):
        model = load_adapter(M.load_pretrained(repository / "toy/roberta", num_labels=labels), adapters[task])
        for answer, (name, example) in zip(answers, requests, strict=True):
            if name == task:
                with torch.inference_mode():
                    logits = model(torch.tensor([tokenizer.encode(example.text, example.pair)]))[0]
                if task == "stsb":
                    assert answer == {"id": answer["id"], "adapter": name, "score": pytest.approx(logits.item(), abs=2e-4)}
                else:
                    probability, label = logits.softmax(0).max(0)
                    assert answer == {"id": answer["id"], "adapter": name, "label": data.GLUE_TASKS[task].labels[label],
                                      "probability": pytest.approx(probability.item(), abs=2e-4)}
    assert len({answer.get("label") for answer in answers}) > 3              # of mrpc, of mnli, and none of stsb


def test_generated_text_is_that_of_decode_and_the_base_goes_on_with_plain_text(repository, adapters, toy_data, tmp_path):
    mrs = list(dict.fromkeys(mr for mr, _ in data.read_e2e("test", toy_data)))[:5]
    lines = [{"adapter": name, "text": mr} for mr in mrs for name in ("e2e", "base")]
    options = ["--beam-size", "3", "--max-new-tokens", "12", "--length-penalty", "0.7", "--precision", "fp32"]
    status, answers = run(repository, adapters, "gpt2", lines, tmp_path, *options, "--batch-size", "4", names=["e2e"])
    assert status == 0
    tokenizer = data.load_tokenizer(repository / "toy/gpt2")
    model = load_adapter(M.load_pretrained(repository / "toy/gpt2"), adapters["e2e"])
    _, texts = decode_e2e(model, tokenizer, [(mr, "") for mr in mrs], (0.7,), beam_size=3, max_new_tokens=12)
    assert [answer["text"] for answer in answers[::2]] == texts[0.7]
    assert answers[1::2] != answers[::2] and {answer["adapter"] for answer in answers[1::2]} == {"base"}


def test_an_adapter_without_a_task_has_the_task_it_is_named_after(repository, adapters, tmp_path):
    """GPT-2's frame of E2E, as RoBERTa's labels: a folder as PEFT writes it, whose file tells nothing of this project."""
    model, tokenizer = M.load_pretrained(repository / "toy/gpt2"), data.load_tokenizer(repository / "toy/gpt2")
    save_adapter(drawn(M.load_pretrained(repository / "toy/gpt2"), 6, 14), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    W.write_safetensors({name: tensor.clone() for name, tensor in W.read_safetensors(file).items()}, file)
    bank = AdapterBank(model)
    for name, folder in (("e2e", tmp_path), ("other", tmp_path), ("named", adapters["e2e"])):
        bank.add(name, folder)
    assert [bank[name].task for name in ("e2e", "other", "named")] == ["", "", "e2e"]
    predictor, mr = predict.Predictor(bank, tokenizer), "name : The Winter Otter | type : schooner"
    ids = {name: predictor.reader.read(json.dumps({"adapter": name, "text": mr}).encode()).ids for name in bank.adapters}
    assert ids["e2e"] == ids["named"] == e2e_prompt(tokenizer, mr) and ids["e2e"][-1] == tokenizer.eos_id
    assert ids["other"] == ids["base"] == tokenizer.encode(mr)


def test_options_of_generation_are_those_of_decode_where_none_is_given(repository, monkeypatch):
    """The bank is asked for what was given and for the room that read() reserves; the rest is generate's to say."""
    bank, asked = AdapterBank(M.load_pretrained(repository / "toy/gpt2")), {}
    monkeypatch.setattr(AdapterBank, "generate", lambda self, names, prompts, **options: asked.update(options) or [[5]])
    predictor = predict.Predictor(bank, data.load_tokenizer(repository / "toy/gpt2"))
    predictor.answer([predict.Request("base", [5, 6], {})])
    assert asked.keys() == {"eos_ids", "banned_ids", "batch_size", "max_new_tokens"}


def test_a_roberta_file_without_alpha_takes_the_one_given_and_a_folder_keeps_its_own(repository, adapters, toy_data, tmp_path):
    """The paper and the scripts have different alphas for RoBERTa, so the command asks; 9 is what `mnli` was saved with."""
    model = load_adapter(M.load_pretrained(repository / "toy/roberta", num_labels=3), adapters["mnli"])
    export.export_loralib(model, tmp_path / "mnli.pt")
    mixed = [(name, example) for name, example in mixed_requests(toy_data, 12) if name != "stsb"]
    lines = [{"adapter": name, "text": [example.text, example.pair]} for name, example in mixed]
    files, names = adapters | {"mnli": tmp_path / "mnli.pt"}, ("mrpc", "mnli")
    _, expected = run(repository, adapters, "roberta", lines, tmp_path, names=names)
    assert run(repository, files, "roberta", lines, tmp_path, "--alpha", "9", names=names) == (0, expected)
    _, other = run(repository, files, "roberta", lines, tmp_path, "--alpha", "90", names=names)
    assert [answer == known for answer, known in zip(other, expected, strict=True)] == [name == "mrpc" for name, _ in mixed]
    with pytest.raises(ValueError, match="mnli.pt: the file holds no alpha; the paper has 8, the authors' scripts 16: give"):
        run(repository, files, "roberta", lines, tmp_path, names=names)
    for own in (adapters["mnli"], adapters["mnli"] / "adapter_model.safetensors"):
        assert predict.alpha_of("mnli", own, model.config, 90.0) is None


def test_a_gpt2_file_without_alpha_takes_the_recipes(repository, tmp_path, capsys):
    """32 in the paper and in the scripts. Under a name that is no task there is no recipe, and the alpha must be given."""
    model = drawn(M.load_pretrained(repository / "toy/gpt2"), 4, 32)
    export.export_loralib(model, tmp_path / "file.pt")
    save_adapter(model, tmp_path / "folder")
    mr, short = "name : The Winter Otter | type : schooner", ["--max-new-tokens", "8", "--beam-size", "2"]
    answers = {}
    for place in ("folder", "file.pt"):
        status, answers[place] = run(repository, {"e2e": tmp_path / place}, "gpt2", [{"adapter": "e2e", "text": mr}], tmp_path,
                                     *short, names=["e2e"])
        assert status == 0
    assert answers["folder"] == answers["file.pt"]
    assert "32 is taken from the recipe 'paper'" in capsys.readouterr().err
    files, lines = {"mine": tmp_path / "file.pt"}, [{"adapter": "mine", "text": mr}]
    with pytest.raises(ValueError, match="adapter 'mine': .*the file holds no alpha.*give the alpha"):
        run(repository, files, "gpt2", lines, tmp_path, *short, names=["mine"])
    assert run(repository, files, "gpt2", lines, tmp_path, *short, "--alpha", "32", names=["mine"])[0] == 0


def as_run(adapter, folder, frozen_in):
    """A copy of an adapter where train.py would leave it, in a run whose base was held in this format."""
    shutil.copytree(adapter, folder / "adapter")
    (folder / "config.json").write_text(json.dumps({"frozen_in": frozen_in}))
    return folder / "adapter"


def test_the_format_is_the_runs_unless_told_otherwise(repository, adapters, toy_data, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LORA_PRECISION", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)                 # auto would take fp32
    bf16, fp32 = (as_run(adapters[name], tmp_path / name, name_of) for name, name_of in (("mrpc", "bf16"), ("mnli", "fp32")))
    runs = {"mrpc": bf16, "mnli": fp32, "stsb": adapters["stsb"]}            # stsb: no run is known
    lines = [{"adapter": name, "text": [example.text, example.pair]} for name, example in mixed_requests(toy_data, 15)]
    of_mrpc = [line for line in lines if line["adapter"] == "mrpc"]

    def said(lines, names, *options):
        status, answers = run(repository, runs, "roberta", lines, tmp_path, *options, names=names)
        assert status == 0
        return capsys.readouterr().err, answers
    told, rounded = said(of_mrpc, ["mrpc"])
    assert "precision: the base in bf16 (as the run that trained it)" in told
    told, exact = said(of_mrpc, ["mrpc"], "--precision", "fp32")
    assert "precision: the base in fp32 (asked for)" in told
    assert rounded != exact and [answer["probability"] for answer in rounded] == pytest.approx(
        [answer["probability"] for answer in exact], abs=0.05)
    two = [line for line in lines if line["adapter"] != "mnli"]
    assert "the base in bf16 (as the run" in said(two, ["mrpc", "stsb"])[0]
    told, mixed = said(lines, ["mrpc", "mnli", "stsb"])
    assert "the base in fp32 (this processor has no AMX)" in told             # the runs differ
    assert [answer for answer in mixed if answer["adapter"] == "mrpc"] == [
        answer | {"probability": pytest.approx(answer["probability"], abs=2e-4)} for answer in exact]


@pytest.mark.parametrize("kind, name", [("roberta", "mrpc"), ("gpt2", "e2e")])
def test_a_single_adapter_is_merged_and_answers_the_same(repository, adapters, toy_data, tmp_path, monkeypatch, kind, name):
    texts = ([[example.text, example.pair] for example in data.read_glue("mrpc", "dev", toy_data)[:8]] if kind == "roberta" else
             [mr for mr, _ in data.read_e2e("test", toy_data)][:3])
    lines, options = [{"adapter": name, "text": text} for text in texts], ["--max-new-tokens", "9", "--precision", "fp32"]
    added, add_updates = [], bank.add_updates
    monkeypatch.setattr(bank, "add_updates", lambda *arguments: added.append(1) or add_updates(*arguments))
    _, merged = run(repository, adapters, kind, lines, tmp_path, *options, names=[name])
    assert not added
    again = adapters | {"again": adapters[name]}
    _, mixed = run(repository, again, kind, lines, tmp_path, *options, names=[name, "again"])
    assert added and not any(differing(one, other) for one, other in zip(merged, mixed, strict=True))


@pytest.mark.parametrize("device, message", [("gpu", "expected auto, cpu, cuda, cuda:N or mps"), ("cuda:99", "CUDA"),
                                             ("mps:1", "expected auto")])
def test_a_device_that_is_not_there_is_refused_in_one_line(repository, tmp_path, device, message):
    with pytest.raises(ValueError, match=message) as refusal:
        predict.main(["--model", str(repository / "toy/gpt2"), "--device", device, str(tmp_path / "requests.jsonl")])
    assert "--device" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("pair", ["mrpc", "=x", "mrpc="])
def test_a_pair_that_lacks_a_part_is_refused(pair):
    assert predict.parse_adapters(["a=b", "c=d=e"]) == [("a", "b"), ("c", "d=e")]
    with pytest.raises(ValueError, match=f"--adapter {pair}: expected NAME=DIR"):
        predict.parse_adapters([pair])


BAD = [                                                                      # line, what is said of it
    (b"\n", "not JSON"), (b'{"adapter": "mrpc"\n', "not JSON"), (b'"mrpc"\n', "found a JSON str, expected an object"),
    (b'{"adapter": "mrpc", "text": ["\xff", "b"]}\n', "not JSON in UTF-8"),
    (b'{"adapter": "mrpc", "text": ["\\ud800", "b"]}\n', "not JSON in UTF-8"),
    (b'{"adapter": "mrpc", "adapter": "mnli", "text": ["a", "b"]}\n', "'adapter' stands twice"),
    (b'{"adapter": "mrpc", "text": ["a", "b"], "n": NaN}\n', "not JSON"),
    (b"[" * 100_000 + b"\n", "not JSON"),
    ({"text": ["a", "b"]}, "no 'adapter'"), ({"adapter": "mrpc"}, "no 'text'"),
    ({"adapter": "mrpc", "text": ["a", "b"], "label": 1}, "'label' is a key of the answers"),
    ({"adapter": ["mrpc"], "text": ["a", "b"]}, "expected its name"), ({"adapter": "mrpc", "text": 3}, "expected a string"),
    ({"adapter": "mrpc", "text": []}, "expected a string"), ({"adapter": "mrpc", "text": ["a", None]}, "expected a string"),
    ({"adapter": "mrpc", "text": "a"}, "found 1 text, expected 2 for mrpc"),
    ({"adapter": "mrpc", "text": ["a", "b", "c"]}, "expected a string or a list of one or two"),
    ({"adapter": "mprc", "text": ["a", "b"]}, "no adapter 'mprc' (the bank holds base, mrpc, mnli, stsb)"),
    ({"adapter": "base", "text": ["a", "b"]}, "the base has no head of a task"),
    ({"adapter": "mrpc", "text": ["a " * 600, "b"]}, "the model takes 512"),
]


def test_bad_lines_are_reported_with_their_number_and_stop_nothing(repository, adapters, tmp_path, capsys):
    good = {"adapter": "mrpc", "text": ["It is red.", "It is blue."]}
    lines = [line for bad, _ in BAD for line in (good, bad)] + [good]
    status, answers = run(repository, adapters, "roberta", lines, tmp_path, "--batch-size", "2")
    said = capsys.readouterr().err
    assert status == 1 and len(answers) == len(lines) and f"error: lines refused: {len(BAD)}; all others are answered" in said
    for index, (_, message) in enumerate(BAD):
        number = 2 * index + 2
        assert answers[number - 1].keys() == {"line", "error"} and answers[number - 1]["line"] == number
        assert message in answers[number - 1]["error"], answers[number - 1]
        assert f"requests.jsonl, line {number}: " in said
    assert all(answer["label"] for answer in answers[::2])


def test_a_byte_order_mark_is_dropped_and_utf_16_is_named(repository, adapters, tmp_path, capsys):
    line = json.dumps({"adapter": "mrpc", "text": ["A.", "B."]}).encode() + b"\r\n"
    plain = run(repository, adapters, "roberta", [line, line], tmp_path)
    assert plain[0] == 0 and run(repository, adapters, "roberta", [b"\xef\xbb\xbf" + line, line], tmp_path) == plain
    for encoding in ("utf-16", "utf-16-le"):
        status, answers = run(repository, adapters, "roberta", [line.decode().encode(encoding)], tmp_path)
        assert status == 1 and answers[0] == {"line": 1, "error": "the text is UTF-16; save it as UTF-8"}


@pytest.mark.parametrize("line, message", [
    ({"adapter": "e2e", "text": ["a", "b"]}, "found 2 texts, expected one"), ({"adapter": "base", "text": ""}, "has 0 tokens"),
    ({"adapter": "e2e", "text": "name " * 600}, "expected 1 to 448")])
def test_bad_lines_for_gpt2(repository, adapters, tmp_path, line, message):
    status, answers = run(repository, adapters, "gpt2", [line, {"adapter": "e2e", "text": "x"}], tmp_path, "--beam-size", "1",
                          names=["e2e"])
    assert status == 1 and message in answers[0]["error"] and "text" in answers[1]


def test_strict_stops_at_the_first_bad_line(repository, adapters, tmp_path):
    with pytest.raises(ValueError, match="requests.jsonl, line 2: there is no adapter 'x'"):
        run(repository, adapters, "roberta", [{"adapter": "mrpc", "text": ["a", "b"]}, {"adapter": "x", "text": "a"}],
            tmp_path, "--strict")
    assert not (tmp_path / "answers.jsonl").exists()


@pytest.mark.parametrize("batch_size, window", [(1, 1), (3, 48)])
def test_no_more_than_a_window_is_read_ahead(repository, adapters, batch_size, window):
    bank = AdapterBank(M.load_pretrained(repository / "toy/roberta"))
    bank.add("mrpc", adapters["mrpc"])
    predictor = predict.Predictor(bank, data.load_tokenizer(repository / "toy/roberta"), batch_size)
    line, read = json.dumps({"adapter": "mrpc", "text": ["It is red.", "It is."]}).encode(), 0

    def lines():
        nonlocal read
        for _ in range(150):
            read += 1
            yield line
    ahead = [read - answered for answered, _ in enumerate(predict.answer_lines(predictor, lines()))]
    assert len(ahead) == 150 and max(ahead) == window


def test_refused_before_anything_runs(repository, adapters, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("a batch ran")
    monkeypatch.setattr(AdapterBank, "logits_of", never)
    model, requests = ["--model", str(repository / "toy/roberta")], tmp_path / "requests.jsonl"
    requests.write_text(json.dumps({"adapter": "mrpc", "text": ["a", "b"]}))
    mrpc = f"mrpc={adapters['mrpc']}"
    save_adapter(L.add_lora(M.load_pretrained(repository / "toy/roberta", num_labels=3), 2, 5), tmp_path / "unknown")
    for options, message in (
            ([mrpc, mrpc], "an adapter 'mrpc' already.*holds base, mrpc"), ([f"base={adapters['mrpc']}"], "'base' already"),
            (["mrpc"], "expected NAME=DIR"), (["=x"], "expected NAME=DIR"),
            ([mrpc, f"text={adapters['e2e']}"], "adapter 'text': .*holds base, mrpc"),
            ([f"x={tmp_path / 'unknown'}"], "adapter 'x': its task is 'x', so its labels have no names"),
            ([f"mrpc={tmp_path / 'unknown'}"], r"its head has 3 labels, mrpc has 2 \(not_equivalent, equivalent\)")):
        with pytest.raises(ValueError, match=message):
            predict.main([*model, *(part for option in options for part in ("--adapter", option)), str(requests)])
    with pytest.raises(FileNotFoundError):
        predict.main([*model, "--adapter", f"mrpc={tmp_path / 'nowhere'}", str(requests)])


def test_standard_input_to_standard_output(repository, adapters):
    """A process of its own, with a locale that is not UTF-8, answers a line before the next is sent."""
    process = subprocess.Popen(
        [sys.executable, "predict.py", "--model", "toy/roberta", "--adapter", f"mrpc={adapters['mrpc']}", "-",
         "--batch-size", "1"], cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={"PATH": "", "LC_ALL": "C", "PYTHONUTF8": "0"})
    for name in ("Zoë", "东"):
        request = json.dumps({"adapter": "mrpc", "text": [name, name], "name": name}, ensure_ascii=False)
        process.stdin.write(request.encode() + b"\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline().decode("utf-8"))
        assert answer["name"] == name and answer["label"] in data.GLUE_TASKS["mrpc"].labels
    process.stdin.close()
    assert process.wait() == 0


def test_lines_before_a_bad_one_are_written_under_strict(repository, adapters):
    bank = AdapterBank(M.load_pretrained(repository / "toy/roberta"))
    bank.add("mrpc", adapters["mrpc"])
    predictor, out = predict.Predictor(bank, data.load_tokenizer(repository / "toy/roberta"), 2), io.BytesIO()
    good = json.dumps({"adapter": "mrpc", "text": ["a", "b"]}).encode()
    with pytest.raises(ValueError, match="FILE, line 41: not JSON"):
        predict.answer_file(predictor, [good] * 40 + [b"{"], None, "FILE", out, strict=True)
    assert out.getvalue().count(b"\n") == 40


def test_many_adapters_answer_in_order_and_as_each_alone(repository, toy_data, tmp_path):
    """In small what `python -m experiments.bench requests` does in full: 100 adapters, 10,000 requests, a process each."""
    names = list(write_adapters(tmp_path, 12))
    examples, draw = data.read_glue("mrpc", "dev", toy_data), random.Random(1)
    lines = [json.dumps({"id": index, "adapter": draw.choice(names), "text": [examples[index].text, examples[index].pair]})
             .encode() for index in range(120)]
    base, tokenizer = M.load_pretrained(repository / "toy/roberta"), data.load_tokenizer(repository / "toy/roberta")

    def answers(held, wanted):
        bank = AdapterBank(base)
        for name in held:
            bank.add(name, tmp_path / name)
        return [answer for _, answer in predict.answer_lines(predict.Predictor(bank, tokenizer, 16), iter(wanted))]
    mixed = answers(names, lines)
    assert [answer["id"] for answer in mixed] == list(range(120)) and len({answer["adapter"] for answer in mixed}) == 12
    for name in names:
        wanted = [line for line, answer in zip(lines, mixed, strict=True) if answer["adapter"] == name]
        alone = answers([name], wanted)
        assert wanted and not any(differing(mixed[answer["id"]], answer) for answer in alone)
    assert differing(mixed[0], mixed[1]) and differing({"score": 1.0}, {"score": 1.001})


def interactive(repository, kind, chosen, *options):
    return [f"{repository}/predict.py", "--model", f"{repository}/toy/{kind}", *chosen, "--interactive", "--precision", "fp32",
            *options]


@pytest.fixture()
def talk(repository, monkeypatch):
    """Runs predict.py --interactive in this process on an input; returns its output, and how many lines of that stood there
    whenever a line was read."""
    def talk(text, *arguments):
        out, written = io.BytesIO(), []

        class Lines(io.BytesIO):
            def readline(self):
                written.append(out.getvalue().count(b"\n"))
                return super().readline()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(Lines(text)))
            patch.setattr(sys, "stdout", io.TextIOWrapper(out))
            assert predict.main(interactive(repository, *arguments)[1:]) == 0
            return out.getvalue().decode("utf-8"), written
    return talk


def test_a_line_in_a_text_out(repository, adapters, toy_data, talk, capsys):
    """Each line is answered before the next is sent, as decode.py would; the end of the input ends it, even inside a line."""
    mrs = list(dict.fromkeys(mr for mr, _ in data.read_e2e("test", toy_data)))[:3]
    model = load_adapter(M.load_pretrained(repository / "toy/gpt2"), adapters["e2e"])
    _, texts = decode_e2e(model, data.load_tokenizer(repository / "toy/gpt2"), [(mr, "") for mr in mrs], (0.9,), beam_size=3,
                          max_new_tokens=12)
    capsys.readouterr()
    out, written = talk("\n".join([*mrs[:2], "name " * 600, ""]).encode() + b"\xff\n" + mrs[2].encode(), "gpt2",
                        ["--adapter", f"e2e={adapters['e2e']}"], "--beam-size", "3", "--max-new-tokens", "12")
    assert out == "".join(text + "\n" for text in texts[0.9]) and written == [0, 1, 2, 2, 2, 3]
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("loaded ", "precision: "))]
    assert lines[0] == "e2e: type a text; Ctrl-D or Ctrl-C ends" and len(lines) == 3
    assert "refused: the text has" in lines[1] and lines[2].startswith("refused: ") and "utf-8" in lines[2]


def test_a_pair_with_a_tab_in_a_label_out_and_ctrl_c_ends_it(repository, adapters):
    """A process of its own, its answers and reports as bytes through pipes."""
    process = subprocess.Popen(
        [sys.executable, *interactive(repository, "roberta", ["--adapter", f"mrpc={adapters['mrpc']}"])], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={"PATH": "", "LC_ALL": "C", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"})
    model = load_adapter(M.load_pretrained(repository / "toy/roberta", num_labels=2), adapters["mrpc"])
    process.stdin.write("only one\nZoë is here.\tIt is Zoë.\r\n".encode())
    process.stdin.flush()
    with torch.inference_mode():
        ids = data.load_tokenizer(repository / "toy/roberta").encode("Zoë is here.", "It is Zoë.")
        probability, label = model(torch.tensor([ids]))[0].softmax(0).max(0)
    name, found = process.stdout.readline().decode("utf-8").split("\t")
    assert name == data.GLUE_TASKS["mrpc"].labels[label] and float(found) == pytest.approx(probability.item(), abs=2e-4)
    process.send_signal(signal.SIGINT)                                       # while it waits for the next line
    out, said = process.communicate()
    assert (process.returncode, out) == (0, b"")
    lines = [line for line in said.decode("utf-8").splitlines() if not line.startswith(("loaded ", "precision: "))]
    assert lines == ["mrpc: type two texts with a tab between; Ctrl-D or Ctrl-C ends",
                     "refused: found 1 text, expected 2 for mrpc"]


def test_the_bare_gpt2_goes_on_with_plain_text(repository, talk, capsys):
    out, _ = talk(b"\n\xef\xbb\xbfThe Winter Otter\n", "gpt2", [], "--beam-size", "2", "--max-new-tokens", "6")
    said = capsys.readouterr().err
    model, tokenizer = M.load_pretrained(repository / "toy/gpt2"), data.load_tokenizer(repository / "toy/gpt2")
    ids, = generate(model, [tokenizer.encode("The Winter Otter")], 2, max_new_tokens=6, eos_ids=end_tokens(tokenizer))
    assert out == clean(tokenizer.decode(ids)) + "\n" and "refused: the text has 0 tokens" in said


@pytest.mark.parametrize("method", ["lora", "head"])
def test_a_bert_goes_from_training_to_an_answer(toy_data, tmp_path, capsys, method):
    """A random one with a vocabulary of the toy texts: trained, scored again, and its adapter asked in a bank of two."""
    pairs = data.read_glue("mrpc", "dev", toy_data)
    words = sorted({word.lower() for pair in pairs for word in re.findall(r"\w+|[^\w\s]", f"{pair.text} {pair.pair}")})
    tokens, base = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words], tmp_path / "bert"
    base.mkdir()
    (base / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    config = {"vocab_size": len(tokens), "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 40, "max_position_embeddings": 90}
    (base / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    model = M.BertClassifier(M.BertConfig(**config))
    init_weights(model, 1)
    W.write_safetensors({name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier.")},
                        base / "model.safetensors")
    options = ["--model", str(base), "--task", "mrpc", "--data-dir", str(toy_data), "--limit-eval", "30", "--method", method,
               "--limit-train", "64", "--epochs", "1", "--out-dir", str(tmp_path / "runs")]
    train.main(options)
    (metrics,), (adapter,) = (list((tmp_path / "runs").rglob(name)) for name in ("metrics.json", "adapter"))
    scores = json.loads(metrics.read_text())["scores"]
    train.main([*options, "--eval-only", "--adapter", str(adapter)])
    (again,) = (path for path in (tmp_path / "runs").rglob("metrics.json") if "eval" in path.parts)
    assert json.loads(again.read_text())["scores"] == pytest.approx(scores)
    assert "this project's choice for a small BERT" in capsys.readouterr().out
    if method == "lora":
        requests = tmp_path / "requests.jsonl"
        requests.write_text("".join(json.dumps({"adapter": name, "text": [pair.text, pair.pair]}) + "\n"
                                    for pair in pairs[:30] for name in ("mrpc", "other")), encoding="utf-8")
        assert predict.main(["--model", str(base), "--adapter", f"mrpc={adapter}", "--adapter", f"other={adapter}",
                             str(requests)]) == 0
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        expected = [line.split("\t")[1] for line in (metrics.parent / "predictions.tsv").read_text().splitlines()[1:]]
        assert [answer["label"] for answer in answers[::2]] == expected == [answer["label"] for answer in answers[1::2]]


def test_options_that_mean_nothing_together_are_refused(repository, adapters, capsys):
    mrpc, stsb = (f"{name}={adapters[name]}" for name in ("mrpc", "stsb"))
    for options, message in ((["--interactive", "--adapter", mrpc, "--adapter", stsb], "speaks to one adapter, found 2"),
                             (["--interactive"], "--interactive with an encoder needs an adapter")):
        with pytest.raises(ValueError, match=message):
            predict.main(["--model", str(repository / "toy/roberta"), *options])
    for options, message in (([], "is required"), (["--interactive", "--strict"], "--out and --strict are for a file of"),
                             (["--interactive", "x"], "not allowed with"), (["x", "--data-dir", "y"], "--data-dir is for")):
        with pytest.raises(SystemExit) as ended:
            predict.main(["--model", "toy/roberta", *options])
        assert ended.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
