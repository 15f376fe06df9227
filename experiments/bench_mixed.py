"""The cost of a batch whose rows use different adapters, against merged weights, PEFT, and one batch per task.

    python -m experiments.bench mixed --data-dir DIR --tokenizers DIR --json FILE.json --plot FILE.png     # 96 points, 20 min
    python -m experiments.bench mixed --models roberta-base --batches 8 --adapters 8 ...                   # a minute

Every point is measured, with a bank that holds as many adapters as the point says, and written to --json at once: the same
command again, after an interruption, goes on where it stopped.
Models have the real configuration and random weights; adapters have the paper's settings (q and v, rank 8 on RoBERTa,
4 on GPT-2), which cost the same as trained ones; lengths are those of MRPC pairs and E2E samples. Each round runs every
way once, in turn, so that all see the same noise; a ratio is the median over rounds of one way's time by another's in
the same round. `forward`: RoBERTa's classification of pairs, GPT-2's hidden states of whole samples, rows end to end in
ours and padded in PEFT's. `decode`: GPT-2's next tokens for every row, one by one, with keys and values of its past cached;
a mixed batch is routed once for all of them, as in generate(). One batch per task takes many times as long, so it is run in
the first round only.
"""
import argparse
import itertools
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from adapters import AdapterBank, load_adapter, save_adapter
from adapters.bank import BankAdapter, bank_adapter_of
from adapters.saving import read_adapter
from data import encode_e2e, read_e2e, read_glue
from experiments.bench_train import machine
from files.text import read_json, write_json
from files.tokenizer import load_tokenizer
from files.weights import read_safetensors, write_safetensors
from generation.cache import BeamCache
from lora import add_lora, merge
from model import GPT2, GPT2Config, RobertaClassifier, RobertaConfig
from speed.linear import lay_out_for_decoding
from speed.packed import pack
from toy.fresh import init_weights

MODELS = {"roberta-base": (RobertaClassifier, RobertaConfig, 8), "gpt2": (GPT2, GPT2Config, 4)}
POPULATIONS = ("distinct", "uniform", "skewed", "identical")
WAYS = ("merged", "single", "mixed", "peft", "per task")
DECODED = 8                                                                  # tokens of a `decode`; a real text has some 30


def population(kind: str, batch: int, adapters: int) -> list[int]:
    """Which adapter each row has. distinct: all different while there are enough. uniform: drawn evenly. skewed: half of
    the rows have the first, a quarter the second, and so on. identical: all the same."""
    draw = random.Random(f"{kind} {batch} {adapters}")
    if kind == "distinct":
        return [row % adapters for row in range(batch)]
    if kind == "uniform":
        return [draw.randrange(adapters) for _ in range(batch)]
    if kind == "skewed":
        return draw.choices(range(adapters), weights=[2.0 ** -index for index in range(adapters)], k=batch)
    return [adapters - 1] * batch


# ---------------------------------------------------------------- the competitors

class Competitors:
    """One base in every form that is compared; `hold` says how many adapters the bank and PEFT's model have."""

    def __init__(self, name: str, with_peft: bool):
        self.name, (build, config, rank) = name, MODELS[name]
        base = build(config()).eval()
        init_weights(base, seed=0)
        self.bank = AdapterBank(base)
        self.is_gpt2 = isinstance(base, GPT2)
        self.folder = tempfile.TemporaryDirectory()                          # PEFT reads its adapters there
        self.save_one(base, rank, self.folder.name)
        self.first = bank_adapter_of(base, read_adapter(self.folder.name, base.config))
        self.single = load_adapter(self.fresh(base), self.folder.name).eval()
        self.merged = merge(load_adapter(self.fresh(base), self.folder.name).eval())
        for model in (base, self.single, self.merged):
            lay_out_for_decoding(model)                                      # as generate() does
        self.bank.add("0", self.first)                                       # the one that single and merged have
        self.peft = peft_model(base, self.folder.name) if with_peft else None
        self.held, self.generator = 1, torch.Generator().manual_seed(1)

    def hold(self, count: int) -> None:
        """Add adapters until there are `count`, which is not less than there were."""
        for index in range(self.held, count):
            updates = {target: tuple(torch.empty_like(matrix).normal_(0, 0.02, generator=self.generator) for matrix in pair)
                       for target, pair in self.first.updates.items()}
            self.bank.add(str(index), BankAdapter("mrpc", updates, self.first.head))
            if self.peft:
                self.peft.load_adapter(self.folder.name, f"a{index}")
        self.held = count
        if self.peft:
            self.peft.eval()                                                 # what was added comes in training mode

    def fresh(self, base):
        """Another model with the base's numbers in memory of its own, so that merging does not touch the others."""
        with torch.device("meta"):
            model = type(base)(base.config)
        model.load_state_dict({name: tensor.clone() for name, tensor in base.state_dict().items()}, assign=True)
        return model

    def save_one(self, base, rank: int, folder: str) -> None:
        model = add_lora(self.fresh(base), rank, 2 * rank)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B" in name:
                    parameter.normal_(0, 0.02)
        save_adapter(model, folder, task="mrpc")

    def ways(self, section: str, names: list[int], batch) -> dict:
        """Name of a way -> a call that serves the batch. `merged` and `single` serve the first adapter to all rows."""
        rows = {adapter: [row for row, other in enumerate(names) if other == adapter] for adapter in dict.fromkeys(names)}
        run, adapters = (self.forward, self.decode)[section == "decode"], [self.bank[str(index)] for index in names]

        def routed(model, adapters, batch):
            lengths = None
            if section == "forward":
                lengths, order = batch[1].sum(dim=1).sort(descending=True, stable=True)
                adapters, lengths = [adapters[row] for row in order.tolist()], lengths.tolist()
            self.bank.route(adapters, lengths)
            run(model, batch)
            self.bank.route([])

        def per_task():                                                      # as many batches as there are tasks in it
            for adapter, of_task in rows.items():
                routed(self.bank.model, [self.bank[str(adapter)]] * len(of_task), select(batch, of_task))
        peft_names = [f"a{index}" for index in names]
        return {"merged": lambda: run(self.merged, batch), "single": lambda: run(self.single, batch),
                "mixed": lambda: routed(self.bank.model, adapters, batch),
                "peft": lambda: peft_run(self.peft, section, peft_names, batch), "per task": per_task}

    def forward(self, model, batch: tuple[Tensor, Tensor]) -> None:
        sequences = [row[:length].tolist() for row, length in zip(batch[0], batch[1].sum(dim=1).tolist(), strict=True)]
        ids, attend = pack(sorted(sequences, key=len, reverse=True), model.causal)       # end to end, as the bank's rows
        if self.is_gpt2:
            model.hidden_states(ids, attend)
        else:
            firsts = torch.tensor([0, *map(len, sorted(sequences, key=len, reverse=True))][:-1]).cumsum(0)
            model.classifier(model.hidden_states(ids, attend, firsts))

    def decode(self, model, batch: tuple[Tensor, Tensor]) -> None:
        """DECODED steps: (N, 1) tokens after P cached positions. The cache is made anew for every shape and not timed."""
        input_ids, past = batch
        cache = own_cache(model, len(input_ids), past)
        for _ in range(DECODED):
            cache.go_on(torch.zeros_like(input_ids))
            model.logits(model.hidden_states(input_ids, cache))


def select(batch: tuple, rows: list[int]) -> tuple:
    """Rows of (input_ids, mask), cut to their own longest; of (input_ids, past) with the same past."""
    input_ids, other = batch
    if isinstance(other, int):
        return input_ids[rows], other
    length = int(other[rows].sum(dim=1).max())
    return input_ids[rows, :length], other[rows, :length]


CACHES: dict = {}


def collate_pairs(ids_list: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Encoded texts -> input_ids (B, T) padded on the right and attention_mask (B, T), 1 on tokens, 0 on padding."""
    rows, lengths = [torch.tensor(ids) for ids in ids_list], torch.tensor([len(ids) for ids in ids_list])
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)    # (B, T)
    return input_ids, (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()


def own_cache(model: GPT2, rows: int, past: int) -> BeamCache:
    cache, config = BeamCache(torch.full((rows,), past), past + DECODED), model.config
    if (rows, past) not in CACHES:
        CACHES[rows, past] = [torch.randn(2, rows, config.n_head, cache.capacity, config.n_embd // config.n_head)
                              for _ in range(config.n_layer)]
    cache.layers.extend(CACHES[rows, past])
    return cache


def peft_model(base, folder: str):
    """The same base in transformers, with the folder's adapter in PEFT.

    PEFT's mixed batches take no head of their own per row (of RoBERTa's kind), so all its rows share the base's.
    """
    import peft
    import transformers
    transformers.utils.logging.set_verbosity_error()
    if isinstance(base, GPT2):
        reference = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    else:
        reference = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5))
    reference.load_state_dict(base.state_dict(), strict=False)
    tensors, config = read_safetensors(Path(folder) / "adapter_model.safetensors"), read_json(
        Path(folder) / "adapter_config.json")
    write_safetensors({name: tensor.clone() for name, tensor in tensors.items() if ".lora_" in name},
                      Path(folder) / "adapter_model.safetensors")
    write_json(config | {"modules_to_save": None, "task_type": None}, Path(folder) / "adapter_config.json")
    return peft.PeftModel.from_pretrained(reference, folder, adapter_name="a0")


def peft_run(model, section: str, names: list[str], batch: tuple) -> None:
    input_ids, other = batch
    if section == "decode":
        from transformers import DynamicCache
        cache = CACHES.setdefault(("peft", len(input_ids), other), None)
        if cache is None:
            cache = CACHES["peft", len(input_ids), other] = DynamicCache()
            for layer in range(model.config.n_layer):
                shape = (len(input_ids), model.config.n_head, other, model.config.n_embd // model.config.n_head)
                cache.update(torch.randn(shape), torch.randn(shape), layer)
        for _ in range(DECODED):
            model(input_ids=input_ids, past_key_values=cache, use_cache=True, adapter_names=names)
        cache.crop(-DECODED)                                                 # forget these steps again
    elif hasattr(model.base_model.model, "transformer"):                     # hidden states, as ours: no logits
        with model.base_model._enable_peft_forward_hooks(adapter_names=names):
            model.base_model.model.transformer(input_ids=input_ids, use_cache=False)
    else:
        model(input_ids=input_ids, attention_mask=other, adapter_names=names)


# ---------------------------------------------------------------- measuring

def batches(options: argparse.Namespace, name: str) -> dict[tuple[str, int], tuple]:
    """(section, batch size) -> input: the first rows of the real data, padded to their longest."""
    tokenizer, made = load_tokenizer(options.tokenizers / name), {}
    for size in options.batches:
        if name == "gpt2":
            samples = [encode_e2e(tokenizer, *pair) for pair in read_e2e("test", options.data_dir)[:size * 7:7]]
            input_ids, mask = collate_pairs([ids[:-1] for ids, _ in samples], tokenizer.pad_id)
            past = round(statistics.mean((length + len(ids)) / 2 for ids, length in samples))    # halfway through the text
            made |= {("forward", size): (input_ids, mask), ("decode", size): (input_ids[:, :1], past)}
        else:
            pairs = read_glue("mrpc", "dev", options.data_dir)[:size]
            made["forward", size] = collate_pairs([tokenizer.encode(pair.text, pair.pair) for pair in pairs], tokenizer.pad_id)
    return {key: batch for key, batch in made.items() if key[0] in options.sections}


@torch.inference_mode()
def measure(ways: dict, rounds: int, seconds: float) -> dict:
    """Milliseconds per call, wall and processor time, of every way in every round; short calls are repeated within."""
    repeats = {name: 1 for name in ways}
    for name, way in ways.items():
        if name != "per task":
            started = time.perf_counter()
            way()                                                            # first calls are slow
            repeats[name] = max(1, round(seconds / (time.perf_counter() - started)))
    wall, processor = {name: [] for name in ways}, {name: [] for name in ways}
    for round_number in range(rounds):
        for name, way in ways.items():
            if name == "per task" and round_number:
                continue
            started, processor_started = time.perf_counter(), time.process_time()
            for _ in range(repeats[name]):
                way()
            wall[name].append(1e3 * (time.perf_counter() - started) / repeats[name])
            processor[name].append(1e3 * (time.process_time() - processor_started) / repeats[name])
    return {"wall_ms": wall, "processor_ms": processor}


def ratio(times: dict[str, list[float]], way: str, by: str) -> float | None:
    if way not in times or by not in times:
        return None
    return statistics.median(a / b for a, b in zip(times[way], times[by], strict=False))   # per task has one round


def place(point: dict) -> tuple:
    """Which point of the grid this is."""
    return tuple(point[key] for key in ("model", "adapters", "section", "batch", "population"))


def begun(options: argparse.Namespace, figures: dict) -> dict:
    """The figures with the points that --json holds already. Raises ValueError if these were measured in another way."""
    if not options.json or not options.json.exists():
        return figures
    found = read_json(options.json)
    for key, value in figures.items():
        if key not in ("points", "machine") and found.get(key) != value:
            raise ValueError(f"{options.json}: its points have {key} {found.get(key)}, not {value}; name another --json file")
    return found


def bench_mixed(options: argparse.Namespace) -> dict:
    """Every point of the grid that the options name, but for those that --json holds."""
    torch.set_num_threads(options.threads)
    figures = begun(options, {
        "machine": machine(options.threads), "rounds": options.rounds, "seconds": options.seconds, "ways": options.ways,
        "threads": options.threads, "torch": torch.__version__,
        "length": {"roberta-base": "MRPC dev pairs", "gpt2": "E2E test samples"}, "points": []})
    measured = {place(point) for point in figures["points"]}
    print(f"{'model':13s}{'':9s}batch adapters population  {'merged':>9s}" + "".join(f"{way:>10s}" for way in WAYS[1:])
          + "   by merged (processor)  PEFT by mixed (processor)")
    for name in options.models:
        inputs = batches(options, name)
        wanted = [(name, count, *key, kind) for count in sorted(options.adapters)        # a bank grows from one to the next
                  for key, kind in itertools.product(inputs, options.populations)]
        missing = [point for point in wanted if point not in measured]
        competitors = Competitors(name, "peft" in options.ways) if missing else None
        for _, count, section, size, kind in missing:
            competitors.hold(count)
            names = population(kind, size, count)
            ways = competitors.ways(section, names, inputs[section, size])
            times = measure({way: ways[way] for way in options.ways}, options.rounds, options.seconds)
            wall, processor = times["wall_ms"], times["processor_ms"]
            figures["points"].append({
                "model": name, "section": section, "batch": size, "adapters": count, "population": kind,
                "adapters_in_batch": len(set(names)), "milliseconds": {w: statistics.median(wall[w]) for w in wall},
                **{key: [ratio(t, *pair) for t in (wall, processor)] for key, pair in
                   (("mixed_by_merged", ("mixed", "merged")), ("peft_by_mixed", ("peft", "mixed")),
                    ("per_task_by_mixed", ("per task", "mixed")))}})
            print(line(figures["points"][-1]), flush=True)
            if options.json:
                write_json(figures, options.json)
    return figures


def line(point: dict) -> str:
    def pair(values: list[float | None]) -> str:
        return "-" if values[0] is None else f"{values[0]:.3f} ({values[1]:.3f})"
    times = "".join(f"{point['milliseconds'].get(way, float('nan')):10.1f}" for way in WAYS)
    return (f"{point['model']:13s}{point['section']:9s}{point['batch']:5d} {point['adapters']:8d} {point['population']:10s} "
            f"{times}   {pair(point['mixed_by_merged']):>20s}  {pair(point['peft_by_mixed']):>24s}")


def plot(figures: dict, path: Path) -> None:
    """Time by merged weights, every point of more than one row as it was measured: above over how many adapters the bank
    holds, below over how many different ones the batch has; one column per model, section and batch size."""
    from experiments import plots  # matplotlib: only where a picture is asked for
    points = [point for point in figures["points"] if point["batch"] > 1]    # one row has one adapter
    shapes = list(dict.fromkeys((point["model"], point["section"], point["batch"]) for point in points))
    xs = {"adapters": "adapters in the bank", "adapters_in_batch": "different adapters in the batch"}
    figure, axes = plots.new_figure(len(shapes), len(xs), 4.4, 3.8, sharey=True)
    for axis, (x, shape) in zip(axes, itertools.product(xs, shapes), strict=True):
        chosen = [point for point in points if (point["model"], point["section"], point["batch"]) == shape]
        for way in chosen[0]["milliseconds"]:
            label, colour, marker = plots.WAYS[way]
            axis.plot([point[x] for point in chosen],
                      [point["milliseconds"][way] / point["milliseconds"]["merged"] for point in chosen], label=label,
                      color=colour, marker=marker, linestyle="--" if way == "merged" else "none", alpha=0.6)
        axis.set(xscale="log", yscale="log", title=f"{shape[0]}, {shape[1]}, batch {shape[2]}", xlabel=xs[x])
        plots.plain_ticks(axis.xaxis, sorted({point[x] for point in chosen}))
        plots.plain_ticks(axis.yaxis, [0.8, 1, 1.2, 1.5, 2, 3, 4, 6, 8])
    for axis in axes[::len(shapes)]:
        axis.set_ylabel("time, merged weights = 1")
    axes[0].set_ylim(0.75, 1.1 * max(max(point["milliseconds"].values()) / point["milliseconds"]["merged"]
                                     for point in points))
    plots.one_legend(figure, axes, 3 if len(shapes) < 4 else len(plots.WAYS))
    figure.suptitle(f"Rows with different adapters in one batch: {len(points)} points, each measured with its bank; random "
                    f"weights, fp32, {figures['threads']} threads", fontsize=13)
    plots.save_figure(figure, path)
    print(f"wrote {path}")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", required=True, help="folder with glue/MRPC and e2e/")
    parser.add_argument("--tokenizers", required=True, type=Path, help="folder with roberta-base/ and gpt2/ tokenizer files")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--sections", nargs="+", default=["forward", "decode"], choices=["forward", "decode"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--adapters", nargs="+", type=int, default=[2, 8, 32, 128], help="held by the bank")
    parser.add_argument("--populations", nargs="+", default=list(POPULATIONS), choices=POPULATIONS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="repeat a short call within a round for about this long")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file, which goes on from what it holds")
    parser.add_argument("--plot", type=Path, help="draw them into this picture")
